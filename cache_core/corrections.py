"""What repairs a computed feature for what was skipped before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .predictors import lagrange
from .types import Correction, Feature, Step


@dataclass(frozen=True, slots=True)
class Debt:
    """What a sampler has drifted by and has not been paid back (in units of the latent), and the widest step of it."""

    amount: Tensor
    widest: float


@dataclass(frozen=True, slots=True)
class Repay(Correction):
    """Predictor-corrector: a skipped step's forecast is an extrapolation; once the next step is computed, the same
    place can be interpolated, and the difference is what the sampler has drifted by. The computed step pays it back.

    With F^_j what stood in at the skipped steps j, P the polynomial through the last `points` computed features and
    w_j what step j takes off sigma:    c = 1 / w_now · sum_j w_j · (P_j - F^_j)

    so that a step of dx = F dsigma lands where interpolated steps would have led. It is the corrector of a linear
    multistep method (Adams-Moulton after Adams-Bashforth; UniC in UniPC, arXiv 2302.04867, sec. 3.1), with the forecast
    as its predictor and no evaluation more. Kin: PrediT (arXiv 2602.18093) corrects forecasts of skipped outputs by
    Adams-Moulton where they change fast, FoCa (2508.16211) by a step of Heun; here every skipped step is repaid.

    A narrow step behind a wide gap would have to pay many times what it is itself. No payment of a row is more than
    `most` times its feature, and a step pays a share of the debt that grows with the square of its width: whole where
    it is at least `narrow` times as wide as the widest it pays for, and next to nothing where it is next to nothing.

    Multistep solvers remember what they are told: they lay a polynomial through their newest results and follow it to
    the end of a step, in sigma (Adams-Bashforth, DEIS) or in the logarithm of noise over signal (DPM-Solver++, UniPC).
    Where steps are uneven a payment counts there a multiple A of what it does among even ones (`amplified`): 30 times
    before the last steps of the scheduler normal. Beyond `amplified` times, the square of that less is paid. The rest
    is left to the steps behind it.

    Held features with this corrector are an Adams-Bashforth method of two steps, followed slopes one of three, and
    those are stable only where gap times stiffness is below 1 and 6/11, Euler's method up to 2 (Hairer and Wanner,
    Solving Ordinary Differential Equations II, sec. V.1). Beyond it each correction overshoots and the next takes it
    back: successive changes of the feature turn against each other. Few computed steps under guidance come there. So
    what is paid falls with the cosine between the last two changes, whole from -`turning` on, nothing at -`turned`
    (`trusted`), where the last one is `large` against the feature, and not at all where it is `slight`; what is not
    paid so is no debt. checked: every forecast has passed a test, which keeps gaps narrow enough; what turns then is
    the feature itself.
    """

    points: int = 3
    most: float = 3.0
    narrow: float = 0.5
    amplified: float = 4.0
    turning: float = 0.4
    turned: float = 0.8
    slight: float = 0.2
    large: float = 0.3
    checked: bool = False

    def trusted(self, history: tuple[Feature, ...], new: Feature) -> Tensor | None:
        if len(history) < 2 or self.checked:
            return None
        older, before, now = (feature.value.float() for feature in (*history[-2:], new))
        last, first = now - before, before - older
        dims = tuple(range(1, now.dim()))
        moved, before_that, whole = (x.square().sum(dims, keepdim=True).sqrt() for x in (last, first, now))
        least = torch.finfo(torch.float32).tiny
        cosine = (last * first).sum(dims, keepdim=True) / (moved * before_that).clamp_min(least)
        back = 1 - ((self.turned + cosine) / (self.turned - self.turning)).clamp(0.0, 1.0)
        share = moved / whole.clamp_min(least)
        return 1 - back * ((share - self.slight) / (self.large - self.slight)).clamp(0.0, 1.0)

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
            weights = self.weights([f.at for f in used], step)
            shares = [s + share * w for s, w in zip(shares, weights, strict=True)]
            total.sub_(forecast(step), alpha=share)
        for share, entry in zip(shares, used, strict=True):
            total.add_(entry.value, alpha=share)
        return total

    def weights(self, known: Sequence[Step], at: Step) -> list[float]:
        """Of the computed features on both sides of a skipped step, for the one at that step."""
        return lagrange([step.log_noise for step in known], at.log_noise)

    def bounded(
        self, repair: Tensor | None, debt: Debt | None, new: Feature, gap: tuple[Step, ...], now: Step
    ) -> tuple[Tensor | None, Debt | None]:
        """What this step pays of its repair and of an older debt, and what is left."""
        if now.width <= 0:
            return repair, debt
        widest = max([step.width for step in gap] + ([debt.widest] if debt else []), default=now.width)
        if debt is not None:
            owed = debt.amount.float() / now.width
            repair = owed if repair is None else repair + owed
        assert repair is not None
        share = min(now.width / (self.narrow * widest), 1.0) ** 2
        share *= min(self.amplified / amplification(now), 1.0) ** 2
        paid = _limited(repair * share if share < 1 else repair, new.value, self.most)
        return paid, Debt((repair - paid) * now.width, widest) if share < 1 else None


ORDER = 3
"""Results that the usual multistep solvers look at."""


def amplification(now: Step) -> float:
    """How many times as much as among even steps the result of this step counts in the solver's steps that look at it:
    the largest of the Lagrange weights with which ORDER results are followed to a step's end, over the even ones, in
    sigma and in the logarithm of noise over signal; 1 to infinity. The last step, to sigma 0, follows the newest alone.
    """
    if now.schedule is None:
        return 1.0
    schedule, here = now.schedule, now.index
    sigmas = [sigma for sigma in schedule.sigmas[: here + ORDER + 1] if sigma > 0]
    worst = 1.0
    for line in (sigmas, [schedule.log_noise(sigma) for sigma in sigmas]):
        for step in range(here, len(line) - 1):
            weight = 1.0
            for other in range(max(step - ORDER + 1, 0), step + 1):
                if other == here:
                    continue
                if line[other] == line[here]:
                    return math.inf
                ahead, apart = line[step + 1] - line[other], line[here] - line[other]
                weight *= abs(ahead / apart * (here - other) / (step + 1 - other))
            worst = max(worst, weight)
    return worst


def _limited(repair: Tensor, feature: Tensor, most: float) -> Tensor:
    """No row longer than `most` times the feature's: b n d."""
    dims = tuple(range(1, repair.dim()))
    length = repair.square().sum(dims, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    allowed = feature.float().square().sum(dims, keepdim=True)
    return repair * (most * (allowed / length).sqrt()).clamp(max=1.0)
