"""Parts that only the bench has: computed evaluations at given steps, and forecasts that no method of the pack uses.

They are made of the engine's own parts (cache_core.types), so what is measured here runs as a method would. Every
figure of `bench predictors` depends on this file and on `arms.places`; the list of what is measured and the report
are elsewhere, so that a change of them remakes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.lab.arms import Cached, places
from bench.lab.store import digest
from cache_core.coefficients import Calibration
from cache_core.predictors import Hold, Linear, Newton, Weighted, bands, hermite, newton, taylor
from cache_core.spectrum import low_pass
from cache_core.types import MODEL, TRUNK, Feature, Figures, Gate, Grid, Method, Predictor, Rule, Signal, Step, Verdict

# where the computed evaluations are -----------------------------------------------------------------------------------

STEPS = 28
BUDGETS = {12: 3, 10: 4, 8: 6}
"""Computed evaluations, and the N with which three warm-up steps and then every N-th, with the last, give so many."""
WARM, EVEN = "warm-up, every N", "even"


@dataclass(frozen=True, slots=True)
class At(Gate):
    """Compute at these steps and nowhere else."""

    steps: frozenset[int]

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(step.index not in self.steps, "placed")


def anchors(placement: str, count: int, steps: int = STEPS) -> list[int]:
    """The computed steps of a placement; `WARM` only for 28 steps."""
    if placement == WARM:
        return sorted({0, 1, *range(2, STEPS, BUDGETS[count]), STEPS - 1})
    return places(steps, count, 1.0 if placement == EVEN else float(placement.rsplit("=", 1)[1]))


def early(power: float) -> str:
    """The name of an early-dense placement."""
    return f"early-dense p={power:g}"


# another coordinate ---------------------------------------------------------------------------------------------------


def log_snr(sigma: float) -> float:
    """2·log((1 - sigma) / sigma), a flow model's, sigma in (0, 1)."""
    return 2 * math.log((1 - sigma) / sigma)


def itself(sigma: float) -> float:
    return sigma


@dataclass(frozen=True, slots=True)
class Over(Predictor):
    """A predictor that counts in sigma, counting in a function of it; an entry at sigma 1 drops out.

    That is the first step of a flow model, where log-SNR is minus infinity: with one abscissa gone to infinity the
    weights of linear and Newton tend to those of one degree less through the others. `itself` only drops it, which
    tells what of a gain is the coordinate's and what is not to trust the first step.
    """

    coordinate: Callable[[float], float]
    inner: Predictor

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.inner.depth

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return self.inner.needs_grid

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        usable = tuple(replace(entry, at=self._at(entry.at)) for entry in history if entry.at.sigma < 1)
        if not usable:
            return history[-1].value
        return self.inner.predict(usable, self._at(now), grid)

    def _at(self, step: Step) -> Step:
        return replace(step, sigma=self.coordinate(step.sigma))


# a global fit ---------------------------------------------------------------------------------------------------------

RIDGE = 0.1
"""lambda of Spectrum's paper."""
ALL = 64
"""More features than a run here computes."""


@dataclass(frozen=True, slots=True)
class Chebyshev(Weighted):
    """Spectrum (2603.01623): a Chebyshev series over every computed feature so far, fitted with a ridge.

    F(x) = sum_m c_m T_m(x), c = (Phi'Phi + lambda I)^-1 Phi'F, so the weights are T(x)(Phi'Phi + lambda I)^-1 Phi'.
    They do not add up to 1, and the fit does not go through the newest feature. `share` of it (the paper's w) is mixed
    with 1 - share of the last slope.

    Differs from the original: x = 2 sigma - 1, and Newton's slope in sigma; released: the share of the steps.
    """

    degree: int
    ridge: float = RIDGE
    share: float = 1.0

    @property
    def depth(self) -> int:  # type: ignore[override]
        return ALL

    def weights(self, history: Sequence[Feature], now: Step) -> list[float]:
        phi = self._basis([entry.at.sigma for entry in history])
        system = phi.T @ phi + self.ridge * torch.eye(self.degree + 1, dtype=phi.dtype)
        fitted = (self._basis([now.sigma]) @ torch.linalg.solve(system, phi.T))[0].tolist()
        local = Linear().weights(history, now)
        return [self.share * f + (1 - self.share) * w for f, w in zip(fitted, local, strict=True)]

    def _basis(self, sigmas: Sequence[float]) -> Tensor:
        """T_0 .. T_degree, a row each sigma."""
        angle = torch.tensor([2 * sigma - 1 for sigma in sigmas], dtype=torch.float64).clamp(-1, 1).arccos()
        return torch.cos(angle[:, None] * torch.arange(self.degree + 1, dtype=torch.float64))


# the prototype's forecast ---------------------------------------------------------------------------------------------

EDGES = (0.15, 0.4)
"""Edges of the three radial bands, of the largest radius."""
MOST_GAIN = 1.2
FIRST_GAIN = 0.5


