"""The table of `bench speed`: each figure with its interval, its target, and whether it was met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.intervals import Interval, bootstrap, disturbed
from bench.speed import (
    FREQCA,
    FREQCA_FFT,
    IDLE_ROUNDS,
    NEVER,
    NONE,
    REFUSING,
    SKIPPING,
    UNSPLIT,
    Measured,
    Round,
    cache_features,
    over_expected,
    overhead,
    skip_share,
    speedup,
)
from bench.store import code_version
from bench.tables import document, markdown

METHODS = ("spectralcache", "freqca")
"""Whose code the figures depend on."""
MEMORY_SLACK = 1e-3
"""Some sums of eight bytes beside the features."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: `target` is the most allowed, or the least where `at_least`; None: only told.

    `null` is the value that would mean no effect, where there is one: an interval that holds it says so.
    """

    name: str
    value: Interval
    unit: str
    target: float | None = None
    at_least: bool = False
    null: float | None = None

    def verdict(self) -> str:
        """met, missed or undecided, by the interval; and whether the interval holds no effect at all."""
        low, high = self.value.low, self.value.high
        words = []
        if self.target is not None:
            above, below = low >= self.target, high <= self.target
            met, missed = (above, below) if self.at_least else (below, above)
            words.append("met" if met else "missed" if missed else "undecided")
        if self.null is not None and low <= self.null <= high:
            words.append(f"interval holds {self.null:g}")
        return ", ".join(words)

    def record(self) -> dict[str, object]:
        return {
            "figure": self.name,
            "value": self.value.mean,
            "low": self.value.low,
            "high": self.value.high,
            "unit": self.unit,
            "target": self.target,
            "verdict": self.verdict(),
        }


def seconds(values: Sequence[float], scale: float = 1) -> Interval:
    """Median seconds."""
    return bootstrap([scale * value for value in values], statistics.median)


def known(value: float) -> Interval:
    """A figure without spread."""
    return Interval(value, value, value)


def over_rounds(measured: Measured, statistic: Callable[[Round, str], float], arm: str, scale: float = 1) -> Interval:
    """The median over the rounds of a ratio taken inside each, with its interval over the rounds."""
    return bootstrap([scale * statistic(each, arm) for each in measured.rounds], statistics.median)


def figures(measured: Measured) -> list[Figure]:
    """All lines of the table."""
    plain = seconds(measured.evaluations(NONE, True))
    lines = [Figure("computed evaluation, no node", plain, "s")]
    for arm in (SKIPPING, UNSPLIT, FREQCA, FREQCA_FFT):
        lines.append(Figure(f"skipped evaluation, {arm}", seconds(measured.evaluations(arm, False)), "s"))
    for arm in (SKIPPING, UNSPLIT, FREQCA, FREQCA_FFT):
        share = over_rounds(measured, skip_share, arm, 100)
        lines.append(Figure(f"skipped in computed, {arm}", share, "%", 6.0))
    lines += idle(measured, plain.mean)
    for arm, target in ((NEVER, 2.0), (REFUSING, None)):
        cost = over_rounds(measured, overhead, arm, 100)
        lines.append(Figure(f"run with {arm} over no node", cost, "%", target, null=0))
    for kind, cost_of_one in measured.transforms.items():
        share = known(100 * cost_of_one / plain.mean)
        lines.append(Figure(f"one {kind.upper()} low-pass in computed", share, "%", 5.0))
    for arm in (SKIPPING, FREQCA, FREQCA_FFT):
        lines.append(Figure(f"speed-up, {arm}", over_rounds(measured, speedup, arm), "x"))
        quotient = over_rounds(measured, over_expected, arm)
        lines.append(Figure(f"speed-up over T/(C + s·S), {arm}", quotient, "x", 0.98, at_least=True, null=1))
    lines += memory(measured)
    total = sum(measured.reads.values())
    lines.append(Figure("device reads, a run", known(total), "reads"))
    lines.append(Figure("device reads, an evaluation", known(per_evaluation(measured)), "reads", 1.0))
    return lines


def idle(measured: Measured, computed: float) -> list[Figure]:
    """The idle node's own time, and its share of a computed evaluation here."""
    own = seconds(measured.idle, 1e3)
    share = Interval(*(value / computed / 10 for value in (own.mean, own.low, own.high)))
    return [
        Figure(f"{NEVER}, own time an evaluation", own, "ms", null=0),
        Figure(f"{NEVER}, own time in computed", share, "%", 0.5, null=0),
    ]


