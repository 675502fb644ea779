"""Finished runs on disk, one small file each, so that an interrupted bench goes on where it stopped.

A run is known by everything that its figures depend on: the weights, ComfyUI's and torch's versions, what was sampled
and, for methods of the pack, the text of the code that such a run goes through: a new method or a new model remakes no
other method's rows. Uncached runs do not depend on the code and are shared.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.host.provision import cache_folder

CODE = (
    "cache_core/*.py", "cache_core/models/__init__.py", "cache_core/models/flux.py", "nodes/host.py",
    "nodes/sites/*.py",
)  # fmt: skip
"""What every cached run of the small FLUX goes through, beside its own method's files."""
TELLING = ("cache_core/__init__.py", "cache_core/words.py")
"""Of these, what only names or tells: no figure depends on it."""
METHODS = "cache_core/methods"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run against the full run of its pair. computed: evaluations, by the share of each that ran; speedup:
    processor seconds of the full run over this one's, made in the same process; quality of the picture (psnr, ssim) and
    of the latent, inf and 1 where identical. exact: PSNR of the picture to a converged one, where that was made;
    note: why it stood down, or nothing; feature, flip: how the picture looks beside the full run's (`looks.Looks`),
    where that was asked for.
    """

    computed: float
    evaluations: int
    seconds: float
    speedup: float
    cache_bytes: int | None
    psnr: float
    ssim: float
    latent_psnr: float
    latent_ssim: float
    estimate: float | None = None
    exact: float | None = None
    note: str = ""
    feature: float | None = None
    flip: float | None = None


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def code_version(methods: Iterable[str] = (), root: Path = ROOT) -> str:
    """Changes whenever the code does that runs of these methods (names of their files) go through.

    Without a method: of a composition that the bench makes itself.
    """
    shared = {path for pattern in CODE for path in root.glob(pattern)} - {root / name for name in TELLING}
    files = sorted(shared.union(*(method_files(name, root) for name in methods)))
    return digest(f"{path.relative_to(root).as_posix()} {path.read_text('utf-8')}" for path in files)


def method_files(name: str, root: Path = ROOT) -> set[Path]:
    """A method's own file, and the other methods' that it imports, and that these import."""
    found: set[Path] = set()
    waiting = [name]
    while waiting:
        file = root / METHODS / f"{waiting.pop()}.py"
        if file not in found and file.exists():
            found.add(file)
            waiting += _siblings(ast.parse(file.read_text("utf-8")))
    return found


def _siblings(tree: ast.Module) -> list[str]:
    """Names of the files beside it that a file imports: `from . import a` and `from .a import b`."""
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [name for node in relative for name in ([node.module] if node.module else [a.name for a in node.names])]


class Store:
    """A folder of finished runs, each a record of this kind."""

    def __init__(self, folder: Path | None = None, kind: type[Any] = Outcome) -> None:
        self.folder, self.kind = folder or cache_folder() / "bench", kind
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Any:
        """The record, or None."""
        try:
            return self.kind(**json.loads((self.folder / f"{key}.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):  # absent, cut short, or of another version of the bench
            return None

    def put(self, key: str, outcome: Any) -> None:
        """Written beside and moved into place: a reader never sees half a file."""
        temporary = self.folder / f"{key}.{os.getpid()}.part"
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        temporary.replace(self.folder / f"{key}.json")
