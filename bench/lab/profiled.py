"""Methods that follow a profile of the small FLUX, recorded in this process as Cache Calibrate records one."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT
from bench.lab.arms import EULER, Cached, SetUp
from bench.lab.lab import PACK
from bench.lab.pairs import others
from bench.lab.store import digest
from cache_core import methods
from cache_core.profile import Profile

if TYPE_CHECKING:
    from bench.lab.studio import Studio

FIRST_SEED = 9000
"""Of the captions that are recorded; no table uses both together."""
RECORDER = ROOT / "nodes" / "watcher.py"


@functools.lru_cache(maxsize=8)
def recorded(studio: Studio, cfg: float, steps: int, sampler: str = EULER) -> Profile:
    """Whole runs of four captions: what `record` "whole run" of the node gives."""
    watching: Any = importlib.import_module(f"{PACK}.nodes.watcher")
    watcher = watching.Watcher(True, cfg > 1, lambda: None)
    pairs = others(FIRST_SEED, cfg)
    for pair in pairs:
        watcher.begin()
        model = studio.lab.pack.calibrating(studio.model, watcher.method, watcher.observe, watcher.around)
        studio.make(model, pair, steps, None, sampler)
    family, dimensions = studio.lab.pack.fingerprint(studio.model)
    about = {
        "model": dimensions, "family": family, "sampler": sampler, "scheduler": "simple", "steps": steps, "cfg": cfg,
        "samples": len(pairs), "size": " x ".join(str(side) for side in studio.shape[2:]), "shift": 0.0, "date": "",
        "pack": "", "name": "bench",
    }  # fmt: skip
    return Profile(about, watching.joined([watcher.tables()]))


@dataclass(frozen=True, slots=True)
class Profiled(Cached):
    """A method of cache_core with a profile of full runs of this guidance and number of steps."""

    cfg: float = 1.0
    recorded_steps: int = 28

    def set_up(self, studio: Studio, steps: int) -> SetUp:
        profile = recorded(studio, self.cfg, self.recorded_steps, self.sampler)
        return SetUp(studio.lab.attach(studio.model, methods()[self.method](profile, **self.params)), steps)

    def version(self) -> str:
        own = Path(__file__).read_text("utf-8")
        return digest([super(Profiled, self).version(), RECORDER.read_text("utf-8"), own])
