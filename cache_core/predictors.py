"""What stands in for a skipped evaluation: weighted sums of the computed history, with no state of their own.

Every published predictor here is linear in the history, F^ = sum_j w_j F_j, with weights that depend only on where the
entries and the skipped evaluation lie. So a predictor is its weights; a band split is one low-pass of a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .spectrum import Transform, low_pass
from .types import CacheError, Feature, Figures, Grid, Predictor, Step

MOST_ORDER = 2
"""Three features of history serve order 2; more memory than that is not worth it."""

Coordinate = Literal["step", "sigma", "log_noise"]


class Weighted(Predictor):
    """A predictor given by its weights."""

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        """One weight for each entry, oldest first; they add up to 1."""
        raise NotImplementedError

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        return combine(history, self.weights(history, now))


def lagrange(points: Sequence[float], at: float) -> list[float]:
    """Weights of the polynomial through `points`, evaluated at `at`."""
    return [
        math.prod((at - other) / (point - other) for j, other in enumerate(points) if j != i)
        for i, point in enumerate(points)
    ]


def combine(history: Sequence[Feature], weights: Sequence[float]) -> Tensor:
    """sum_j w_j F_j in float32, back in the history's dtype; the newest entry itself where it alone counts."""
    used = [(weight, entry.value) for weight, entry in zip(weights, history, strict=True) if weight != 0]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]
    dtype = history[-1].value.dtype
    return sum_of(used, history[-1].value).to(dtype)


def sum_of(terms: Sequence[tuple[float, Tensor]], like: Tensor) -> Tensor:
    """The weighted sum of tensors in float32; zeros where there are none."""
    total = torch.zeros_like(like, dtype=torch.float32)
    for weight, value in terms:
        total.add_(value, alpha=weight)
    return total


@dataclass(frozen=True, slots=True)
class Hold(Weighted):
    """The newest computed feature, unchanged (TeaCache, First-Block Cache, SpectralCache Algorithm 1 line 9)."""

    depth = 1

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        return [*(0.0 for _ in history[1:]), 1.0]


@dataclass(frozen=True, slots=True)
class Linear(Weighted):
    """F_a + g · (F_a - F_b) / (s_a - s_b) · (s - s_a): the last slope, damped by g (FasterCache's w, HiCache's 2
    sigma²).
    """

    damping: float = 1.0
    coordinate: Coordinate = "sigma"
    depth = 2

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        newest = history[-2:]
        if len(newest) == 1:
            return Hold().weights(history, now)
        before, last = (_at(entry.at, self.coordinate) for entry in newest)
        slope = self.damping * (_at(now, self.coordinate) - last) / (last - before)
        return [*(0.0 for _ in history[2:]), -slope, 1.0 + slope]


@dataclass(frozen=True, slots=True)
class Newton(Weighted):
    """The polynomial of degree `order` through the last order + 1 features, in sigma, at the spacing they really have.

    Newton's divided differences, written as Lagrange weights: exact on polynomials up to that degree.
    """

    order: int
    coordinate: Coordinate = "sigma"

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.order + 1

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        used = history[-self.depth :]
        points = [_at(entry.at, self.coordinate) for entry in used]
        at = _at(now, self.coordinate)
        return [*(0.0 for _ in history[len(used) :]), *lagrange(points, at)]


