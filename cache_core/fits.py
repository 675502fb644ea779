"""Fits of a profile's pairs: how far the trunk's residual moves (y) when a signal moves by d, and what a threshold on
the sum of it means.

TeaCache (2411.19108) fits a polynomial of degree 4 to such pairs, PromptTea (2507.06739) a surface over the embedding's
change x and the time t with the terms 1, x, t, x², t², xt, x³, t³, x²t, xt², x⁴, t⁴. Both by least squares; R² says how
much of the spread of y the fit explains. Outside the d that were seen, a fit goes on in proportion to d.

The unit makes thresholds alike on every model: it is the threshold at which half of the profile's own steps are
computed, over the 0.6 at which FLUX.1 is about twice as fast.

On the small FLUX (four captions, euler, 28 steps) FLUX.1's polynomial explains 75 % of y at CFG 1 and 67 % at CFG 3 at
its best scale, about what d itself explains (77, 65), the fit 80 and 83 %.

Differs from the original: y is the change of the residual, which is what a skip holds, not of the model's output; a fit
is of a user's own model, from a few prompts instead of 70.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .coefficients import IDENTITY, Calibration, rescaled
from .gates import NEGATIVE_NOTE, Bell
from .profile import Profile
from .signals import PROMPT
from .types import CacheError, Figures, Gate, Step, Verdict

DEGREE = 4
TWICE = 0.6
"""The threshold in FLUX units at which about half of the steps are computed."""
FEWEST = 8
"""Pairs without which nothing is fitted."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted calibration, how much it explains, and of how many pairs."""

    calibration: Calibration
    explained: float
    pairs: int


@lru_cache(maxsize=16)
def polynomial_of(profile: Profile) -> Fit:
    """The polynomial of this model. Raises `CacheError` where there is too little to fit."""
    d, y = _pairs(profile, profile.tables["trunk.signal"])
    weights, explained = _least_squares(torch.stack([d**k for k in range(DEGREE, -1, -1)], dim=1), y)
    calibration = Calibration(
        name=str(profile.about["family"]), polynomial=tuple(weights), unit=1.0, absolute=False, signal="modulated",
        thresholds=(), source=f"profile {profile.about['name']}", domain=(float(d.min()), float(d.max())),
    )  # fmt: skip
    runs = _runs(profile.tables["trunk.signal"])
    unit = _unit([[max(rescaled(calibration, d), 0.0) for d in run] for run in runs])
    return Fit(replace(calibration, unit=unit), explained, len(d))


def explained_by(profile: Profile, calibration: Calibration) -> float:
    """How much of the spread of y another calibration's polynomial explains at its best scale and offset: the square
    of their correlation, since a threshold makes good for both.
    """
    d, y = _pairs(profile, profile.tables["trunk.signal"])
    predicted = torch.tensor([rescaled(calibration, float(v)) for v in d], dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([predicted, y]))[0, 1].square())


