"""Gates that say beforehand which steps are computed: from the run's own noise levels, or one compute ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from .coefficients import Calibration
from .magnitudes import CURVES, Curve
from .types import Figures, Gate, Schedule, Step, Verdict


@dataclass(frozen=True, slots=True)
class Codebook(Gate):
    """How many steps to the next computed one, by a rate: the first entry (bound, steps) whose bound is above it counts
    (AdaCache). `scale` multiplies the bounds. All evaluations of a step are treated alike.
    """

    entries: tuple[tuple[float, int], ...]
    scale: float = 1.0
    figure: str = "rate"

    def start(self) -> dict[str, float]:
        return {"anchor": -1.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return dict(ledger)

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if self.figure not in reading:
            return Verdict(False, "no estimate yet")
        away = step.index - int(reading["anchor"])
        steps = next((n for bound, n in self.entries if reading[self.figure] < bound * self.scale), 1)
        scores = {self.figure: reading[self.figure]}
        return Verdict(0 < away < steps, "codebook", {"steps": float(steps)}, scores=scores)

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        anchor = advanced["anchor"]
        return {"anchor": anchor if skipped else torch.full_like(anchor, step.index)}


@dataclass(frozen=True, slots=True)
class Pruned(Codebook):
    """The same, and beyond the steps of the rate, up to `longest`, what leaves its input nearly as it was (figure
    "alike") is left out without anything in its place (QuantCache).
    """

    alike: float = 1.0
    longest: int = 1

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        verdict = Codebook.decide(self, reading, step, calibration)
        away = step.index - int(reading["anchor"])
        if verdict.skip or not 0 < away < self.longest or not reading.get("alike", 0.0) > self.alike:
            return verdict
        scores = {self.figure: reading.get(self.figure, math.nan), "alike": reading["alike"]}
        return Verdict(True, "pruned", {**verdict.limits, "alike": self.alike}, scores=scores, gain=_nothing)


def _nothing(anchor: Step) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Listed(Gate):
    """Skip the steps that a table gives for the run's own noise levels: a fixed schedule. `only`: the layers that the
    skip of a step is for, None for all; `note`: what to say of the table in this run, if anything.
    """

    table: Callable[[Schedule], frozenset[int]]
    only: Callable[[Step], frozenset[int] | None] | None = None
    note: Callable[[Schedule], str] | None = None

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if step.schedule is None:
            return Verdict(False, "no schedule")
        only = None if self.only is None else self.only(step)
        note = "" if self.note is None else self.note(step.schedule)
        return Verdict(step.index in self.table(step.schedule), "table", note=note, only=only)


@dataclass(frozen=True, slots=True)
class Growing(Gate):
    """Behind `warmup` steps one computed step in floor(window + growth · r) of them, r the computed steps since then
    (Spectrum). A fixed schedule.
    """

    warmup: int
    window: float
    growth: float

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if step.index < self.warmup:
            return Verdict(False, "warm-up")
        return Verdict(step.index not in self.computed(step.total), "interval")

    def computed(self, total: int) -> frozenset[int]:
        """The computed steps behind the warm-up."""
        found, place, count = set(), self.warmup - 1, 0
        while place < total:
            place += max(1, math.floor(self.window + self.growth * count))
            found.add(place)
            count += 1
        return frozenset(found)


@lru_cache(maxsize=64)
def shrinking(total: int, warmup: int, most: int, least: int) -> frozenset[int]:
    """The computed steps of a run whose intervals shrink in a straight line, from `most` behind the warm-up to `least`
    at the end (ProfilingDiT).
    """
    found, place = set(range(warmup)), warmup - 1
    while place < total:
        share = (place - (warmup - 1)) / max(total - warmup, 1)
        place += max(1, round(most - (most - least) * share))
        found.add(place)
    return frozenset(found)


def resting(warmup: int, most: int, least: int, schedule: Schedule) -> frozenset[int]:
    """The steps between those."""
    return frozenset(range(schedule.total)) - shrinking(schedule.total, warmup, most, least)


@dataclass(frozen=True, slots=True)
class Quadratic(Gate):
    """About one computed step in `interval`, dense around a share of the run (DeepCache): see `quadratic`."""

    interval: int
    centre: float
    power: float

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        count = max(step.total // self.interval, 1)
        found = quadratic(step.total, count, round(self.centre * step.total), self.power)
        return Verdict(step.index not in found, "interval")


@lru_cache(maxsize=64)
def quadratic(total: int, count: int, centre: int, power: float) -> frozenset[int]:
    """DeepCache's steps (released code, sample_from_quad_center): 0, and c + int(Re x_k^p) for x_k, k = 0 .. n, evenly
    from (-c)^(1/p) to (T - c)^(1/p), the values once each and the smallest and largest left out.

    The first root is complex, and so are the places between; the released code drops the imaginary part. p is lowered
    by 0.02 until there are `count` of them; where none fits, they are spaced evenly.
    """
    while power > 1:
        first, last = complex(-centre) ** (1 / power), complex(total - centre) ** (1 / power)
        between = [first + (last - first) * k / count for k in range(count + 1)]
        places = sorted({int((x**power).real) for x in between})[1:-1]
        found = {0, *(place + centre for place in places)}
        if len(places) + 1 == count:
            return frozenset(found)
        power -= 0.02
    return frozenset(i * total // count for i in range(count))


@dataclass(frozen=True, slots=True)
class Magnitude(Gate):
    """MagCache's rule on a magnitude curve over sigma: see `skipped`. `curve` is one, or names one of
    `magnitudes.CURVES`; None: the model's own, if there is one. `gain`: what stands in follows the curve too. The two
    branches of guidance follow the first one's.
    """

    limit: float
    most: int
    retention: float
    curve: Curve | str | None = None
    gain: bool = False

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        curve = self.curve if isinstance(self.curve, Curve) else CURVES.get(self.curve or calibration.name)
        if curve is None or step.schedule is None:
            note = f"there is no magnitude curve for {calibration.name}; name one in curve" if curve is None else ""
            return Verdict(False, "no curve", note=note)
        skip = step.index in skipped(curve, step.schedule, self.limit, self.most, self.retention)
        return Verdict(skip, "curve", gain=partial(_grown, curve, step) if self.gain else None)


def _grown(curve: Curve, now: Step, anchor: Step) -> float:
    """The product of the ratios from the anchor to this step."""
    return curve.ratios((anchor.sigma, now.sigma))[1]


def skipped(curve: Curve, schedule: Schedule, limit: float, most: int, retention: float) -> frozenset[int]:
    """The steps that MagCache skips on these noise levels, first and last step as they come."""
    return _skipped(curve.ratios(schedule.sigmas[:-1]), limit, most, retention)


@lru_cache(maxsize=64)
def _skipped(ratios: Sequence[float], limit: float, most: int, retention: float) -> frozenset[int]:
    """R is the product of the ratios since the last computed step, E the sum of |1 - R|, n the steps since then. Behind
    the first int(retention · T + 0.5) steps one is skipped while E < limit and n <= most.
    """
    found = set()
    product, error, row = 1.0, 0.0, 0
    for index in range(int(retention * len(ratios) + 0.5), len(ratios)):
        product, row = product * ratios[index], row + 1
        error += abs(1.0 - product)
        if error < limit and row <= most:
            found.add(index)
        else:
            product, error, row = 1.0, 0.0, 0
    return frozenset(found)
