"""A forecast that was learned: weights of the last computed features from the Gram matrix of recorded full runs.

With G[s, t] = <F_s, F_t> of the guided ODE derivative, mean over a few runs of the model, the features computed at
A = (a, b, c) forecast the one at t best, in the mean over those runs, by

    w = (G_AA + rho · tr(G_AA) / |A| · I)^-1 G_At,    with the squared error    c'Gc,  c = (1 at t, -w at A)

the closed form of the learned linear forecast of L²P (arXiv 2604.26365). The same with a computed feature on either
side gives the weights by which a corrector interpolates, and the error of a gap: coefficients, correction and estimate
from one matrix. Between the recorded noise levels G is interpolated in the logarithm of noise over signal, which leaves
it a Gram matrix: other numbers of steps need no other recording. Outside them the run's own back-test takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from .backtest import BackTested
from .corrections import Repay
from .generators import misfit
from .predictors import combine
from .profile import Profile
from .types import CacheError, Feature, Figures, Grid, Schedule, Step

RIDGE = 1e-5
ANCHORS = 3
"""Computed features that a forecast is made of."""
DENSE = 0.5
"""How many steps a run has to compute, of as many as the profile has: over wider gaps the back-test, which sees this
very picture, forecasts better. On the small FLUX, 28 steps of euler, CFG 1 and 3, three pairs each: 0.0 to +5.7 dB at
14 computed, -7.4 to +3.0 at 12, -12.0 to +4.4 at 10.
"""
LARGEST, ROUNDED = 1e6, 1e-9
"""A Gram matrix over its mean square has no larger entries, and no negative powers but for rounding, of the largest."""
BEYOND = 1e-3
"""How far outside the recorded noise levels a step may lie, of the highest one."""


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How a model's derivatives lie to each other along a run. sigmas: t, falling; gram: t t, float64."""

    sigmas: tuple[float, ...]
    gram: Tensor

    def covers(self, steps: Sequence[Step]) -> bool:
        """Whether these steps lie within the recorded noise levels."""
        room = BEYOND * self.sigmas[0]
        return all(
            step.schedule is not None and self.sigmas[-1] - room <= step.sigma <= self.sigmas[0] + room
            for step in steps
        )

    def products(self, steps: Sequence[Step]) -> Tensor:
        """The Gram matrix of the derivatives at these steps."""
        rows = torch.stack([self._between(step) for step in steps])
        return rows @ self.gram @ rows.T

    def weights(self, known: Sequence[Step], at: Step) -> list[float]:
        """Of the features known at those steps, for the one at `at`."""
        found: list[float] = _solved(self.products([*known, at])).tolist()
        return found

    def _between(self, step: Step) -> Tensor:
        """A step's place between the recorded ones: weights t, two of them not 0."""
        assert step.schedule is not None
        here, last = step.log_noise, len(self.sigmas) - 1
        row = torch.zeros(last + 1, dtype=torch.float64)
        low = min(max((i for i, sigma in enumerate(self.sigmas) if sigma >= step.sigma), default=0), last - 1)
        above, below = (step.schedule.log_noise(sigma) for sigma in self.sigmas[low : low + 2])
        share = min(max((above - here) / (above - below), 0.0), 1.0)
        row[low], row[low + 1] = 1 - share, share
        return row


def _solved(products: Tensor) -> Tensor:
    """w from the Gram matrix of the known ones and, last, the wanted one."""
    known, wanted = products[:-1, :-1], products[:-1, -1]
    ridge = RIDGE * known.diagonal().mean() * torch.eye(len(known), dtype=known.dtype)
    return torch.linalg.solve(known + ridge, wanted)


@lru_cache(maxsize=16)
def course_of(profile: Profile) -> Course:
    """Raises `CacheError` where the recording cannot be one."""
    gram = profile.tables["course.gram"]
    usable = bool((gram.abs() < LARGEST).all()) and bool((gram.diagonal() > 0).all()) and profile.total > ANCHORS
    if usable and torch.allclose(gram, gram.T, rtol=1e-6):
        powers = torch.linalg.eigvalsh(gram)
        usable = float(powers[0]) >= -ROUNDED * float(powers[-1])
    else:
        usable = False
    if not usable:
        raise CacheError("the profile's course is no Gram matrix of derivatives; calibrate again")
    return Course(tuple(profile.tables["sigmas"].tolist()), gram)


