"""What repairs a computed feature for what was skipped before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .predictors import lagrange
from .types import Correction, Feature, Step


@dataclass(frozen=True, slots=True)
class Repay(Correction):
    """Predictor-corrector: a skipped step's forecast is an extrapolation; once the next step is computed, the same
    place can be interpolated, and the difference is what the sampler has drifted by. The computed step pays it back.

    With F^_j what stood in at the skipped steps j, P the polynomial through the last `points` computed features and
    w_j what step j takes off sigma:    c = 1 / w_now · sum_j w_j · (P_j - F^_j)

    so that a step of dx = F dsigma lands where interpolated steps would have led. It is the corrector of a linear
    multistep method (Adams-Moulton after Adams-Bashforth; UniC in UniPC, arXiv 2302.04867, sec. 3.1), with the forecast
    as its predictor and no evaluation more.
    """

    points: int = 3

    def repair(
        self,
        history: tuple[Feature, ...],
        new: Feature,
        gap: tuple[Step, ...],
        forecast: Callable[[Step], Tensor],
        now: Step,
    ) -> Tensor:
        total = torch.zeros_like(new.value, dtype=torch.float32)
        if now.width <= 0:
            return total
        used = (*history, new)[-self.points :]
        shares = [0.0] * len(used)
        for step in gap:
            share = step.width / now.width
            weights = lagrange([f.at.log_noise for f in used], step.log_noise)
            shares = [s + share * w for s, w in zip(shares, weights, strict=True)]
            total.sub_(forecast(step), alpha=share)
        for share, entry in zip(shares, used, strict=True):
            total.add_(entry.value, alpha=share)
        return total
