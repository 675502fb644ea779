"""Finished runs on disk, one small file each, so that an interrupted bench goes on where it stopped.

A run is known by everything that its figures depend on: the weights, ComfyUI's and torch's versions, what was sampled
and, for methods of the pack, the text of the code. Uncached runs do not depend on the code and are shared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.provision import cache_folder

ROOT = Path(__file__).resolve().parent.parent
CODE = ("cache_core/**/*.py", "nodes/host.py", "nodes/sites.py")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run against the full run of its pair. speedup: processor seconds of the full run over this one's, made in the
    same process; quality of the picture (psnr, ssim) and of the latent, inf and 1 where identical.
    """

    computed: int
    evaluations: int
    seconds: float
    speedup: float
    cache_bytes: int | None
    psnr: float
    ssim: float
    latent_psnr: float
    latent_ssim: float


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def code_version(root: Path = ROOT) -> str:
    """Changes whenever the code that a method runs through does."""
    files = sorted(path for pattern in CODE for path in root.glob(pattern))
    return digest(f"{path.relative_to(root).as_posix()} {path.read_text('utf-8')}" for path in files)


class Store:
    """A folder of finished runs."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "bench"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Outcome | None:
        try:
            return Outcome(**json.loads((self.folder / f"{key}.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):  # absent, cut short, or of another version of the bench
            return None

    def put(self, key: str, outcome: Outcome) -> None:
        """Written beside and moved into place: a reader never sees half a file."""
        temporary = self.folder / f"{key}.{os.getpid()}.part"
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        temporary.replace(self.folder / f"{key}.json")