@dataclass(frozen=True, slots=True)
class Differences(Weighted):
    """Backward differences in steps, expanded in a basis: TaylorSeer (2503.06923) and HiCache / FreqCa.

    With v and a the first and second difference at the newest anchor and x the steps since it:
        taylor   F + x·v + x²/2·a
        hermite  F + 2s²x·v + (2s⁴x² - s²)·a    with s = 0.71: H_k(s·x)·s^k / k! of the physicists' Hermite polynomials
    a is the second derivative of the parabola through the last three anchors; `published`: the difference of the slopes
    divided by the newest spacing alone, as in the released code. Slopes that end before step `since` form no a: those
    of the warm-up are a step apart, and over a long gap their difference overshoots (6 dB at interval 4 on the small
    FLUX).
    """

    basis: Literal["taylor", "hermite"]
    order: int
    sigma: float = 0.71
    published: bool = False
    since: int = 2

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.order + 1

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        used = list(history[-self.depth :])
        differences = self._differences(used)
        factors = self._factors(now.position - used[-1].at.position)
        weights = [0.0] * len(used)
        for factor, difference in zip(factors, differences, strict=False):
            weights = [w + factor * d for w, d in zip(weights, difference, strict=True)]
        return [*(0.0 for _ in history[len(used) :]), *weights]

    def _factors(self, x: float) -> list[float]:
        if self.basis == "taylor":
            return [1.0, x, x * x / 2]
        s = self.sigma
        return [1.0, 2 * s**2 * x, 2 * s**4 * x**2 - s**2]

    def _differences(self, used: list[Feature]) -> list[list[float]]:
        """The differences of order 0, 1, 2 at the newest anchor as weights of the entries, as many as there are."""
        steps = [entry.at.position for entry in used]
        count = len(used)
        first = [_unit(count, -1)]
        if count < 2:
            return first
        newest = _slope(count, -1, steps)
        if count < 3 or steps[-2] < self.since:
            return [*first, newest]
        earlier = _slope(count, -2, steps)
        spacing = steps[-1] - steps[-2] if self.published else (steps[-1] - steps[-3]) / 2
        return [*first, newest, [(n - e) / spacing for n, e in zip(newest, earlier, strict=True)]]


@dataclass(frozen=True, slots=True)
class Bands(Predictor):
    """One predictor for the low radial band of the token grid, another for the rest (FreqCa, 2510.08669).

    By linearity low(P_low) + high(P_high) = P_high + low(P_low - P_high): one low-pass of one weighted sum per skip,
    and none where the two agree. Without a token grid the high band's predictor stands in for everything.
    """

    low: Weighted
    high: Weighted
    transform: Transform
    cutoff: float
    roll_off: float = 0.0

    @property
    def depth(self) -> int:  # type: ignore[override]
        return max(self.low.depth, self.high.depth)

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return True

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        low, high = self.low.weights(history, now), self.high.weights(history, now)
        if grid is None or low == high:
            return combine(history, high)
        newest = history[-1].value
        whole = sum_of([(w, entry.value) for w, entry in zip(high, history, strict=True)], newest)
        apart = [(a - b, entry.value) for a, b, entry in zip(low, high, history, strict=True) if a != b]
        return (whole + low_pass(sum_of(apart, newest), grid, self.transform, self.cutoff, self.roll_off)).to(
            newest.dtype
        )


def _unit(count: int, index: int) -> list[float]:
    weights = [0.0] * count
    weights[index] = 1.0
    return weights


def _slope(count: int, index: int, steps: Sequence[float]) -> list[float]:
    """(F[index] - F[index - 1]) / spacing as weights."""
    spacing = steps[index] - steps[index - 1]
    newer, older = _unit(count, index), _unit(count, index - 1)
    return [(n - o) / spacing for n, o in zip(newer, older, strict=True)]


def _at(step: Step, coordinate: Coordinate) -> float:
    return step.position if coordinate == "step" else step.sigma if coordinate == "sigma" else step.log_noise


def _checked(order: int) -> int:
    if not 0 <= order <= MOST_ORDER:
        raise CacheError(f"order {order} needs {order + 1} features of history; use 0 (hold), 1 or 2")
    return order


def newton(order: int, coordinate: Coordinate = "sigma") -> Weighted:
    """Divided differences of degree `order` at real spacing; order 0 holds."""
    return Newton(_checked(order), coordinate) if order else Hold()


def taylor(order: int, published: bool = False, since: int = 2) -> Weighted:
    """TaylorSeer's expansion; order 0 holds."""
    return Differences("taylor", _checked(order), published=published, since=since) if order else Hold()


def hermite(order: int, sigma: float = 0.71, published: bool = False, since: int = 2) -> Weighted:
    """HiCache's and FreqCa's expansion; order 0 holds."""
    return Differences("hermite", _checked(order), sigma, published, since) if order else Hold()


def bands(low: Weighted, high: Weighted, transform: Transform, cutoff: float, roll_off: float = 0.0) -> Predictor:
    """A predictor for each of two radial bands of the token grid."""
    return Bands(low, high, transform, cutoff, roll_off)
