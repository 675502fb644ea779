"""Site model: any model at all, skipped outside its forward.

The feature is the ODE derivative, so a skip returns x - sigma·d. Computed calls are only read, unless a correction
repairs them. The signal sees the model's input, `model_sampling.calculate_input(sigma, x)`, in place of a modulated
input.
"""

from __future__ import annotations

from functools import partial

import torch

from ...cache_core.coefficients import IDENTITY
from ...cache_core.types import MODEL, Probe
from .common import Forward, ModelCall, Options, Site, fail_open
from .latents import Latents


class WholeModel(Site):
    """See the module docstring."""

    name = MODEL.kind

    def run(self, call: ModelCall, options: Options, forward: Forward) -> torch.Tensor:
        x, kind, latents = call.x, self.track.rule.feature, None
        with fail_open(self.session):
            scaled = call.model_sampling.calculate_input(call.sigma, x) if kind in ("output", "denoised") else x
            latents = Latents(self.track, call.call, x, call.sigma, scaled, call.shapes)
            facts = call.facts(*x.shape[1:], of=x)
            if self.track.enter(call.call, facts, partial(self._probe, call), IDENTITY):
                answer = latents.forecast()
                self.track.leave_out(call.call)
                return answer
        computed = forward(options)
        with fail_open(self.session):
            if latents is not None and self.track.reached(call.call):
                return latents.learned(computed)
        return computed

    @staticmethod
    def _probe(call: ModelCall, rows: slice) -> Probe:
        model_input = call.model_sampling.calculate_input(call.sigma[rows], call.x[rows])
        return Probe(model_input.movedim(1, -1))  # channels last, as in a modulated input