@dataclass(frozen=True, slots=True)
class BackTested(Predictor):
    """Linear in sigma, each band damped by what the last anchor showed.

    At the newest anchor k the forecast P from k-2 and k-1 is compared with what came, Y = R_k - R_(k-1): per lane and
    band g = clip(<Y, P> / <P, P>, 0, 1.2), 0.5 before there are three anchors. F^ = R_k + sum_b g_b·[slope·(sigma -
    sigma_k)]_b. `averaged`: with the gain of the anchor before. No edges: one gain for everything.
    """

    edges: tuple[float, ...] = EDGES
    averaged: bool = False

    @property
    def depth(self) -> int:  # type: ignore[override]
        return 4 if self.averaged else 3

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return bool(self.edges)

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        newest = history[-1]
        if len(history) < 2 or (grid is None and self.edges):
            return newest.value
        before = history[-2]
        change = newest.value.float() - before.value.float()
        ahead = (now.sigma - newest.at.sigma) / (newest.at.sigma - before.at.sigma)
        tested = [self._gains(history[i : i + 3], grid) for i in range(len(history) - 2)]
        parts = split(change, grid, self.edges)
        gains = [sum(g) / len(g) for g in zip(*tested, strict=True)] if tested else [FIRST_GAIN] * len(parts)
        step = sum((gain * part for gain, part in zip(gains, parts, strict=True)), torch.zeros_like(change))
        return (newest.value + ahead * step).to(newest.value.dtype)

    def _gains(self, three: Sequence[Feature], grid: Grid | None) -> list[float | Tensor]:
        oldest, before, newest = three
        ratio = (newest.at.sigma - before.at.sigma) / (before.at.sigma - oldest.at.sigma)
        said = split((before.value.float() - oldest.value.float()) * ratio, grid, self.edges)
        came = split(newest.value.float() - before.value.float(), grid, self.edges)
        return [gain(y, p) for y, p in zip(came, said, strict=True)]


def gain(came: Tensor, said: Tensor) -> Tensor:
    """<came, said> / <said, said> in 0 .. `MOST_GAIN`; 0 where nothing was said."""
    power = (said * said).sum()
    return torch.where(power > 0, (came * said).sum() / power, power).clamp(0.0, MOST_GAIN)


def split(values: Tensor, grid: Grid | None, edges: Sequence[float]) -> list[Tensor]:
    """b n d in radial bands of the DCT, lowest first; they add up to `values`."""
    if grid is None or not edges:
        return [values]
    lows = [low_pass(values, grid, "dct", edge) for edge in edges]
    return [lows[0], *(b - a for a, b in itertools.pairwise(lows)), values - lows[-1]]


# what is measured -----------------------------------------------------------------------------------------------------

DAMPINGS = (0.5, 0.75, 1.0)

PREDICTORS: Mapping[str, Callable[[], Predictor]] = {
    "hold": Hold,
    **{f"linear in sigma × {d:g}": (lambda d=d: Linear(d)) for d in DAMPINGS},  # type: ignore[misc]
    **{f"linear in step × {d:g}": (lambda d=d: Linear(d, "step")) for d in DAMPINGS},  # type: ignore[misc]
    **{f"linear in log-SNR × {d:g}": (lambda d=d: Over(log_snr, Linear(d))) for d in DAMPINGS},  # type: ignore[misc]
    "linear in sigma, first step dropped": lambda: Over(itself, Linear(1.0)),
    "Newton 2 in sigma": lambda: newton(2),
    "Newton 2 in sigma, first step dropped": lambda: Over(itself, newton(2)),
    "Newton 2 in log-SNR": lambda: Over(log_snr, newton(2)),
    "Newton 3 in sigma": lambda: Newton(3),
    "Hermite 2": lambda: hermite(2),
    "Taylor 2": lambda: taylor(2),
    **{f"Chebyshev {n}": (lambda n=n: Chebyshev(n)) for n in (2, 3, 4)},  # type: ignore[misc]
    **{f"Chebyshev {n}, λ 0.001": (lambda n=n: Chebyshev(n, 1e-3)) for n in (2, 3, 4)},  # type: ignore[misc]
    "Chebyshev 4, half linear": lambda: Chebyshev(4, share=0.5),
    "FreqCa's bands": lambda: bands(Hold(), hermite(2), "dct", 0.1),
    "back-tested, 1 band": lambda: BackTested(()),
    "back-tested, 3 bands": BackTested,
    "back-tested, 3 bands, averaged": lambda: BackTested(averaged=True),
    "back-tested, 3 bands, log-SNR": lambda: Over(log_snr, BackTested()),
}
"""The small FLUX runs in float32: a fit over all features costs memory that no GPU would spare."""


@dataclass(frozen=True, slots=True)
class Forecast(Cached):
    """Computed at given places, with one predictor in between."""

    feature: str = field(kw_only=True)
    placement: str = field(kw_only=True)
    predictor: str = field(kw_only=True)
    count: int = field(kw_only=True)
    steps: int = field(default=STEPS, kw_only=True)

    def made(self) -> Method:
        gate = At(frozenset(anchors(self.placement, self.count, self.steps)))
        where = (MODEL,) if self.feature == "output" else (TRUNK, MODEL)
        stored: Literal["absolute", "residual"] = "absolute" if self.feature == "absolute" else "residual"
        return Method(self.family, (Rule(where, Signal(), gate, PREDICTORS[self.predictor](), stored),))

    def version(self) -> str:
        return Cached.version(self) + digest([Path(__file__).read_text("utf-8")])
