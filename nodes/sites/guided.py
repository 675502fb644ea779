"""Site guided: the guided result of an evaluation, as one lane.

A skip runs nothing of the evaluation: no conditioning, no ControlNet, no switch of LoRA hooks, no window, no tile, no
extra pass of a guider. The feature is the ODE derivative of the guided result. Conditionings that come and go at known
noise levels are edges: the run is parted into sections there, and nothing is forecast from one into the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...cache_core.coefficients import IDENTITY
from ...cache_core.track import Facts, LaneKey, Track
from ...cache_core.types import GUIDED, Probe
from .common import fail_open, latent_grid, restored, stored

LANE = LaneKey(GUIDED.kind)


class Guided:
    """See the module docstring."""

    name = GUIDED.kind

    def __init__(self, track: Track, model_sampling: Any) -> None:
        self.track, self.model_sampling = track, model_sampling

    def run(self, x: torch.Tensor, sigma: torch.Tensor, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute or skip an evaluation at sigma (b) of x (b c ...): the denoised latent."""
        track, grid, call, kind = self.track, latent_grid(x), None, self.track.rule.feature
        scaled = self.model_sampling.calculate_input(sigma, x) if kind in ("output", "denoised") else x
        with fail_open(track.session):
            call = track.session.open_all(LANE, x.shape[0])
            facts = Facts(tuple(x.shape), x.dtype, x.device)
            if track.enter(call, facts, partial(self._probe, x, sigma), IDENTITY):
                answer = restored(kind, x, track.predict(call, grid=grid), sigma, scaled)
                track.leave_out(call)
                return answer
        computed = forward()
        with fail_open(track.session):
            if call is not None and track.reached(call):
                tokens = stored(kind, x, computed, sigma, scaled)
                repair = track.store(call, tokens, grid=grid)
                if repair is not None:
                    return restored(kind, x, tokens + repair, sigma, scaled)
        return computed

    def _probe(self, x: torch.Tensor, sigma: torch.Tensor, rows: slice) -> Probe:
        return Probe(self.model_sampling.calculate_input(sigma[rows], x[rows]).movedim(1, -1))
