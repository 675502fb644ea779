"""What happened in a sampling run, evaluation by evaluation: records, JSON, a report in words, the book of runs."""

from __future__ import annotations

import math
import re
import statistics
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .types import BUDGET, ESTIMATE

VERSION = 1
COMPUTED, SKIPPED, PARTIAL = "computed", "skipped", "partial"
State = Literal["done", "interrupted", "error", "stood down"]
Trace = dict[str, Any]
"""A finished run as JSON, version 1 (the keys are a contract with everybody who reads traces)."""


@dataclass(slots=True)
class Record:
    """One evaluation. `skip` is what was decided, `action` what was done, `work` the share of the trunk that ran,
    `derived` how many rows of model calls were not made because a conditioning's result was derived from another's.
    """

    step: int
    stage: int
    sigma: float
    lanes: int
    calls: int
    action: str
    skip: bool
    work: float
    reason: str
    scores: dict[str, float]
    limits: dict[str, float]
    consecutive: int
    seconds: float | None = None
    derived: int = 0

    def json(self) -> dict[str, Any]:
        scores = {name: _finite(value) for name, value in self.scores.items()}
        limits = {name: _finite(value) for name, value in self.limits.items()}
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "derived" or self.derived}
        return {**plain, "sigma": _finite(self.sigma), "scores": scores, "limits": limits}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class Stopwatch:
    """Seconds of one evaluation without a stall: CUDA events, read after the run; elsewhere the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self._now()
        self._stop = self._start

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        self._stop = self._now()

    def seconds(self) -> float:
        if not self._cuda:
            return float(self._stop - self._start)
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop)) / 1000.0


@dataclass(slots=True)
class Recorder:
    """Collects a run's records and turns them into a `Trace`. Holds no tensors but the run's timing events."""

    method: str
    params: Mapping[str, object]
    model: str
    site: str
    steps: int
    records: list[Record] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cache_bytes: int = 0
    watch_bytes: int = 0
    foreseen_bytes: int = 0
    stood_down: bool = False
    profile: str = ""
    expected: float | None = None
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unheard: Callable[[str], bool] = lambda text: True
    """Whether a sentence is new to the user, who may have been told by an earlier run of the same node."""

    def note(self, text: str) -> bool:
        """Add a sentence once; returns whether it was new."""
        new = text not in self.notes
        if new:
            self.notes.append(text)
        return new

    def finish(self, state: State, run: Mapping[str, object]) -> Trace:
        """The finished trace; reads the timing events, which waits for the device once."""
        for record, watch in zip(self.records, self.watches, strict=True):
            record.seconds = watch.seconds()
        count = Counter(record.action for record in self.records)
        reasons = Counter(record.reason for record in self.records if not record.skip)
        return {
            "version": VERSION,
            "method": self.method,
            "params": dict(self.params),
            "model": self.model,
            "site": self.site,
            "state": "stood down" if self.stood_down and state == "done" else state,
            "run": dict(run),
            "steps": self.steps,
            "evaluations": [record.json() for record in self.records],
            COMPUTED: count[COMPUTED],
            SKIPPED: count[SKIPPED],
            PARTIAL: count[PARTIAL],
            "speedup": speedup(self.records),
            "cache_bytes": self.cache_bytes,
            "foreseen_bytes": self.foreseen_bytes,
            "watch_bytes": self.watch_bytes,
            "profile": self.profile,
            "expected_error": _finite(self.expected),
            "notes": list(self.notes),
            "counted": {name: sum(reasons[r] for r in alone) for name, alone in self.counted.items()},
        }


def speedup(records: Collection[Record]) -> dict[str, float | None]:
    """How much faster than computing everything: by evaluations, and measured.

    evaluations = n / work done; wall = n · (median seconds of a computed evaluation) / (seconds of all), the first
    evaluation (warm-up, compilation) left out. None where there is nothing to measure.
    """
    return _speedup_of([{"work": r.work, "seconds": r.seconds, "action": r.action} for r in records])


def _speedup_of(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    work = sum(e["work"] for e in evaluations)
    timed = [e for e in evaluations[1:] if e["seconds"] is not None]
    computed = [e["seconds"] for e in timed if e["action"] == COMPUTED]
    total = sum(e["seconds"] for e in timed)
    wall = len(timed) * statistics.median(computed) / total if computed and total > 0 else None
    return {"evaluations": len(evaluations) / work if work else None, "wall": wall}


def estimated_error(evaluations: Iterable[Mapping[str, Any]]) -> float | None:
    """Mean estimate over the evaluations (as JSON) that were skipped (not those in which only one side of guidance was
    derived); None where the method makes none."""
    stood_in = [e for e in evaluations if e["action"] != COMPUTED and not e.get("derived")]
    found = [e["scores"].get(ESTIMATE) for e in stood_in]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known else None


def empty() -> Trace:
    """A valid trace of no run."""
    return Recorder("", {}, "", "", 0).finish("done", {"prompt": None, "node": None, "index": 0})


def measured_speedup(trace: Trace) -> float:
    """The one figure to show: measured, else by evaluations, else 1."""
    return float(trace["speedup"]["wall"] or trace["speedup"]["evaluations"] or 1.0)


def summary(trace: Trace) -> str:
    """One line: "SpectralCache: 28 steps, 13 skipped, 1.79x, 50 MB"."""
    runs = f"{trace['runs']} runs, " if "runs" in trace else ""
    parts = [f"{trace['method']}: {runs}{trace['steps']} steps", f"{trace['skipped']} skipped"]
    if trace["partial"]:
        parts.append(f"{trace['partial']} in part")
    if trace["skipped"] + trace["partial"]:  # else a measured figure would only show how steady the clock is
        parts.append(f"{measured_speedup(trace):.2f}x")
    error = estimated_error(trace["evaluations"])
    if trace.get("expected_error"):
        parts.append(f"expected error of the latent {100 * trace['expected_error']:.1f} %")
    elif error is not None:
        parts.append(f"estimated error {100 * error:.1f} %")
    parts.append(megabytes(trace["cache_bytes"]))
    if trace["state"] != "done":
        parts.append(trace["state"])
    return ", ".join(parts)


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"


def report(trace: Trace) -> str:
    """The run in words: what was skipped, why the rest was not, what it gained and what it cost."""
    evaluations = trace["evaluations"]
    lines = [summary(trace)]
    lines += _gain(trace)
    if trace.get("profile"):
        lines.append(f"Profile: {trace['profile']}")
    if trace.get("expected_error"):
        lines.append(f"Expected error of the last latent: {100 * trace['expected_error']:.1f} %, by the profile")
    error = estimated_error(evaluations)
    if error is not None:
        lines.append(f"Estimated error: {100 * error:.1f} %, the method's own estimate, mean of what was not computed")
    reasons = Counter(e["reason"] for e in evaluations if not e["skip"])
    if reasons:
        lines.append("Computed because: " + ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common()))
    lines += [f"{name} decided alone: {count}" for name, count in trace.get("counted", {}).items()]
    if evaluations and "runs" not in trace:
        steps = {e["step"] for e in evaluations if e["action"] != SKIPPED}
        asked = next((e["limits"][BUDGET] for e in evaluations if BUDGET in e["limits"]), None)
        wanted = "" if asked is None else f", {asked:g} asked for"
        lines.append(f"Steps computed: {len(steps)} of {trace['steps']}{wanted}")
        lines += [] if asked is None else _worth(trace["steps"], evaluations)
    lines += _branches(evaluations)
    lines += [f"Note: {note}" for note in trace["notes"]]
    lines += _table(evaluations)
    return "\n".join(lines)


def _worth(steps: int, evaluations: list[dict[str, Any]]) -> list[str]:
    """How long a run with a budget takes, in plain steps, where it spares any."""
    share = sum(e["work"] for e in evaluations) / len(evaluations)
    if share == 1:
        return []
    return [
        f"In time that is a run of about {share * steps:.0f} steps: the others follow the forecast and cost next to "
        "nothing"
    ]


def _branches(evaluations: list[dict[str, Any]]) -> list[str]:
    """How often both sides of guidance were evaluated, and what all of it cost."""
    derived = sum(e.get("derived", 0) > 0 for e in evaluations)
    if not derived:
        return []
    pairs = sum(e["action"] != SKIPPED for e in evaluations) - derived
    work = sum(e["work"] for e in evaluations)
    return [
        f"Unconditional result: evaluated {pairs} times, derived {derived} times; all work together is that of "
        f"{work:.1f} evaluations of both"
    ]


def _gain(trace: Trace) -> list[str]:
    by_count, wall = trace["speedup"]["evaluations"], trace["speedup"]["wall"]
    if not trace["evaluations"]:
        return []
    lines = [f"Model: {trace['model']}; site: {trace['site']}; state: {trace['state']}"]
    lines.append(f"Speed-up: {_speedup(trace, wall, by_count)}")
    foreseen = f" ({megabytes(trace['foreseen_bytes'])} foreseen)" if trace.get("foreseen_bytes") else ""
    watched = trace.get("watch_bytes", 0)
    latents = f", {megabytes(watched)} of latents to see how the sampler moves" if watched else ""
    lines.append(
        f"Memory held by the cache: {megabytes(trace['cache_bytes'])}{foreseen}{latents}, all of it freed after the run"
    )
    return lines


def _speedup(trace: Trace, wall: float | None, by_count: float | None) -> str:
    if not trace["skipped"] + trace["partial"]:
        return "none, nothing was skipped"
    measured = f"{wall:.2f}x measured" if wall else "not measured"
    return f"{measured}, {by_count:.2f}x by evaluations" if by_count else measured


def _table(evaluations: list[dict[str, Any]]) -> list[str]:
    """One row an evaluation; score columns are those that occur, each beside its limit where it has one."""
    names = list(dict.fromkeys(name for e in evaluations for name in e["scores"]))
    if not evaluations:
        return []
    head = [
        "step",
        "sigma",
        "",
        *[f"{n}/limit" if any(n in e["limits"] for e in evaluations) else n for n in names],
        "why",
    ]
    rows = [head]
    for e in evaluations:
        step = f"{e['step']}" if e["stage"] == 0 else f"{e['step']}.{e['stage']}"
        cells = [_cell(e["scores"].get(name), e["limits"].get(name)) for name in names]
        rows.append([step, _number(e["sigma"]), e["action"], *cells, e["reason"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _cell(score: float | None, limit: float | None) -> str:
    return _number(score) if limit is None else f"{_number(score)}/{_number(limit)}"


Where = tuple[Any, Any, Any]
"""Prompt, sampling node, number in the list that the node runs over."""


def where(run: Mapping[str, Any]) -> Where:
    return (run["prompt"], run["node"], run.get("item", 0))


class RunBook:
    """The newest finished traces of this process, so many of each sampling node in each prompt. The only mutable object
    beside the session; safe across threads.
    """

    def __init__(self, size: int = 48, nodes: int = 64) -> None:
        self._size, self._nodes = size, nodes
        self._traces: OrderedDict[Where, deque[Trace]] = OrderedDict()
        self._counts: Counter[Where] = Counter()
        self._said: deque[tuple[Any, Any, str]] = deque(maxlen=nodes)
        self._lock = threading.Lock()

    def publish(self, trace: Trace) -> None:
        """Add a finished trace; `run.index` becomes its number among the runs of the same prompt and node."""
        with self._lock:
            place = where(trace["run"])
            trace["run"]["index"] = self._counts[place]
            self._counts[place] += 1
            self._traces.setdefault(place, deque(maxlen=self._size)).append(trace)
            self._traces.move_to_end(place)
            while len(self._traces) > self._nodes:
                oldest, _ = self._traces.popitem(last=False)
                del self._counts[oldest]

    def newest(self, wanted: Callable[[Trace], bool]) -> Trace | None:
        """The newest trace that `wanted` accepts, or None: of the node that ran last, its last run."""
        with self._lock:
            found = (trace for runs in reversed(self._traces.values()) for trace in reversed(runs))
            return next((trace for trace in found if wanted(trace)), None)

    def beside(self, trace: Trace) -> list[Trace]:
        """All runs of the same prompt, node and item that are remembered, oldest first."""
        with self._lock:
            return list(self._traces.get(where(trace["run"]), ()))

    def unheard(self, run: Mapping[str, Any], sentence: str) -> bool:
        """Whether a node has not said this yet in this prompt (numbers aside); from now on it has. Outside a prompt all
        is new.
        """
        if run["prompt"] is None:
            return True
        with self._lock:
            said = (run["prompt"], run["node"], re.sub(r"\d+|s\b", "", sentence))
            if said in self._said:
                return False
            self._said.append(said)
            return True

    def __len__(self) -> int:
        return sum(len(runs) for runs in self._traces.values())


def together(traces: Sequence[Trace]) -> Trace:
    """The runs of one node as one: evaluations in order, sums, and every sentence once. One run stays as it is."""
    newest = traces[-1]
    if len(traces) == 1:
        return newest
    evaluations = [e for trace in traces for e in trace["evaluations"]]
    counted = [name for trace in traces for name in trace["counted"]]
    states = [trace["state"] for trace in traces]
    return {
        **newest,
        "runs": len(traces),
        "state": next((state for state in states if state != "done"), "done"),
        "steps": sum(trace["steps"] for trace in traces),
        "evaluations": evaluations,
        **{action: sum(trace[action] for trace in traces) for action in (COMPUTED, SKIPPED, PARTIAL)},
        "speedup": _speedup_of(evaluations),
        "cache_bytes": max(trace["cache_bytes"] for trace in traces),
        "notes": list(dict.fromkeys(note for trace in traces for note in trace["notes"])),
        "counted": {name: sum(trace["counted"].get(name, 0) for trace in traces) for name in dict.fromkeys(counted)},
    }
