"""A forecast that tests itself: the last slope and how it turns, each band as far as what was foretold came true.

With lambda the logarithm of noise over signal (`Step.log_noise`, minus half the log-SNR; against it the derivative of a
flow model is closest to a straight line), what linear extrapolation would have said of computed evaluation k is known
to be right or wrong:

    Y = F_k - F_(k-1)      what came
    P = (F_(k-1) - F_(k-2)) · (lambda_k - lambda_(k-1)) / (lambda_(k-1) - lambda_(k-2))      what was said
    g_b = clip(<Y_b, P_b> / <P_b, P_b>, 0, MOST_GAIN)      least squares, for each row and band b

    t_b = clip(<Y_b - g_b P_b, Q_b> / <Q_b, Q_b>, 0, 1)      the same of what the slope left, by Newton's second term
    d_b = sqrt(t_b · t'_b)      t' is what this test said one computed evaluation before; t_b where it did not

and until the next one, with a = (lambda - lambda_k) / h, h = lambda_k - lambda_(k-1), h' the gap before it,

    F^ = F_k + a · sum_b g_b · [F_k - F_(k-1)]_b + a · (a + 1) · sum_b d_b · [C]_b
    C = h / (h + h') · (F_k - F_(k-1) - h / h' · (F_(k-1) - F_(k-2)))      and Q the same as it was announced for k.

The second term always there costs 1 to 4 dB under guidance, where the derivative swings, and earns up to 1 dB without,
where it is smooth; tested in the run it does the latter alone (docs/tried.md). One test may be lucky, so two count.

FreqCa (arXiv 2510.08669) extrapolates one band and holds the other by decree; here the run decides, for each lane. The
gains are folded into two stored tensors, so that a skip is two multiply-adds. What the slope leaves unexplained,
||Y - sum g P|| / ||F_k||, is the estimate of the error one gap ahead. Of the first two computed evaluations there is
only by how much they differ, ||Y|| / ||F_1||, which tells how much more than later the run bends at its start.

HiCache++ tests itself on a held-out feature too, to choose between bases, and reports that such a test does not tell
which basis is better; here it only damps the terms of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .spectrum import Rings
from .types import CHANGE, MISFIT, Feature, Figures, Grid, Past, Predictor, Step

EDGES: dict[int, tuple[float, ...]] = {1: (), 2: (0.25,), 3: (0.15, 0.4), 4: (0.1, 0.25, 0.5)}
"""Upper edges of all bands but the last, of the largest radius, by number of bands."""
FIRST_GAIN, MOST_GAIN = 0.5, 1.2
FAR = 3.0
"""Over how many times the newest gap the second term is followed; it grows with the square of that."""
SLOPE, GAINS, CURVE, BENT, TESTED = "slope", "gains", "curve", "bent", "tested"


@dataclass(frozen=True, slots=True)
class BackTested(Predictor):
    """See the module docstring. `bands`: 1 to 4; one where tokens lie on no known grid. apart: whether latents that are
    packed into one are tested each by itself.
    """

    bands: int = 3
    apart: bool = field(default=False, kw_only=True)

    depth = 3

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return self.bands > 1

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1]
        if len(history) < 2 or SLOPE not in newest.learned:
            return newest.value
        ahead = _ahead(history, now)
        told = torch.add(newest.value.float(), newest.learned[SLOPE], alpha=ahead)
        if CURVE in newest.learned:
            told.add_(newest.learned[CURVE], alpha=_curved(ahead))
        return told.to(newest.value.dtype)

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        if not history:
            return {}, {}
        before = history[-1]
        rings = Rings(grid, EDGES[self.bands], new.value.device)
        came = rings.forward(new.value.float() - before.value.float())
        # of another evaluation of the same step, whose older feature has gone already
        bends = {name: new.learned[name] for name in (BENT, TESTED) if name in new.learned}
        figures: Figures = {}
        whole = new.value.float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        if len(history) > 1:
            ahead = _ahead(history, new.at)
            said = rings.forward(before.value.float() - history[-2].value.float()) * ahead
            gains, missed = _test(rings, came, said, MOST_GAIN)
            if len(history) > 2:
                bend, _ = _test(rings, missed, rings.forward(_curve(history)) * _curved(ahead), 1.0)
                bends = {BENT: (bend * before.learned.get(TESTED, bend)).sqrt(), TESTED: bend}
            figures = {MISFIT: (missed.square().sum() / whole).sqrt()}
        elif GAINS in new.learned:
            gains = new.learned[GAINS]
        else:
            gains = came.new_full((came.shape[0], rings.bands), FIRST_GAIN)
            figures = {CHANGE: (came.square().sum() / whole).sqrt()}
        slope = rings.inverse(rings.scaled(came, gains)).to(new.value.dtype)
        learned = {SLOPE: slope, GAINS: gains}
        if BENT in bends and len(history) > 1:
            curve = rings.scaled(rings.forward(_curve((*history, new))), bends[BENT])
            learned |= {CURVE: rings.inverse(curve).to(new.value.dtype), **bends}
        return learned, figures


def _ahead(history: tuple[Feature, ...], now: Step) -> float:
    """a: how far `now` lies behind the newest feature, in widths of the newest gap."""
    before, newest = (feature.at.log_noise for feature in history[-2:])
    return (now.log_noise - newest) / (newest - before)


def _curved(ahead: float) -> float:
    """How often C counts there."""
    reach = min(ahead, FAR)
    return reach * (reach + 1)


def _curve(history: tuple[Feature, ...]) -> Tensor:
    """C of the last three features: b n d."""
    oldest, before, newest = history[-3:]
    wide = newest.at.log_noise - before.at.log_noise
    ratio = wide / (before.at.log_noise - oldest.at.log_noise)
    turned = newest.value.float() - before.value.float() - ratio * (before.value.float() - oldest.value.float())
    return turned * (ratio / (ratio + 1))


def _test(rings: Rings, came: Tensor, said: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Gains (b bands) of what was said, and what they leave unexplained of what came."""
    power = rings.dots(said, said)
    fit = torch.where(power > 0, rings.dots(came, said) / power, torch.zeros_like(power))
    gains = fit.clamp(0.0, most)
    return gains, came - rings.scaled(said, gains)
