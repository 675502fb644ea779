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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .backtest import BackTested
from .corrections import Repay
from .predictors import combine
from .profile import Profile
from .types import CacheError, Feature, Figures, Grid, Step

RIDGE = 1e-5
ANCHORS = 3
"""Computed features that a forecast is made of."""
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
    usable = bool(torch.isfinite(gram).all()) and bool((gram.diagonal() > 0).all()) and profile.total > ANCHORS
    if not usable or not torch.allclose(gram, gram.T, rtol=1e-6):
        raise CacheError("the profile's course is no Gram matrix of derivatives; calibrate again")
    return Course(tuple(profile.tables["sigmas"].tolist()), gram)


@dataclass(frozen=True, slots=True)
class Calibrated(BackTested):
    """The learned forecast where the recording covers the run, the back-tested slope elsewhere."""

    course: Course | None = None

    @property
    def depth(self) -> int:  # type: ignore[override]
        return ANCHORS

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        known = [entry.at for entry in history]
        if self.course is None or len(history) < 2 or not self.course.covers([*known, now]):
            return super(Calibrated, self).predict(history, now, grid, figures)
        return combine(history, self.course.weights(known, now))


@dataclass(frozen=True, slots=True)
class CalibratedRepay(Repay):
    """`Repay` whose interpolation was learned, where the recording covers the run."""

    course: Course | None = None

    def weights(self, known: Sequence[Step], at: Step) -> list[float]:
        if self.course is None or not self.course.covers([*known, at]):
            return super(CalibratedRepay, self).weights(known, at)
        return self.course.weights(known, at)


def forecast(bands: int, profile: Profile | None, apart: bool = False) -> BackTested:
    """What stands in, by a profile where there is one. apart: for packed latents each by itself."""
    return BackTested(bands, apart=apart) if profile is None else Calibrated(bands, course_of(profile), apart=apart)


def repayment(profile: Profile | None) -> Repay:
    """What pays back, by a profile where there is one."""
    return Repay() if profile is None else CalibratedRepay(course=course_of(profile))