def memory(measured: Measured) -> list[Figure]:
    """Tensors as large as a feature that a lane keeps, and bytes."""
    lines = []
    for arm, most in ((SKIPPING, 2), (FREQCA, 3)):
        run = measured.rounds[0].run(arm)
        assert run.trace is not None
        lanes = max(e["lanes"] for e in run.trace["evaluations"])
        held = known(cache_features(run, measured.size))
        lines.append(Figure(f"features kept a lane, {arm}", held, "features", most + MEMORY_SLACK))
        lines.append(Figure(f"cache a lane, {arm}", known(run.trace["cache_bytes"] / lanes / 1e6), "MB"))
    return lines


def per_evaluation(measured: Measured) -> float:
    """Reads by the engine; what the host side reads once a run (the schedule) is no read of an evaluation."""
    engine = sum(count for place, count in measured.reads.items() if place.startswith("session.py"))
    return engine / measured.steps


def disturbance(measured: Measured) -> float:
    """The share of the measured time that looks disturbed."""
    arms = {name for name, _ in measured.rounds[0].runs}
    groups = [measured.evaluations(arm, kind) for arm in arms for kind in (True, False)]
    return disturbed([group for group in groups if group])


def busy(measured: Measured) -> float:
    """The share of the wall clock in which this process did not run (on the CPU; else 0)."""
    runs = [run for each in measured.rounds for _, run in each.runs]
    return max(0.0, 1 - sum(run.total for run in runs) / sum(run.wall for run in runs))


def report(lines: Sequence[Figure], measured: Measured, about: dict[str, str], command: str) -> str:
    """docs/speed.md."""
    stamp = code_version(METHODS)[:8]
    reads = ", ".join(f"{place} {count}x" for place, count in sorted(measured.reads.items()))
    what = (
        f"{measured.size.name}; {measured.size.tokens} image tokens, {measured.steps} steps, euler, "
        f"{len(measured.rounds)} rounds of all arms in turn."
    )
    if measured.size.dtype.itemsize == 4:
        what += " This is not FLUX.1 on a GPU: shares of a larger model on a faster device differ."
    return document(
        "# Speed",
        what,
        summary(lines, measured),
        markdown(("", "value", "95 % interval", "target", ""), [row(line) for line in lines]),
        "Ratios are taken inside a round, against runs without the node just before and just behind, and the figure is "
        "their median over the rounds; the interval is a bootstrap over rounds (of seconds: over evaluations). Targets "
        "are judged by the interval: undecided means that it holds the target. The idle node's own time is the "
        f"difference to runs without it on a minimal model, {IDLE_ROUNDS} times in turn: it does not grow with the "
        "model. Skipping arms skip up to three evaluations in four, which says nothing about quality. "
        f"Speed-ups count the whole call, set-up and end included. Device reads, in a run that skips: {reads}.",
        f"{about['machine']}; {about['versions']}; code {stamp}. Regenerate: `{command}`.",
    )


def row(line: Figure) -> list[str]:
    places = 4 if line.unit in ("s", "ms") else 3 if abs(line.value.mean) < 0.1 else 2
    spread = line.value.high > line.value.low
    interval = f"{line.value.low:.{places}f} to {line.value.high:.{places}f}" if spread else ""
    sign = "≥" if line.at_least else "≤"
    target = f"{sign} {line.target:.2f} {line.unit}" if line.target is not None else ""
    return [line.name, f"{line.value.mean:.{places}f} {line.unit}", interval, target, line.verdict()]


def summary(lines: Sequence[Figure], measured: Measured) -> str:
    """The paragraph: what was met, what was not, and how quiet the machine was."""
    verdicts = {line.name: line.verdict() for line in lines if line.target is not None}
    groups = {
        word: [name for name, verdict in verdicts.items() if verdict.startswith(word)]
        for word in ("met", "missed", "undecided")
    }
    sentences = [f"{len(groups['met'])} of {len(verdicts)} targets met."]
    for word in ("missed", "undecided"):
        if groups[word]:
            sentences.append(f"{word.capitalize()}: {'; '.join(groups[word])}.")
    unseen = [line.name for line in lines if line.null == 0 and "holds" in line.verdict()]
    if unseen:
        sentences.append(f"Not told apart from nothing (the interval holds 0): {'; '.join(unseen)}.")
    apart = statistics.median(each.spread for each in measured.rounds)
    sentences.append(
        f"Times are processor seconds; other programs had {busy(measured):.0%} of the wall clock, "
        f"{disturbance(measured):.0%} of the time was above 1.25 times calm, and runs without the node lay {apart:.0%} "
        "apart in the median round."
    )
    return " ".join(sentences)
