"""The bench's statistics: paired bootstrap intervals, curves read between their points, how disturbed a clock was."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
DRAWS = 2000
CALM = 1.25


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or another statistic, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 above zero, -1 below zero, 0 where the interval holds zero."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def bootstrap(
    values: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap (Efron 1979): resample with replacement, 2.5 % and 97.5 % of what comes out.

    Deterministic. One value gives an interval without width: read the number of pairs beside it.
    """
    if not values:
        raise ValueError("bootstrap: no values")
    generator = random.Random(seed)
    means = sorted(statistic(generator.choices(values, k=len(values))) for _ in range(draws))
    return Interval(statistic(values), means[int(0.025 * draws)], means[min(int(0.975 * draws), draws - 1)])


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Our values minus theirs, pair by pair. Two infinite PSNRs (both identical to the reference) differ by 0."""
    return bootstrap([0.0 if a == b else a - b for a, b in zip(ours, theirs, strict=True)], statistics.fmean)


def at(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The curve's value at x, linear between its neighbouring points; None outside them: nothing is extrapolated.

    Points with the same x are averaged.
    """
    by_x: dict[float, list[float]] = {}
    for place, value in curve:
        if math.isfinite(value):
            by_x.setdefault(place, []).append(value)
    points = sorted((place, statistics.fmean(values)) for place, values in by_x.items())
    for place, value in points:
        if place == x:
            return value
    for (left, a), (right, b) in itertools.pairwise(points):
        if left < x < right:
            return a + (b - a) * (x - left) / (right - left)
    return None


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values (an identical picture has an infinite PSNR); inf where none is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.inf


def disturbed(groups: Sequence[Sequence[float]]) -> float:
    """The share of the time that went beyond 1.25 times a calm measurement of its kind.

    Calm is the lower quartile, so that it holds while most are disturbed.
    """
    lost = sum(max(0.0, s - CALM * sorted(group)[len(group) // 4]) for group in groups for s in group)
    return lost / (sum(sum(group) for group in groups) or 1.0)
