"""A forecast that tests itself: the last slope, each radial band damped by how well the slope before it did.

With lambda the logarithm of noise over signal (`Step.log_noise`, minus half the log-SNR; against it the derivative of a
flow model is closest to a straight line), what linear extrapolation would have said of computed evaluation k is known
to be right or wrong:

    Y = F_k - F_(k-1)      what came
    P = (F_(k-1) - F_(k-2)) · (lambda_k - lambda_(k-1)) / (lambda_(k-1) - lambda_(k-2))      what was said
    g_b = clip(<Y_b, P_b> / <P_b, P_b>, 0, MOST_GAIN)      least squares, for each row and band b

and until the next one    F^ = F_k + (lambda - lambda_k) / (lambda_k - lambda_(k-1)) · sum_b g_b · [F_k - F_(k-1)]_b.

FreqCa (arXiv 2510.08669) extrapolates one band and holds the other by decree; here the run decides, for each lane. The
gains are folded into one stored tensor, so that a skip is a single multiply-add. What the gains leave unexplained,
||Y - sum g P|| / ||F_k||, is the estimate of the error one gap ahead. Of the first two computed evaluations there is
only by how much they differ, ||Y|| / ||F_1||, which tells how much more than later the run bends at its start.

HiCache++ tests itself on a held-out feature too, to choose between bases, and reports that such a test does not tell
which basis is better; here it only damps within one.
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
SLOPE, GAINS = "slope", "gains"


@dataclass(frozen=True, slots=True)
class BackTested(Predictor):
    """See the module docstring. `bands`: 1 to 4; one where tokens lie on no known grid. apart: whether latents that are
    packed into one are tested each by itself.
    """

    bands: int = 3
    apart: bool = field(default=False, kw_only=True)

    @property
    def depth(self) -> int:  # type: ignore[override]
        return 2

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return self.bands > 1

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1]
        if len(history) < 2 or SLOPE not in newest.learned:
            return newest.value
        before = history[-2]
        ahead = (now.log_noise - newest.at.log_noise) / (newest.at.log_noise - before.at.log_noise)
        slope = newest.learned[SLOPE]
        return torch.add(newest.value.float(), slope, alpha=ahead).to(newest.value.dtype)

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        if not history:
            return {}, {}
        before = history[-1]
        rings = Rings(grid, EDGES[self.bands], new.value.device)
        came = rings.forward(new.value.float() - before.value.float())
        figures: Figures = {}
        whole = new.value.float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        if len(history) > 1:
            said = rings.forward(_said(history, new))
            gains, missed = _test(rings, came, said)
            figures = {MISFIT: (missed / whole).sqrt()}
        elif GAINS in new.learned:  # a second evaluation of the same step: the older feature has gone already
            gains = new.learned[GAINS]
        else:
            gains = came.new_full((came.shape[0], rings.bands), FIRST_GAIN)
            figures = {CHANGE: (came.square().sum() / whole).sqrt()}
        slope = rings.inverse(rings.scaled(came, gains)).to(new.value.dtype)
        return {SLOPE: slope, GAINS: gains}, figures


def _said(history: tuple[Feature, ...], new: Feature) -> Tensor:
    """P: the change that the last slope announced."""
    older, before = history[-2:]
    ratio = (new.at.log_noise - before.at.log_noise) / (before.at.log_noise - older.at.log_noise)
    return (before.value.float() - older.value.float()) * ratio


def _test(rings: Rings, came: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Gains (b bands), and the squared norm of what they leave unexplained."""
    power = rings.dots(said, said)
    fit = torch.where(power > 0, rings.dots(came, said) / power, torch.zeros_like(power))
    gains = fit.clamp(0.0, MOST_GAIN)
    return gains, (came - rings.scaled(said, gains)).square().sum()
