"""What stands in for the unconditional result, and when: both sides of guidance differ by little, and slowly.

FasterCache's CFG-Cache (arXiv 2410.19355, sec. 3.4, eqs. 9-11) keeps the difference of the two model outputs in two
bands; PromptTea's DynCFGCache (arXiv 2507.06739) asks how large the difference is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .coefficients import Calibration
from .magnitudes import between
from .profile import Profile
from .spectrum import low_pass
from .types import CacheError, Feature, Figures, Gate, Grid, Past, Predictor, Signal, Step, Verdict

RADIUS = 0.2
"""The low band's radius in cycles per sample: min(H, W) // 5 lines of the spectrum in the released code."""
LARGEST = math.sqrt(0.5)
"""The largest radius of a two-dimensional spectrum, in the same unit."""


@dataclass(frozen=True, slots=True)
class BandGains(Predictor):
    """The difference of uncond over cond, its low and its high band each with a gain.

    D = D_low + D_high of the computed pair, split by a disc in the spectrum of each frame;
    on a skip   D^ = w_1 D_low + w_2 D_high,   w_1 = 1 + low while step / T < turn,  w_2 = 1 + high behind it.

    compounding: as in the released code, the stored bands are multiplied once more at every step that is skipped, low
    within (0.099, 0.901) of the run and high behind 0.699 (timesteps 99 to 901, and below 301, of 1000). Without a grid
    there are no bands, and the difference is held.
    """

    low: float
    high: float
    turn: float = 0.5
    compounding: bool = False
    needs_grid = True

    def gains(self, anchor: Step, now: Step) -> tuple[float, float]:
        """w_1 and w_2 at a skipped step `now`, for a pair computed at `anchor`."""
        if not self.compounding:
            early = now.progress < self.turn
            return (1.0 + self.low, 1.0) if early else (1.0, 1.0 + self.high)
        passed = [step / now.total for step in range(anchor.index + 1, now.index + 1)]
        lows = sum(0.099 < progress < 0.901 for progress in passed)
        highs = sum(progress > 0.699 for progress in passed)
        return (1.0 + self.low) ** lows, (1.0 + self.high) ** highs

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1]
        low, high = self.gains(newest.at, now)
        if grid is None or low == high == 1.0:
            return newest.value
        frames = newest.value.unflatten(1, (-1, math.prod(grid[-2:]))).flatten(0, 1)  # b (t n) c -> (b t) n c
        apart = low_pass(frames, grid[-2:], "fft", RADIUS / LARGEST)
        banded = high * frames.float() + (low - high) * apart
        return banded.view_as(newest.value).to(newest.value.dtype)


@dataclass(frozen=True, slots=True)
class NoDifference(Predictor):
    """The unconditional result is the conditional one: guidance rests in that evaluation."""

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        return torch.zeros_like(history[-1].value)


@dataclass(frozen=True, slots=True)
class Codebook(Gate):
    """Skip while the differences that a table gives for the steps since the last computed pair add up to less than a
    limit: PromptTea's codebook. A fixed schedule.
    """

    limit: float
    difference: Callable[[Step], float]

    def start(self) -> dict[str, float]:
        return {"sum": 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return dict(ledger)

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        total = reading["sum"] + self.difference(step)
        return Verdict(total < self.limit, "threshold", {"sum": self.limit}, scores={"sum": total})

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        total = reading["sum"] + self.difference(step) if skipped else 0.0
        return {"sum": torch.full_like(advanced["sum"], total)}


def codebook(profile: Profile) -> Callable[[Step], float]:
    """The measured difference at a step's noise level: the mean over samples, a straight line between levels."""
    found = profile.tables["branch.difference"].nanmean(0)
    known = [(sigma, d) for sigma, d in zip(profile.tables["sigmas"].tolist(), found.tolist(), strict=True) if d >= 0]
    if len(known) < 2:
        raise CacheError("the profile holds no difference of the two sides; calibrate again")
    return lambda step: between(known, step.sigma)


class BranchDistance(Signal):
    """d = mean|v_uncond - v_cond| / mean|v_cond| of the newest computed pair, v the ODE derivatives."""

    tap = 1.0

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        if tap is None:
            return past
        return {**past, "distance": feature.float().abs().mean() / tap.float().abs().mean()}

    def score(self, now: Past, before: Past) -> Figures:
        return {"d": before["distance"]} if "distance" in before else {}
