"""The table of `bench speed`: each figure with its interval, its target, and whether it was met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.intervals import Interval, bootstrap, disturbed
from bench.speed import (
    FREQCA,
    FREQCA_FFT,
    NEVER,
    NONE,
    REFUSING,
    SKIPPING,
    UNSPLIT,
    Measured,
    Rounds,
    cache_features,
    over_expected,
    overhead,
    quartile,
    skip_share,
    speedup,
)
from bench.store import code_version
from bench.tables import document, markdown

UNSTEADY = 0.1
"""The share of time beyond 1.25 times calm from which nothing is claimed."""
MEMORY_SLACK = 1e-3
"""Some sums of eight bytes beside the features."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: `target` is the most allowed, or the least where `at_least`; None: only told."""

    name: str
    value: Interval
    unit: str
    target: float | None = None
    at_least: bool = False

    def verdict(self, steady: bool) -> str:
        """met, missed, or why neither is said."""
        if self.target is None:
            return ""
        low, high = self.value.low, self.value.high
        if not steady and self.unit in ("%", "x"):
            return "not judged: machine busy"
        if self.at_least:
            return "met" if low >= self.target else "missed" if high < self.target else "undecided"
        return "met" if high <= self.target else "missed" if low > self.target else "undecided"

    def record(self, steady: bool) -> dict[str, object]:
        return {
            "figure": self.name,
            "value": self.value.mean,
            "low": self.value.low,
            "high": self.value.high,
            "unit": self.unit,
            "target": self.target,
            "verdict": self.verdict(steady),
        }


def seconds(values: Sequence[float]) -> Interval:
    """Calm seconds of one evaluation."""
    return bootstrap(values, quartile)


def known(value: float) -> Interval:
    """A figure without spread."""
    return Interval(value, value, value)


def over_rounds(measured: Measured, statistic: Callable[[Rounds, str], float], arm: str, scale: float = 1) -> Interval:
    """A statistic of all rounds, with its interval over the rounds."""
    return bootstrap(measured.rounds, lambda rounds: scale * statistic(rounds, arm))


def figures(measured: Measured) -> list[Figure]:
    """All lines of the table."""
    calm = quartile(measured.evaluations(NONE, True))
    lines = [Figure("computed evaluation, no node", seconds(measured.evaluations(NONE, True)), "s")]
    for arm in (SKIPPING, UNSPLIT, FREQCA, FREQCA_FFT):
        lines.append(Figure(f"skipped evaluation, {arm}", seconds(measured.evaluations(arm, False)), "s"))
    for arm in (SKIPPING, UNSPLIT, FREQCA, FREQCA_FFT):
        share = over_rounds(measured, skip_share, arm, 100)
        lines.append(Figure(f"skipped in computed, {arm}", share, "%", 6.0))
    lines.append(Figure(f"run with {NEVER} over no node", over_rounds(measured, overhead, NEVER, 100), "%", 2.0))
    lines.append(Figure(f"run with {REFUSING} over no node", over_rounds(measured, overhead, REFUSING, 100), "%"))
    for kind, cost in measured.transforms.items():
        share = known(100 * cost / calm)
        lines.append(Figure(f"one {kind.upper()} low-pass in computed", share, "%", 5.0))
    for arm in (SKIPPING, FREQCA, FREQCA_FFT):
        lines.append(Figure(f"speed-up, {arm}", over_rounds(measured, speedup, arm), "x"))
        quotient = over_rounds(measured, over_expected, arm)
        lines.append(Figure(f"speed-up over T/(C + s·S), {arm}", quotient, "x", 0.98, at_least=True))
    lines += memory(measured)
    total = sum(measured.reads.values())
    lines.append(Figure("device reads, a run", known(total), "reads"))
    lines.append(Figure("device reads, an evaluation", known(per_evaluation(measured)), "reads", 1.0))
    return lines


def memory(measured: Measured) -> list[Figure]:
    """Tensors as large as a feature that a lane keeps, and bytes."""
    lines = []
    for arm, most in ((SKIPPING, 2), (FREQCA, 3)):
        run = measured.runs(arm)[0]
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


def unsteady(measured: Measured) -> float:
    """The share of the measured time that looks disturbed."""
    arms = measured.rounds[0]
    groups = [measured.evaluations(arm, kind) for arm in arms for kind in (True, False)]
    return disturbed([group for group in groups if group])


def busy(measured: Measured) -> float:
    """The share of the wall clock in which this process did not run (on the CPU; else 0)."""
    runs = [run for results in measured.rounds for run in results.values()]
    return max(0.0, 1 - sum(run.total for run in runs) / sum(run.wall for run in runs))


def report(lines: Sequence[Figure], measured: Measured, about: dict[str, str], command: str) -> str:
    """docs/speed.md."""
    steady = unsteady(measured) <= UNSTEADY
    rows = [row(line, steady) for line in lines]
    reads = ", ".join(f"{place} {count}x" for place, count in sorted(measured.reads.items()))
    return document(
        "# Speed",
        f"{measured.size.name}; {measured.size.tokens} image tokens, {measured.steps} steps, euler, "
        f"{len(measured.rounds)} rounds of all arms in turn. This is not FLUX.1 on a GPU: shares of a larger model "
        "on a faster device differ."
        if measured.size.dtype.itemsize == 4
        else f"{measured.size.name}; {measured.size.tokens} image tokens, {measured.steps} steps, euler, "
        f"{len(measured.rounds)} rounds.",
        summary(lines, measured),
        markdown(("", "value", "95 % interval", "target", ""), rows),
        "Lower quartiles over the rounds, evaluation by evaluation, so that a disturbed one does not count; the "
        "interval is a bootstrap over rounds (of seconds: over evaluations). Targets are judged by the interval: "
        "undecided means that it holds the target. Skipping arms skip up to three evaluations in four, which says "
        "nothing about quality. Speed-ups count the whole call, set-up and end included. "
        f"Device reads, in a run that skips: {reads}.",
        f"{about['machine']}; {about['versions']}; code {code_version()[:8]}. Regenerate: `{command}`.",
    )


def row(line: Figure, steady: bool) -> list[str]:
    places = 4 if line.unit == "s" else 2
    spread = line.value.high > line.value.low
    interval = f"{line.value.low:.{places}f} to {line.value.high:.{places}f}" if spread else ""
    sign = "≥" if line.at_least else "≤"
    target = f"{sign} {line.target:.2f} {line.unit}" if line.target is not None else ""
    return [line.name, f"{line.value.mean:.{places}f} {line.unit}", interval, target, line.verdict(steady)]


def summary(lines: Sequence[Figure], measured: Measured) -> str:
    """The paragraph: what was met, what was not, and whether the clock could be trusted."""
    share = unsteady(measured)
    steady = share <= UNSTEADY
    verdicts = {line.name: line.verdict(steady) for line in lines if line.target is not None}
    groups = {
        word: [name for name, verdict in verdicts.items() if verdict.startswith(word)]
        for word in ("met", "missed", "undecided", "not judged")
    }
    sentences = [f"{len(groups['met'])} of {len(verdicts)} targets met."]
    for word in ("missed", "undecided", "not judged"):
        if groups[word]:
            sentences.append(f"{word.capitalize()}: {'; '.join(groups[word])}.")
    sentences.append(
        f"Times are processor seconds; other programs had {busy(measured):.0%} of the wall clock, and {share:.0%} of "
        f"the time was above 1.25 times calm{'' if steady else ', too much to judge times by'}."
    )
    return " ".join(sentences)