def _pairs(profile: Profile, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The signal's and the residual's change wherever both were measured, in float64."""
    change = profile.tables["trunk.change"]
    both = torch.isfinite(signal) & torch.isfinite(change)
    if int(both.sum()) < FEWEST:
        raise CacheError("the profile holds too few changes to fit anything; calibrate again with more steps")
    return signal[both].double(), change[both].double()


def _least_squares(terms: Tensor, y: Tensor) -> tuple[list[float], float]:
    """Weights of the terms (pairs terms), and the share of y's variance that they explain."""
    scale = terms.abs().amax(0).clamp_min(torch.finfo(torch.float64).tiny)
    weights = torch.linalg.lstsq(terms / scale, y, driver="gelsd").solution
    missed = (y - terms / scale @ weights).square().sum()
    spread = (y - y.mean()).square().sum()
    return (weights / scale).tolist(), float(1 - missed / spread) if spread > 0 else 1.0


def _runs(signal: Tensor) -> Iterator[list[float]]:
    """The recorded runs, without the first step, of which nothing is known."""
    for run in signal.flatten(0, 1):
        if bool(torch.isfinite(run[1:]).all()):
            yield run[1:].tolist()


def _unit(runs: Sequence[Sequence[float]]) -> float:
    """From each run's predicted changes, those of step 1 on."""
    low, high = 0.0, max((sum(run) for run in runs), default=0.0)
    if not high > 0:
        return IDENTITY.unit
    wanted = sum(len(run) + 1 for run in runs) / 2
    for _ in range(40):
        middle = (low + high) / 2
        count = sum(computed(run, middle) for run in runs)
        low, high = (middle, high) if count > wanted else (low, middle)
    return high / TWICE


def computed(changes: Sequence[float], threshold: float) -> int:
    """How many steps TeaCache's rule computes of a run whose predicted changes, from step 1 on, are these."""
    count, total = 2, 0.0
    for change in changes[:-1]:
        total += change
        if not total < threshold:
            count, total = count + 1, 0.0
    return count


@dataclass(frozen=True, slots=True)
class Fitted(Gate):
    """A gate that goes by another calibration than the model's own. Where whole calls are skipped the signal is another
    one, and the site's own stays.
    """

    gate: Gate
    calibration: Calibration

    def start(self) -> dict[str, float]:
        return self.gate.start()

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return self.gate.advance(figures, ledger, self._own(calibration))

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return self.gate.decide(reading, step, self._own(calibration))

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        return self.gate.settle(advanced, reading, skipped, step)

    def _own(self, calibration: Calibration) -> Calibration:
        return calibration if calibration is IDENTITY else self.calibration


def fitted(gate: Gate, profile: Profile | None) -> Gate:
    """The gate on the profile's polynomial, or as it is without one."""
    return gate if profile is None or gate.never else Fitted(gate, polynomial_of(profile).calibration)


# PromptTea's surface --------------------------------------------------------------------------------------------------


Surface = tuple[float, ...]
"""Weights of the terms."""


def terms(x: float, t: float) -> tuple[float, ...]:
    """PromptTea's, of the embedding's change and the time (here the share of the run)."""
    return (1.0, x, t, x * x, t * t, x * t, x**3, t**3, x * x * t, x * t * t, x**4, t**4)


def on(surface: Surface | None, x: float, t: float) -> float:
    """The predicted change; x itself without a surface."""
    return x if surface is None else sum(w * term for w, term in zip(surface, terms(x, t), strict=True))


@lru_cache(maxsize=16)
def surface_of(profile: Profile) -> tuple[Surface, float, float]:
    """The surface, its unit, and how much it explains."""
    total = profile.total
    x = profile.tables["trunk.embedding"].expand_as(profile.tables["trunk.change"])
    t = (torch.arange(total) / total).expand_as(x)
    both = torch.isfinite(x) & torch.isfinite(profile.tables["trunk.change"])
    _, y = _pairs(profile, x)
    rows = [terms(float(a), float(b)) for a, b in zip(x[both], t[both], strict=True)]
    weights, explained = _least_squares(torch.tensor(rows, dtype=torch.float64), y)
    surface = tuple(weights)
    run = [max(on(surface, v, step / total), 0.0) for step, v in enumerate(x[0, 0].tolist())][1:]
    return surface, _unit([run]), explained


@dataclass(frozen=True, slots=True)
class AccumulateSurface(Gate):
    """Skip while the predicted changes since the last computed evaluation add up to less than a threshold, which
    `allowed` may scale by a figure of the signal's. A second evaluation at the same noise level is treated like the
    first.
    """

    threshold: Bell
    unit: float
    surface: Surface | None = None
    allowed: Callable[[Mapping[str, float]], float] | None = None

    def start(self) -> dict[str, float]:
        return {"distance": 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return dict(ledger)

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        limit = self.threshold(step) * self.unit * (1.0 if self.allowed is None else self.allowed(reading))
        predicted = self._predicted(reading, step)
        distance = reading["distance"] + max(predicted, 0.0)
        note = NEGATIVE_NOTE if predicted < 0 else ""
        return Verdict(0 < distance < limit, "threshold", {"distance": limit}, note, {"distance": distance})

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        distance = reading["distance"] + max(self._predicted(reading, step), 0.0) if skipped else 0.0
        return {"distance": torch.full_like(advanced["distance"], distance)}

    def _predicted(self, reading: Mapping[str, float], step: Step) -> float:
        """Nothing at the noise level of the evaluation before."""
        x = reading["embedding"]
        return on(self.surface, x, step.progress) if x else 0.0


def allowance(most: float, halfway: float, sharpness: float, reading: Mapping[str, float]) -> float:
    """By how much a prompt raises the threshold: 1 for a complex one, `most` for a simple one; `halfway` tokens that
    say something of their own are half complex.
    """
    if PROMPT not in reading:
        return 1.0
    complexity = reading[PROMPT] / (reading[PROMPT] + halfway)
    weight = 1 / (1 + math.exp(-sharpness * (complexity - 0.5)))
    return weight + (1 - weight) * most
