"""Site guided: the guided result of an evaluation, as one lane.

A skip runs nothing of the evaluation: no conditioning, no ControlNet, no switch of LoRA hooks, no window, no tile, no
extra pass of a guider. The feature is the ODE derivative of the guided result. Conditionings that come and go at known
noise levels are edges: the run is parted into sections there, and nothing is forecast from one into the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch

from ...cache_core.coefficients import IDENTITY
from ...cache_core.track import Call, Facts, LaneKey, Track
from ...cache_core.types import GUIDED, Probe
from .common import Unfit, failure
from .latents import Latents, Shapes

LOG = logging.getLogger("SpectralCache")


class Guided:
    """See the module docstring. lane: the key of the evaluation at hand (the guider's own settings are part of it);
    passes: what a chunk of a model call is, to see from computed evaluations whether the guidance changes; shapes: of
    the latents that are packed into one.
    """

    name = GUIDED.kind

    def __init__(
        self,
        track: Track,
        model_sampling: Any,
        lane: Callable[[], LaneKey],
        passes: Callable[[LaneKey], Hashable],
        fall_back: Callable[[str], object],
        shapes: Shapes = (),
    ) -> None:
        self.track, self.model_sampling, self.fall_back, self.shapes = track, model_sampling, fall_back, shapes
        self.lane, self.passes = lane, passes
        self._made: dict[Hashable, frozenset[Hashable]] = {}

    def run(self, x: torch.Tensor, sigma: torch.Tensor, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute or skip an evaluation at sigma (b) of x (b c ...): the denoised latent."""
        track, call, latents, kind = self.track, None, None, self.track.rule.feature
        try:
            call = track.session.open_all(self.lane(), x.shape[0])
            scaled = self.model_sampling.calculate_input(sigma, x) if kind in ("output", "denoised") else x
            latents = Latents(track, call, x, sigma, scaled, self.shapes)
            facts = Facts(tuple(x.shape), x.dtype, x.device)
            if track.enter(call, facts, partial(self._probe, x, sigma), IDENTITY):
                answer = latents.forecast()
                track.leave_out(call)
                return answer
        except Exception as error:
            self.leave(error, call)
        computed = forward()
        try:
            if call is not None and latents is not None and track.reached(call):
                self._check()
                return latents.learned(computed)
        except Exception as error:
            self.leave(error, call)
        return computed

    def leave(self, error: Exception, call: Call | None = None) -> None:
        """This evaluation, and the rest of the run, at the rule's next place."""
        LOG.debug("SpectralCache", exc_info=True)
        self.track.reset(call)
        self.fall_back(failure(error, "whole evaluations could not be skipped")[1])

    def _check(self) -> None:
        """A guidance that makes other passes than before, within one section of the run, cannot be foreseen."""
        evaluation = self.track.session.evaluation
        if evaluation is None or evaluation.step is None or evaluation.apart or evaluation.spared:
            return  # (a side that a rule of ours derived is missing on purpose)
        section = self.track.section(evaluation.step.sigma) if self.track.section else None
        made = frozenset(self.passes(key) for call in evaluation.calls for key in call.keys)
        if self._made.setdefault(section, made) != made:
            raise Unfit("guidance changed", "the guidance makes other passes at some steps than at others")

    def _probe(self, x: torch.Tensor, sigma: torch.Tensor, rows: slice) -> Probe:
        return Probe(self.model_sampling.calculate_input(sigma[rows], x[rows]).movedim(1, -1))
