"""Parts that only the bench has: computed evaluations at given steps, and the forecast of a first prototype.

They are made of the engine's own parts (cache_core.types), so what is measured here runs as a method would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cache_core.coefficients import Calibration
from cache_core.spectrum import low_pass
from cache_core.types import Feature, Gate, Grid, Predictor, Step, Verdict

EDGES = (0.15, 0.4)
"""Edges of the three radial bands, of the largest radius."""
MOST_GAIN = 1.2
FIRST_GAIN = 0.5


@dataclass(frozen=True, slots=True)
class At(Gate):
    """Compute at these steps and nowhere else."""

    steps: frozenset[int]

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(step.index not in self.steps, "placed")


@dataclass(frozen=True, slots=True)
class BackTested(Predictor):
    """Linear in sigma, each band damped by what the last anchor showed.

    At the newest anchor k the forecast P from k-2 and k-1 is compared with what came, Y = R_k - R_(k-1): per lane and
    band g = clip(<Y, P> / <P, P>, 0, 1.2), 0.5 before there are three anchors. F^ = R_k + sum_b g_b·[slope·(sigma -
    sigma_k)]_b.

    Differs from the prototype: gains are those of the last anchor alone, never averaged over anchors.
    """

    depth: ClassVar[int] = 3  # type: ignore[misc]
    needs_grid: ClassVar[bool] = True  # type: ignore[misc]

    def predict(self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None) -> Tensor:
        newest = history[-1]
        if len(history) < 2 or grid is None:
            return newest.value
        before = history[-2]
        change = newest.value.float() - before.value.float()
        ahead = (now.sigma - newest.sigma) / (newest.sigma - before.sigma)
        parts = bands(change, grid)
        first = [change.new_tensor(FIRST_GAIN) for _ in parts]
        gains = first if len(history) < 3 else self._gains(history, parts, grid)
        step = sum((gain * part for gain, part in zip(gains, parts, strict=True)), torch.zeros_like(change))
        return (newest.value + ahead * step).to(newest.value.dtype)

    @staticmethod
    def _gains(history: tuple[Feature, ...], came: list[Tensor], grid: Grid) -> list[Tensor]:
        oldest, before, newest = history[-3:]
        ratio = (newest.sigma - before.sigma) / (before.sigma - oldest.sigma)
        said = bands((before.value.float() - oldest.value.float()) * ratio, grid)
        return [((y * p).sum() / (p * p).sum()).clamp(0.0, MOST_GAIN) for y, p in zip(came, said, strict=True)]


def bands(values: Tensor, grid: Grid) -> list[Tensor]:
    """b n d in three radial bands of the DCT, lowest first; they add up to `values`."""
    lows = [low_pass(values, grid, "dct", edge) for edge in EDGES]
    return [lows[0], lows[1] - lows[0], values - lows[1]]
