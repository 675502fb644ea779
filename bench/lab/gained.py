"""Arms of a method whose effect on the run is learned from other prompts and taken back (`cache_core.gains`)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench.lab.arms import Cached, SetUp
from bench.lab.pairs import COUNT, cases
from cache_core import methods
from cache_core.gains import Gains, Kind, Learner, corrected

if TYPE_CHECKING:
    from bench.lab.studio import Studio

LEARNED_FROM = 3
"""So many pairs, the last ones of all, which no table measures together with the gains."""


@dataclass(frozen=True, slots=True)
class Gained(Cached):
    """A method with the gains of one kind, learned at this guidance."""

    gain: Kind = "noise"
    cfg: float = 1.0

    def set_up(self, studio: Studio, steps: int) -> SetUp:
        gains = learned(studio, self.method, json.dumps(dict(self.params), sort_keys=True), steps, self.cfg)
        return SetUp(studio.lab.attach(studio.model, corrected(self.made(), gains, self.gain)), steps)


@functools.lru_cache(maxsize=64)
def learned(studio: Studio, method: str, params: str, steps: int, cfg: float) -> Gains:
    """The gains of a method with these parameters (JSON)."""
    learner = Learner()
    runs = (watched(studio, "", "{}", steps, cfg), watched(studio, method, params, steps, cfg))
    for full, cached in zip(*runs, strict=True):
        for told, run in ((learner.full, full), (learner.cached, cached)):
            for step, (noise, denoised) in enumerate(run):
                told(step, noise, denoised)
    sigmas = tuple(studio.sigmas(steps).tolist()[:-1])
    return Gains(sigmas, tuple(learner.noise(steps).tolist()), learner.channels(steps))


@functools.lru_cache(maxsize=16)
def watched(
    studio: Studio, method: str, params: str, steps: int, cfg: float
) -> Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]:
    """Norm of the predicted noise (up to a factor of each step) and denoised latent of every step, sample by sample: of
    the full run without a method.
    """
    found = []
    for pair in cases(COUNT, cfg)[-LEARNED_FROM:]:
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def watch(
            executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, seen: Any = seen, **options: Any
        ) -> Any:
            out = executor(x, sigma, *args, **options)
            alpha = float(1 - sigma.flatten()[0])
            seen.append(((x - alpha * out).float().norm(), out.clone()))
            return out

        model = studio.model.clone()  # what is around an evaluation first is outermost: it sees skipped ones too
        model.add_wrapper_with_key("predict_noise", "bench watches", watch)
        if method:
            model = studio.lab.attach(model, methods()[method](**json.loads(params)))
        studio.make(model, pair, steps)
        found.append(seen)
    return found
