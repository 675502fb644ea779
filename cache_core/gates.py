"""Whether to skip. Gates hold only their numbers; accumulators are the engine's ledger (float64, on the device)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .coefficients import Calibration, rescale
from .types import Figures, Gate, Step, Verdict

NEGATIVE_NOTE = "the fitted polynomial was negative for some changes; these counted as 0"


@dataclass(frozen=True, slots=True)
class Bell:
    """A threshold shaped by progress: TADS (SpectralCache 2603.05315, sec. 4.2, eqs. 5-6).

    s(t) = s_min + (s_max - s_min) · (1 - cos(2 pi t / T)) / 2 with t the step and T the number of steps;
    tau_eff = tau · s(t).
    """

    tau: float
    s_min: float = 1.0
    s_max: float = 1.0

    def __call__(self, step: Step) -> float:
        """tau_eff at this step, in the threshold's own unit."""
        phase = (1.0 - math.cos(2.0 * math.pi * step.index / step.total)) / 2.0
        return self.tau * (self.s_min + (self.s_max - self.s_min) * phase)


@dataclass(frozen=True, slots=True)
class Never(Gate):
    """Compute everything; the engine then installs nothing on the blocks."""

    never = True

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(False, "off")


@dataclass(frozen=True, slots=True)
class Within(Gate):
    """Skip only while start <= step / T <= end. It only ever forbids."""

    start_percent: float
    end_percent: float

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(self.start_percent <= step.progress <= self.end_percent, "outside the window")


@dataclass(frozen=True, slots=True)
class Between(Gate):
    """Skip only behind the first `warmup` steps and before the `last` ones."""

    warmup: int
    last: int

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if step.index < self.warmup:
            return Verdict(False, "warm-up")
        return Verdict(step.index < step.total - self.last, "last steps")


@dataclass(frozen=True, slots=True)
class Every(Gate):
    """Compute one step in `interval`, counted from step `anchor`: a fixed schedule, which reads only where it is.

    All evaluations of a step are treated alike.
    """

    interval: int
    anchor: int

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict((step.index - self.anchor) % self.interval != 0, "interval")


@dataclass(frozen=True, slots=True)
class AtMost(Gate):
    """At most `limit` skips in a row: CEB (SpectralCache sec. 4.3, eq. 7). c is read before it is updated."""

    limit: int

    def start(self) -> dict[str, float]:
        return {"consecutive": 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return {"consecutive": ledger["consecutive"]}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        limits = {"consecutive": float(self.limit)}
        return Verdict(reading["consecutive"] < self.limit, "consecutive limit", limits)

    def settle(self, advanced: Figures, skipped: bool) -> Figures:
        count = advanced["consecutive"]
        return {"consecutive": count + 1 if skipped else torch.zeros_like(count)}


@dataclass(frozen=True, slots=True)
class Accumulate(Gate):
    """Skip while the rescaled change since the last computed evaluation stays below a threshold.

    A_t = A_{t-1} + P(d_t); skip if 0 <= A_t < tau_eff; A becomes 0 on every computed evaluation (TeaCache 2411.19108;
    SpectralCache Algorithm 1, lines 3, 8, 12). P is the calibration's polynomial; abs(P) where it was published so, any
    other negative P counts 0. A NaN is never below the threshold, so it computes.
    """

    threshold: Bell

    def start(self) -> dict[str, float]:
        return {"distance": 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        rescaled = rescale(calibration.polynomial, figures["d"].to(ledger["distance"]))
        grown = rescaled.abs() if calibration.absolute else rescaled.clamp(min=0)
        return {"rescaled": rescaled, "distance": ledger["distance"] + grown}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        limit = self.threshold(step) * calibration.unit
        negative = reading["rescaled"] < 0 and not calibration.absolute
        return Verdict(
            0.0 <= reading["distance"] < limit,
            "threshold",
            {"distance": limit},
            NEGATIVE_NOTE if negative else "",
        )

    def settle(self, advanced: Figures, skipped: bool) -> Figures:
        distance = advanced["distance"]
        return {"distance": distance if skipped else torch.zeros_like(distance)}


@dataclass(frozen=True, slots=True)
class Below(Gate):
    """Skip while one figure is at most tau_eff · factor: one band of FDC (SpectralCache sec. 4.4, eqs. 11-12)."""

    figure: str
    threshold: Bell
    factor: float
    reason: str

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        limit = self.threshold(step) * calibration.unit * self.factor
        return Verdict(reading[self.figure] <= limit, self.reason, {self.figure: limit})


@dataclass(frozen=True, slots=True)
class AllOf(Gate):
    """Skip only if every gate agrees. The reason to compute is the first refusing gate's, in the order given."""

    gates: tuple[Gate, ...]

    def start(self) -> dict[str, float]:
        return {name: value for gate in self.gates for name, value in gate.start().items()}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        return {n: v for gate in self.gates for n, v in gate.advance(figures, ledger, calibration).items()}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        verdicts = [gate.decide(reading, step, calibration) for gate in self.gates]
        refusal = next((verdict.reason for verdict in verdicts if not verdict.skip), "")
        limits = {name: value for verdict in verdicts for name, value in verdict.limits.items()}
        note = next((verdict.note for verdict in verdicts if verdict.note), "")
        agreed = "below every limit" if limits else "between computed steps"
        return Verdict(not refusal, refusal or agreed, limits, note)

    def settle(self, advanced: Figures, skipped: bool) -> Figures:
        return {name: value for gate in self.gates for name, value in gate.settle(advanced, skipped).items()}


def never() -> Gate:
    """A gate that never skips."""
    return Never()


def within(start_percent: float, end_percent: float) -> Gate:
    """Allow skipping only in a window of the run's progress, 0 to 1."""
    return Within(start_percent, end_percent)


def between(warmup: int, last: int) -> Gate:
    """Allow skipping only behind a warm-up and before the last steps."""
    return Between(warmup, last)


def every(interval: int, anchor: int = 0) -> Gate:
    """Compute one step in `interval`."""
    return Every(interval, anchor)


def at_most(limit: int) -> Gate:
    """At most `limit` skips in a row (CEB)."""
    return AtMost(limit)


def accumulate(threshold: Bell) -> Gate:
    """TeaCache's accumulated distance below a threshold."""
    return Accumulate(threshold)


def below(figure: str, threshold: Bell, factor: float, reason: str) -> Gate:
    """A single figure at most threshold · factor (one FDC band)."""
    return Below(figure, threshold, factor, reason)


def all_of(*gates: Gate) -> Gate:
    """Every gate must agree."""
    return AllOf(gates)
