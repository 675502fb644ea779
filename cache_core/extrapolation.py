"""Predictors beside those of `predictors`: the ones that go on from what stood in, or that fit the whole history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .predictors import Weighted, combine, lagrange, sum_of
from .types import Feature, Figures, Grid, Past, Predictor, Step


@dataclass(frozen=True, slots=True)
class AdamsBashforth(Weighted):
    """AB-Cache (2504.10540): the k-th backward difference is zero, f_n = sum_j (-1)^(j+1) C(k, j) f_(n-j).

    unit: the last k computed outputs as if they were one step apart, and n the next step, whichever it is; true: the
    polynomial through them at the noise levels they really have. With fewer computed, of lower order.
    """

    order: int
    spacing: Literal["unit", "true"] = "unit"

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.order

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        used = history[-self.order :]
        if self.spacing == "true":
            weights = lagrange([entry.at.sigma for entry in used], now.sigma)
        else:
            weights = backward(len(used))
        return [*(0.0 for _ in history[len(used) :]), *weights]


def backward(order: int) -> list[float]:
    """Weights of the last `order` values, oldest first, that make the backward difference of that order zero."""
    return [(-1.0) ** (j + 1) * math.comb(order, j) for j in range(order, 0, -1)]


@dataclass(frozen=True, slots=True)
class Recursive(Predictor):
    """AB-Cache with a queue that what stood in enters too: each step from the last k outputs, computed or not."""

    order: int
    depth = 1

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        return self._queue(history[-1], now.index)[-1]

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        if new.learned or not history or self.order < 2:  # a step that is computed again goes on from the same queue
            return dict(new.learned), {}
        queue = self._queue(history[-1], new.at.index - 1)[1 - self.order :]
        return {str(place): value for place, value in enumerate(queue)}, {}

    def _queue(self, anchor: Feature, until: int) -> list[Tensor]:
        """The outputs up to step `until`, oldest first: those before the anchor, its own, and what stood in."""
        queue = [anchor.learned[str(place)] for place in range(len(anchor.learned))] + [anchor.value]
        for _ in range(anchor.at.index, until):
            used = queue[-self.order :]
            total = sum_of([*zip(backward(len(used)), used, strict=True)], used[-1])
            queue.append(total.to(anchor.value.dtype))
        return queue


@dataclass(frozen=True, slots=True)
class Foca(Predictor):
    """FoCa (2508.16211): a BDF2 forecast, calibrated by Heun's rule, step by step behind the anchor a:

        f_n = f_(n-1) + (D + d_(n-1)) / 2,    d_(n-1) = f_(n-1) - f_(n-2)

    where D is the difference of the last two computed features and the first d reaches back to what stood in before the
    anchor. Summed up, with x steps since a:    F = F_a + x·D + (d_0 - D)·(1 - 2^-x).

    `published`: D spans the whole gap, as in the code; else it is divided by the steps of the gap.
    """

    published: bool = False
    depth = 2

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1]
        if len(history) < 2:
            return newest.value
        x = max(now.position - newest.at.position, 0.0)
        share = 1.0 - 0.5**x
        gap = 1.0 if self.published else newest.at.position - history[-2].at.position
        slope = (x - share) / gap
        jump = share if "last" in newest.learned else 0.0
        terms = [(1.0 + slope + jump, newest.value), (-slope, history[-2].value)]
        if jump:
            terms.append((-jump, newest.learned["last"]))
        return sum_of(terms, newest.value).to(newest.value.dtype)

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        """What stood in, or was computed, one step before the new feature."""
        if new.learned or not history:  # a step that is computed again
            return dict(new.learned), {}
        newest = history[-1]
        steps = new.at.index - newest.at.index
        before = Step(new.at.index - 1, new.at.total, new.at.sigma)
        return {"last": newest.value if steps <= 1 else self.predict(history, before, grid)}, {}


@dataclass(frozen=True, slots=True)
class Ridge(Weighted):
    """Spectrum (2603.01623): a ridge fit of Chebyshev polynomials over the whole history, mixed with the last slope.

    h(t) = sum_m c_m T_m(t), C = (P'P + ridge·I)^-1 P'H over the last `depth` computed features; the result is
    blend · h + (1 - blend) · (F_a + x·v), with v the last backward difference per step and x the steps since a. Linear
    in the history, so it is one weight for each computed feature.
    """

    degree: int = 4
    ridge: float = 0.1
    blend: float = 0.5
    depth: int = 10

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        places = [entry.at.position for entry in history]
        local = [*(0.0 for _ in history[1:]), 1.0]
        if len(history) > 1:
            x = (now.position - places[-1]) / (places[-1] - places[-2])
            local[-1], local[-2] = 1.0 + x, -x
        fit = self._fit(places, now.position, max(now.total - 1, 1))
        return [self.blend * g + (1 - self.blend) * w for g, w in zip(fit, local, strict=True)]

    def _fit(self, places: Sequence[float], at: float, end: float) -> list[float]:
        times = torch.tensor([*places, at], dtype=torch.float64) * (2 / end) - 1  # steps of the run as -1 .. 1
        columns = [torch.ones_like(times), times]
        while len(columns) <= self.degree:
            columns.append(2 * times * columns[-1] - columns[-2])
        basis = torch.stack(columns[: self.degree + 1], 1)
        known, asked = basis[:-1], basis[-1]
        normal = known.T @ known + self.ridge * torch.eye(known.shape[1], dtype=torch.float64)
        return [float(w) for w in known @ torch.linalg.solve(normal, asked)]


@dataclass(frozen=True, slots=True)
class Aligned(Predictor):
    """DiCache (2508.17356): r_b + gamma · (r_a - r_b), where gamma says how far the probe has come from the last
    but one computed evaluation b past the newest a; kept within 1 .. `most`.
    """

    most: float = 1.5
    depth = 2

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1].value
        if len(history) < 2 or not figures or "gamma" not in figures:
            return combine(history, [*(0.0 for _ in history[1:]), 1.0])
        gamma = torch.nan_to_num(figures["gamma"], nan=1.0).clamp(1.0, self.most).to(newest.device)
        before = history[-2].value.float()
        return (before + gamma * (newest.float() - before)).to(newest.dtype)


@dataclass(frozen=True, slots=True)
class Rising(Weighted):
    """FasterCache (2410.19355, sec. 3.2): F_a + (F_a - F_b) · w, a the newest computed feature and b the one before it,
    whatever their spacing. w rises from 0 at `start` (in progress) to 1 at the end, or is `fixed`.
    """

    start: float = 0.0
    fixed: float | None = None
    depth = 2

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        if len(history) < 2:
            return [1.0]
        rising = (now.progress - self.start) / max(1 - self.start, 1e-6)
        w = min(max(rising, 0.0), 1.0) if self.fixed is None else self.fixed
        return [*(0.0 for _ in history[2:]), -w, 1.0 + w]
