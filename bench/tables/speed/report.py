"""The table of `bench speed`: each figure with its interval, its target, and whether it was met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.lab.intervals import Interval, bootstrap, disturbed
from bench.lab.sizes import full
from bench.lab.store import code_version
from bench.lab.table import document, markdown
from bench.tables.speed.idle import CLONE, NEVER, NONE, Idle
from bench.tables.speed.measure import (
    AUTO,
    FLOORS,
    FREQCA,
    FREQCA_FFT,
    LONG_COMPUTED,
    LONG_STEPS,
    REFUSING,
    SKIPPING,
    SKIPS,
    Measured,
    Round,
    Speeds,
    beyond_computed,
    cache_features,
    over_expected,
    overhead,
    own_share,
    skip_share,
    speedup,
)

METHODS = ("auto", "spectralcache", "freqca")
"""Whose code the figures depend on."""
MOST_SKIP, MOST_IDLE = 1.0, 0.5
"""Asked of a skipped evaluation and of an idle node: percent of a computed evaluation, of a run."""
ENOUGH = 6
"""Rounds from which the least and the most of them hold the median in 95 cases of 100."""
MOST_BEYOND = 3.0
"""Asked of a run of 100 steps with 12 computed: percent beyond its computed evaluations."""
MEMORY_SLACK = 1e-3
"""Some sums of eight bytes beside the features."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: `target` is the most allowed, or the least where `at_least`; None: only told.

    `null` is the value that would mean no effect, where there is one: an interval that holds it says so. `rounds`: how
    many the interval is made of, where it is made of rounds: below ENOUGH it is too narrow to judge by.
    """

    name: str
    value: Interval
    unit: str
    target: float | None = None
    at_least: bool = False
    null: float | None = None
    rounds: int | None = None

    def verdict(self) -> str:
        """met, missed or undecided, by the interval; and whether the interval holds no effect at all."""
        low, high = self.value.low, self.value.high
        words = []
        if self.target is not None:
            above, below = low >= self.target, high <= self.target
            met, missed = (above, below) if self.at_least else (below, above)
            few = self.rounds is not None and self.rounds < ENOUGH
            words.append("undecided" if few else "met" if met else "missed" if missed else "undecided")
        if self.null is not None and low <= self.null <= high:
            words.append(f"interval holds {self.null:g}")
        return ", ".join(words)

    def record(self, steps: int | None) -> dict[str, object]:
        return {
            "steps": steps,
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


@dataclass(frozen=True, slots=True)
class Section:
    """Figures under one heading: of runs with so many steps, or (None) what does not depend on them."""

    steps: int | None
    lines: tuple[Figure, ...]

    @property
    def heading(self) -> str:
        return "Whatever the steps" if self.steps is None else f"{self.steps} steps"


def sections(speeds: Speeds) -> list[Section]:
    """All tables."""
    runs = [Section(measured.steps, tuple(figures(measured))) for measured in speeds.runs]
    return [*runs, Section(None, tuple(common(speeds)))]


def figures(measured: Measured) -> list[Figure]:
    """What the rounds of one number of steps say."""
    rounds = len(measured.rounds)
    lines = [Figure("computed evaluation, no node", seconds(measured.evaluations(NONE, True)), "s")]
    for arm in FLOORS:
        lines.append(Figure(f"evaluation {arm}", seconds(measured.evaluations(arm, False)), "s"))
    for arm in SKIPS:
        lines.append(Figure(f"skipped evaluation, {arm}", seconds(measured.evaluations(arm, False)), "s"))
    for arm in FLOORS:
        lines.append(Figure(f"{arm}, in computed", over_rounds(measured, skip_share, arm, 100), "%"))
    for arm in SKIPS:
        share = over_rounds(measured, skip_share, arm, 100)
        lines.append(Figure(f"skipped in computed, {arm}", share, "%", MOST_SKIP, rounds=rounds))
    for arm in SKIPS:
        lines.append(Figure(f"of it ours, {arm}", over_rounds(measured, own_share, arm, 100), "%", null=0))
    cost = over_rounds(measured, overhead, REFUSING, 100)
    lines.append(Figure(f"run with {REFUSING} over no node", cost, "%", null=0))
    for arm in (AUTO, SKIPPING, FREQCA, FREQCA_FFT):
        lines.append(Figure(f"speed-up, {arm}", over_rounds(measured, speedup, arm), "x"))
        quotient = over_rounds(measured, over_expected, arm)
        name = f"speed-up over T/(C + s·S), {arm}"
        lines.append(Figure(name, quotient, "x", 0.98, at_least=True, null=1, rounds=rounds))
    return lines


def common(speeds: Speeds) -> list[Figure]:
    """What does not depend on the number of steps."""
    computed = statistics.median(speeds.runs[0].evaluations(NONE, True))
    lines = idle(speeds.idle, computed)
    for kind, cost_of_one in speeds.transforms.items():
        lines.append(Figure(f"one {kind.upper()} low-pass in computed", known(100 * cost_of_one / computed), "%", 5.0))
    lines += [*long_run(speeds), *memory(speeds)]
    for arm, waits in speeds.waits.items():
        lines.append(Figure(f"device waits, a run, {arm}", known(sum(waits.places.values())), "waits"))
        each = statistics.fmean(waits.evaluations[1:])
        lines.append(Figure(f"device waits, an evaluation, {arm}", known(each), "waits", 1.0))
    return lines


def idle(measured: Idle, computed: float) -> list[Figure]:
    """The idle node end to end beside its control; its own time, and the share of that in a computed evaluation."""
    ends = {name: seconds(shares, 100) for name, shares in measured.shares.items()}
    own = seconds(measured.own, 1e3)
    share = Interval(*(value / computed / 10 for value in (own.mean, own.low, own.high)))
    return [
        Figure(f"run with {NEVER} over no node", ends[NEVER], "%", MOST_IDLE, null=0),
        Figure(f"run with {CLONE} over no node", ends[CLONE], "%", null=0),
        Figure(f"{NEVER}, own time an evaluation", own, "ms", null=0),
        Figure(f"{NEVER}, own time in computed", share, "%", null=0),
    ]


def long_run(speeds: Speeds) -> list[Figure]:
    """What a run costs in which nearly every step is skipped."""
    if not speeds.long:
        return []
    beyond = bootstrap([100 * beyond_computed(run) for run in speeds.long], statistics.median)
    name = f"{LONG_STEPS} steps, {LONG_COMPUTED} computed, {AUTO}: beyond the computed evaluations"
    return [Figure(name, beyond, "%", MOST_BEYOND, rounds=len(speeds.long))]


def memory(speeds: Speeds) -> list[Figure]:
    """Tensors as large as a feature that a lane keeps, and bytes."""
    lines = []
    for arm, most in ((AUTO, None), (SKIPPING, 2), (FREQCA, 3)):
        run = speeds.runs[0].rounds[0].run(arm)
        assert run.trace is not None
        lanes = max(e["lanes"] for e in run.trace["evaluations"])
        target = None if most is None else most + MEMORY_SLACK
        held = known(cache_features(run, speeds.size))
        lines.append(Figure(f"features kept a lane, {arm}", held, "features", target))
        lines.append(Figure(f"cache a lane, {arm}", known(run.trace["cache_bytes"] / lanes / 1e6), "MB"))
    return lines


def disturbance(runs: Sequence[Measured]) -> float:
    """The share of the measured time that looks disturbed."""
    groups = [
        measured.evaluations(arm, kind)
        for measured in runs
        for arm in {name for name, _ in measured.rounds[0].runs}
        for kind in (True, False)
    ]
    return disturbed([group for group in groups if group])


def busy(runs: Sequence[Measured]) -> float:
    """The share of the wall clock in which this process did not run (on the CPU; else 0)."""
    made = [run for measured in runs for each in measured.rounds for _, run in each.runs]
    return max(0.0, 1 - sum(run.total for run in made) / sum(run.wall for run in made))


HEADING = ("", "value", "95 % interval", "target", "")


def report(speeds: Speeds, tables: Sequence[Section], about: dict[str, str], command: str) -> str:
    """docs/speed.md."""
    stamp = code_version(METHODS)[:8]
    steps = " and ".join(str(measured.steps) for measured in speeds.runs)
    rounds = len(speeds.runs[0].rounds)
    what = (
        f"{speeds.size.name}; {speeds.size.tokens} image tokens, {steps} steps, euler, "
        f"{rounds} round{'s' if rounds > 1 else ''} of all arms in turn."
    )
    if speeds.device == "cpu":
        what += " This is not FLUX.1 on a GPU: shares of a larger model on a faster device differ."
    whole = full(speeds.size)
    if speeds.size.dtype == whole.dtype and speeds.size.gigabytes < whole.gigabytes:
        times = whole.gigabytes / speeds.size.gigabytes
        what += f" The whole model's blocks have {times:.0f} times as many weights: there all shares are far smaller."
    parts = [text for each in tables for text in (f"## {each.heading}", markdown(HEADING, map(row, each.lines)))]
    return document(
        "# Speed",
        what,
        summary(tables, speeds),
        *parts,
        "Ratios are taken inside a round, against runs without the node just before and just behind, and the figure is "
        "their median over the rounds; the interval is a bootstrap over rounds (of seconds: over evaluations). Targets "
        "are judged by the interval: undecided means that it holds the target. SpectralCache Auto runs as it comes; "
        "the other arms skip up to three evaluations in four, which says nothing about quality. Speed-ups count the "
        "whole call, set-up and end included.",
        "An evaluation without any block is the same model with its lists of blocks empty: embeddings, final layer and "
        "the sampler's arithmetic, which no skip of the blocks can save. Auto skips the whole model call; its floor is "
        "an evaluation without the model, where a wrapper answers at once. What a skip costs above its floor is ours.",
        idle_words(speeds.idle),
        waits_words(speeds),
        f"{about['machine']}; {about['versions']}; code {stamp}. Regenerate: `{command}`.",
    )


def idle_words(measured: Idle) -> str:
    """How the idle node was measured."""
    rounds = len(measured.own)
    return (
        f"The idle node's run is compared with one without it, {rounds} rounds in random order, on a model whose "
        f"computed evaluation takes {1e3 * measured.evaluation:.0f} ms ({measured.size.name}; {measured.size.tokens} "
        "image tokens): the shorter the evaluation, the larger the share. An untouched clone is the model itself, so "
        "its interval shows what this clock can tell apart. Own time is the difference on a minimal model; it does "
        "not grow with the model."
    )


def waits_words(speeds: Speeds) -> str:
    """How waits were counted, and where they are."""
    how = "calls that copy to the host, counted on the CPU"
    if speeds.device == "cuda":
        how = "reads and copies, as torch reports them"
    told = []
    for arm, waits in speeds.waits.items():
        places = ", ".join(f"{place} {count}x" for place, count in sorted(waits.places.items()))
        told.append(f"{arm}: {places or 'none'} ({waits.once} outside evaluations)")
    return (
        f"Device waits ({how}), by line in a run of {speeds.runs[0].steps} steps: {'; '.join(told)}. An evaluation's "
        "leave out the first one, which sets up."
    )


def row(line: Figure) -> list[str]:
    places = 4 if line.unit in ("s", "ms") else 3 if abs(line.value.mean) < 0.1 else 2
    spread = line.value.high > line.value.low
    interval = f"{line.value.low:.{places}f} to {line.value.high:.{places}f}" if spread else ""
    sign = "≥" if line.at_least else "≤"
    target = f"{sign} {line.target:.2f} {line.unit}" if line.target is not None else ""
    return [line.name, f"{line.value.mean:.{places}f} {line.unit}", interval, target, line.verdict()]


def summary(tables: Sequence[Section], speeds: Speeds) -> str:
    """The paragraph: what was met, what was not, and how quiet the machine was."""
    several = len(speeds.runs) > 1
    named = [
        (f"{line.name} ({each.heading})" if several and each.steps else line.name, line)
        for each in tables
        for line in each.lines
    ]
    verdicts = {name: line.verdict() for name, line in named if line.target is not None}
    groups = {
        word: [name for name, verdict in verdicts.items() if verdict.startswith(word)]
        for word in ("met", "missed", "undecided")
    }
    sentences = [f"{len(groups['met'])} of {len(verdicts)} targets met."]
    for word in ("missed", "undecided"):
        if groups[word]:
            sentences.append(f"{word.capitalize()}: {'; '.join(groups[word])}.")
    unseen = [name for name, line in named if line.null == 0 and "holds" in line.verdict()]
    if unseen:
        sentences.append(f"Not told apart from nothing (the interval holds 0): {'; '.join(unseen)}.")
    apart = statistics.median(each.spread for measured in speeds.runs for each in measured.rounds)
    clock = "seconds of a device that had nothing left to do before and behind each run"
    if speeds.device == "cpu":
        clock = f"processor seconds; other programs had {busy(speeds.runs):.0%} of the wall clock"
    sentences.append(
        f"Times are {clock}; {disturbance(speeds.runs):.0%} of the time was above 1.25 times calm, and runs without "
        f"the node lay {apart:.0%} apart in the median round."
    )
    return " ".join(sentences)