@dataclass(frozen=True, slots=True)
class Calibrated(BackTested):
    """The learned forecast where the recording covers the run, the back-tested slope elsewhere. counts: whether it
    does in runs of so many steps.
    """

    course: Course | None = None
    counts: Callable[[int], bool] = lambda total: True

    @property
    def depth(self) -> int:  # type: ignore[override]
        return ANCHORS

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        known = [entry.at for entry in history]
        covered = self.course is not None and self.counts(now.expected) and self.course.covers([*known, now])
        if self.course is None or not covered or len(history) < 2:
            return super(Calibrated, self).predict(history, now, grid, figures)
        return combine(history, self.course.weights(known, now))


@dataclass(frozen=True, slots=True)
class CalibratedRepay(Repay):
    """`Repay` whose interpolation was learned, where the recording covers the run."""

    course: Course | None = None
    counts: Callable[[int], bool] = lambda total: True

    def weights(self, known: Sequence[Step], at: Step) -> list[float]:
        if self.course is None or not self.counts(at.expected) or not self.course.covers([*known, at]):
            return super(CalibratedRepay, self).weights(known, at)
        return self.course.weights(known, at)


Count = Callable[[int], int]
"""How many of a run's steps are computed."""


def forecast(bands: int, profile: Profile | None, count: Count, apart: bool = False) -> BackTested:
    """What stands in, by a profile where there is one. apart: for packed latents each by itself."""
    if profile is None:
        return BackTested(bands, apart=apart)
    return Calibrated(bands, apart=apart, course=course_of(profile), counts=partial(_dense, profile, count))


def repayment(profile: Profile | None, count: Count, checked: bool = False) -> Repay:
    """What pays back, by a profile where there is one. checked: whether every forecast passes a test."""
    if profile is None:
        return Repay(checked=checked)
    return CalibratedRepay(checked=checked, course=course_of(profile), counts=partial(_dense, profile, count))


def _dense(profile: Profile, count: Count, total: int) -> bool:
    return count(total) >= DENSE * profile.total


def sparse(profile: Profile, count: Count, schedule: Schedule) -> str:
    """What to say of a run that computes too few steps to go by the profile."""
    if _dense(profile, count, schedule.total):
        return ""
    least = math.ceil(DENSE * profile.total)
    return f"the profile counts from {least} computed steps on; with fewer the run's own back-test is closer"


class Expectation:
    """The relative error of the last latent that a run of the profile's own steps is to be expected with, if it
    forecasts and repays by the profile; NaN where it was not measured what an error does.

    v = sum over a gap's steps j of w_j · (F_j - what the corrector makes of it), w_j the step's width, drifts by v'Gv;
    drifts of different gaps add up as squares, each times how far the step behind it moves the picture.
    """

    def __init__(self, profile: Profile) -> None:
        self.gram = course_of(profile).gram
        self.amplified: list[float] = profile.tables["course.amplified"].tolist()
        self.levels = [*profile.tables["sigmas"].tolist(), 0.0]
        self._gap = lru_cache(maxsize=None)(self._squared)

    def error(self, computed: Sequence[int]) -> float:
        """If these steps are computed."""
        gaps = (tuple(computed[max(i + 1 - ANCHORS, 0) : i + 1]) for i in range(1, len(computed)))
        return math.sqrt(sum(self._gap(gap) for gap in gaps))

    def _squared(self, known: tuple[int, ...]) -> float:
        """The square of what the gap before the last of these computed steps adds."""
        before, here = known[-2:]
        drift = torch.zeros(len(self.gram), dtype=torch.float64)
        for step in range(before + 1, here):
            used = [*known, step]
            width = self.levels[step] - self.levels[step + 1]
            drift[step] += width
            drift[list(known)] -= width * _solved(self.gram[used][:, used])
        return self.amplified[here] ** 2 * max(float(drift @ self.gram @ drift), 0.0)


@lru_cache(maxsize=16)
def _expectation(profile: Profile) -> Expectation:
    return Expectation(profile)


def expected_error(profile: Profile, count: Count, schedule: Schedule, computed: Sequence[int]) -> float | None:
    """Of a run on the profile's own noise levels that computes these steps; None on others, with too few, and where it
    was not measured what an error does.
    """
    if misfit(profile, schedule) or not _dense(profile, count, schedule.total) or not computed:
        return None
    error = _expectation(profile).error(computed)
    return error if math.isfinite(error) else None
