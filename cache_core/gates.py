"""Whether to skip. Gates hold only their numbers; accumulators are the engine's ledger (float64, on the device)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .coefficients import Calibration, rescaled
from .placement import following, late, opening
from .tables import State, single
from .types import BUDGET, CHANGE, ESTIMATE, MISFIT, CacheError, Figures, Gate, Step, Verdict

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
class Staged(Bell):
    """A threshold for one module: `tau` where it is the fragile one, `loose` where the stage rule lets it be reused
    alone.
    """

    loose: float = 0.0
    module: State = State.MLP

    def __call__(self, step: Step) -> float:
        tau = self.loose if single(step.index, step.total) == self.module else self.tau
        return Bell(tau, self.s_min, self.s_max)(step)


@dataclass(frozen=True, slots=True)
class Never(Gate):
    """Compute everything; the engine then installs nothing on the blocks."""

    never = True

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(False, "off")


@dataclass(frozen=True, slots=True)
class Within(Gate):
    """Skip only while start <= step / T <= end, behind the first `computed` steps of that window. It only forbids."""

    start_percent: float
    end_percent: float
    computed: int = 0

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        inside = self.start_percent <= (step.index - self.computed) / step.total
        return Verdict(inside and step.progress <= self.end_percent, "outside the window")


@dataclass(frozen=True, slots=True)
class Between(Gate):
    """Skip only behind the first `warmup` steps and before the `last` ones."""

    warmup: int
    last: int

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if step.index < self.warmup:
            return Verdict(False, "warm-up")
        return Verdict(step.open or step.index < step.total - self.last, "last steps")


@dataclass(frozen=True, slots=True)
class Every(Gate):
    """Compute one step in `interval`, counted from step `anchor`: a fixed schedule, which reads only where it is.

    All evaluations of a step are treated alike.
    """

    interval: int
    anchor: int = 0

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

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
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
        predicted = rescaled(calibration, figures["d"].to(ledger["distance"]))
        grown = predicted.abs() if calibration.absolute else predicted.clamp(min=0)
        return {"rescaled": predicted, "distance": ledger["distance"] + grown}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        limit = self.threshold(step) * calibration.unit
        negative = reading["rescaled"] < 0 and not calibration.absolute
        return Verdict(
            0.0 <= reading["distance"] < limit,
            "threshold",
            {"distance": limit},
            NEGATIVE_NOTE if negative else "",
        )

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
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
class Under(Gate):
    """Skip while the figure itself is below a limit, in its own unit; nothing is accumulated (First-Block Cache)."""

    limit: float
    figure: str = "d"

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if self.figure not in reading:
            return Verdict(False, "no estimate yet")
        return Verdict(reading[self.figure] < self.limit, "threshold", {self.figure: self.limit})


@dataclass(frozen=True, slots=True)
class Sum(Gate):
    """Skip while the figure, summed since the last computed evaluation, is below a limit in its own unit. The sum grows
    from an evaluation on in which there is a figure; a NaN computes.
    """

    limit: float
    figure: str = "d"

    def start(self) -> dict[str, float]:
        return {"sum": 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        known = figures.get(self.figure)
        return dict(ledger) if known is None else {"sum": ledger["sum"] + known.to(ledger["sum"])}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        if self.figure not in reading:
            return Verdict(False, "no estimate yet")
        return Verdict(reading["sum"] < self.limit, "threshold", {"sum": self.limit})

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        return {"sum": advanced["sum"] if skipped else torch.zeros_like(advanced["sum"])}


@dataclass(frozen=True, slots=True)
class Budget(Gate):
    """Compute exactly `count(T)` of a run's T steps, placed by `placement`; tolerance 0 is none.

    An evaluation whose estimated error exceeds the tolerance is computed, budget or not, and so is what the engine
    insists on; the steps still to come share what is left.
    """

    count: Callable[[int], int]
    tolerance: float = 0.0
    keep_first: int = 1
    keep_last: int = 1

    def start(self) -> dict[str, float]:
        return {"spent": 0.0, "anchor": -1.0, "time_1": 0.0, "time_2": 0.0, "tests": 0.0, "usual": 0.0, CHANGE: 0.0}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        told = {name: figures[name].to(ledger["usual"]) for name in (MISFIT, CHANGE) if name in figures}
        if CHANGE in told:  # the run's first one
            told[CHANGE] = torch.where(ledger[CHANGE] > 0, ledger[CHANGE], told[CHANGE])
        return {**ledger, **told}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        anchor = int(reading["anchor"])
        spent = int(reading["spent"]) if anchor >= 0 else step.index  # a run taken over on the way was computed so far
        estimate = _careful(reading, step) if self.tolerance else _estimate(reading, step)
        scores = {} if estimate is None else {ESTIMATE: estimate}
        limits = {BUDGET: float(self.steps(step.expected)), **({ESTIMATE: self.tolerance} if self.tolerance else {})}
        early = late(opening(0.0 if step.ragged else reading[CHANGE]), step.begun)
        placed = partial(following, stride=_stride(reading), stands=step.stands, early=early)
        reason = self._reason(anchor, spent, step, estimate, placed)
        return Verdict(not reason, reason or "within the budget", limits, scores=scores)

    def _reason(
        self, anchor: int, spent: int, step: Step, estimate: float | None, placed: Callable[[int, int, int], int]
    ) -> str:
        """Why this evaluation is computed, or an empty string. placed: the next step behind one, with so many left, up
        to an end.
        """
        total = self.steps(step.expected)
        kept = max(self.keep_last, step.ending(total - self.keep_first))
        end = step.expected - kept
        if step.index < self.keep_first or step.index >= end:
            return "kept"
        left = total - spent - (kept - 1)
        if step.index <= anchor or step.index >= placed(anchor, left, end):
            return "placed"
        return self._doubt(estimate)

    def _doubt(self, estimate: float | None) -> str:
        """Whether the estimated error is too large."""
        if not self.tolerance:
            return ""
        if estimate is None:
            return "no estimate yet"
        return "" if estimate <= self.tolerance else "tolerance"

    def steps(self, total: int) -> int:
        """Steps to compute of `total`, those kept at both ends included."""
        return min(total, max(self.count(total), self.keep_first + self.keep_last))

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        ledger, misfit = {name: advanced[name] for name in self.start()}, advanced.get(MISFIT)
        anchor = int(reading["anchor"])
        if skipped or step.index <= anchor:
            return ledger
        if misfit is not None and 0 < reading[MISFIT] < math.inf:
            ledger["usual"] = (ledger["usual"] * ledger["tests"] + misfit.log()) / (ledger["tests"] + 1)
            ledger["tests"] = ledger["tests"] + 1
        spent = ledger["spent"] + 1 if anchor >= 0 else torch.full_like(ledger["spent"], step.index + 1)
        place, time = (torch.full_like(spent, value) for value in (step.index, step.log_noise))
        return {**ledger, "spent": spent, "anchor": place, "time_1": time, "time_2": ledger["time_1"]}


def _estimate(reading: Mapping[str, float], step: Step) -> float | None:
    """The back-test's error one gap ahead, at this evaluation's share of that gap. On the small FLUX the true error is
    0.97 of it in the median and ranks alike (0.93).
    """
    ahead = _ahead(reading, step)
    return None if ahead is None else reading[MISFIT] * ahead


def _ahead(reading: Mapping[str, float], step: Step) -> float | None:
    """How far the newest computed evaluation lies back, in gaps like the one behind it; None before a test."""
    if MISFIT not in reading or reading["time_2"] <= reading["time_1"]:
        return None
    ahead = (reading["time_1"] - step.log_noise) / (reading["time_2"] - reading["time_1"])
    return max(ahead, 0.0)


def _careful(reading: Mapping[str, float], step: Step) -> float | None:
    """The same for who relies on it: a test that came out better than usual may have been lucky, errors of a straight
    line grow with the square of the distance, and further than REACH tested gaps nothing is known.
    """
    ahead = _ahead(reading, step)
    if ahead is None or ahead > REACH:
        return None
    misfit = max(reading[MISFIT], math.exp(reading["usual"])) if reading["tests"] else reading[MISFIT]
    return misfit * max(ahead, ahead * (ahead + 1) / 2)


REACH = 2.0
"""As far as an estimate is relied on, in tested gaps."""


def _stride(reading: Mapping[str, float]) -> float:
    """How far the next computed step may be, against the plan: less after a back-test that was worse than usual.

    Under the right plan every back-test misses by the same; an error that grows with the cube of a gap is levelled out
    by its cube root.
    """
    if not reading["tests"] or not reading.get(MISFIT, 0.0) > 0:
        return 1.0
    worse = math.log(reading[MISFIT]) - reading["usual"]
    return min(max(math.exp(-worse * EAGERNESS), LEAST_STRIDE), MOST_STRIDE)


EAGERNESS, LEAST_STRIDE, MOST_STRIDE = 0.25, 0.8, 1.25
"""How much of a surprise moves the next computed step, and how far at most."""


@dataclass(frozen=True, slots=True)
class AllOf(Gate):
    """Skip only if every gate agrees. The reason to compute is the first refusing gate's, in the order given.

    Each gate sees the figures and its own ledger, nothing of the others'. What the gates say they compared is put
    together; one that does not say shows its ledger, and the figures are shown if none says.
    """

    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        names = [name for gate in self.gates for name in gate.start()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CacheError(f"two gates of one composition keep {' and '.join(twice)}; join them in one gate")

    def start(self) -> dict[str, float]:
        return {name: value for gate in self.gates for name, value in gate.start().items()}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        parts = [gate.advance(figures, self._own(gate, ledger), calibration) for gate in self.gates]
        return {name: value for part in parts for name, value in part.items()}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        verdicts = [gate.decide(self._seen(gate, reading), step, calibration) for gate in self.gates]
        refusal = next((verdict.reason for verdict in verdicts if not verdict.skip), "")
        limits = {name: value for verdict in verdicts for name, value in verdict.limits.items()}
        note = next((verdict.note for verdict in verdicts if verdict.note), "")
        agreed = "below every limit" if limits else "between computed steps"
        only = [verdict.only for verdict in verdicts if verdict.only is not None]
        layers = frozenset.intersection(*only) if only else None
        gain = next((verdict.gain for verdict in verdicts if verdict.gain is not None), None)
        return Verdict(not refusal, refusal or agreed, limits, note, self._scores(verdicts, reading), layers, gain)

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        parts = [
            gate.settle(self._seen(gate, advanced), self._seen(gate, reading), skipped, step) for gate in self.gates
        ]
        return {name: value for part in parts for name, value in part.items()}

    def _own(self, gate: Gate, ledger: Figures) -> Figures:
        return {name: ledger[name] for name in gate.start() if name in ledger}

    def _seen(self, gate: Gate, values: Mapping[str, Any]) -> dict[str, Any]:
        """Figures, and this gate's ledger."""
        others = self.start().keys() - gate.start().keys()
        return {name: value for name, value in values.items() if name not in others}

    def _scores(self, verdicts: list[Verdict], reading: Mapping[str, float]) -> dict[str, float] | None:
        if all(verdict.scores is None for verdict in verdicts):
            return None
        scores: dict[str, float] = {}
        for gate, verdict in zip(self.gates, verdicts, strict=True):
            own = {name: reading[name] for name in gate.start() if name in reading}
            scores |= own if verdict.scores is None else verdict.scores
        return scores


def all_of(*gates: Gate) -> Gate:
    """Every gate must agree."""
    return AllOf(gates)
