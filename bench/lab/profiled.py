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
from bench.lab.pairs import Pair
from bench.lab.store import digest
from cache_core import methods
from cache_core.profile import Profile

if TYPE_CHECKING:
    from bench.lab.painter import Painter

CAPTIONS = (
    "a small yellow star on brick",
    "a large white ring on dusk",
    "a medium purple cross on gravel",
    "a photo of astronaut",
)
FIRST_SEED = 9000
"""Captions and seeds that no table uses together."""
RECORDER = ROOT / "nodes" / "watcher.py"


@functools.lru_cache(maxsize=8)
def recorded(studio: Painter, cfg: float, steps: int, sampler: str = EULER) -> Profile:
    """Whole runs of four captions: what `record` "whole run" of the node gives."""
    watching: Any = importlib.import_module(f"{PACK}.nodes.watcher")
    watcher = watching.Watcher(True, cfg > 1, lambda: None)
    for number, caption in enumerate(CAPTIONS):
        watcher.begin()
        model = studio.lab.pack.calibrating(studio.model, watcher.method, watcher.observe, watcher.around)
        studio.make(model, Pair(caption, FIRST_SEED + number, cfg), steps, None, sampler)
    family, dimensions = studio.lab.pack.fingerprint(studio.model)
    about = {
        "model": dimensions, "family": family, "sampler": sampler, "scheduler": "simple", "steps": steps, "cfg": cfg,
        "samples": len(CAPTIONS), "size": " x ".join(str(side) for side in studio.shape[2:]), "shift": 0.0, "date": "",
        "pack": "", "name": "bench",
    }  # fmt: skip
    return Profile(about, watching.joined([watcher.tables()]))


@dataclass(frozen=True, slots=True)
class Profiled(Cached):
    """A method of cache_core with a profile of full runs of this guidance and number of steps."""

    cfg: float = 1.0
    recorded_steps: int = 28

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        profile = recorded(studio, self.cfg, self.recorded_steps, self.sampler)
        return SetUp(studio.lab.attach(studio.model, methods()[self.method](profile, **self.params)), steps)

    def version(self) -> str:
        own = Path(__file__).read_text("utf-8")
        return digest([super(Profiled, self).version(), RECORDER.read_text("utf-8"), own])
