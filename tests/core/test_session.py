"""The engine on toy lanes: decisions, histories, lanes, reads; no model and no host."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core import track as tracks
from cache_core.coefficients import IDENTITY, Calibration
from cache_core.history import History
from cache_core.methods.freqca import freqca
from cache_core.methods.spectralcache import spectralcache
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder, RunBook, empty, report, speedup, summary, together
from cache_core.track import REST, Facts, LaneKey, Track
from cache_core.types import CacheError, Feature, Method, Probe, Schedule, Step

CPU = torch.device("cpu")
ALWAYS = {"threshold": 10.0, "tads_min": 1, "tads_max": 1, "max_consecutive": 2, "gamma_low": 1000, "gamma_high": 1000}
FLAT = Calibration("flat", (0.0,), 1.0, False, "modulated", (), "test")


def session(method: Method, sigmas: list[float], recorder: Recorder | None = None) -> Session:
    return Session(method, Schedule(tuple(sigmas), flow_noise), recorder or Recorder("", {}, "", "", len(sigmas) - 1))


class Toy:
    """Drives a session. A feature is its lane's number + 100 x step: what comes back tells where it is from."""

    def __init__(self, steps: int = 12, method: Method | None = None, **params: Any) -> None:
        self.method = method or spectralcache(**{**ALWAYS, **params})
        self.sigmas = [1 - i / steps for i in range(steps + 1)]
        self.recorder = Recorder(self.method.name, {}, "toy", "trunk", steps)
        self.session = session(self.method, self.sigmas, self.recorder)
        (self.track,) = self.session.tracks
        self.predicted: list[dict[str, float]] = []

    def evaluate(
        self,
        step: int,
        calls: list[list[str]],
        sigma: float | None = None,
        shape: tuple[int, ...] = (4, 8),
        level: float = 1.0,
    ) -> list[bool]:
        """One evaluation of several model calls, each of several lanes; returns which calls were skipped."""
        self.session.begin(torch.tensor([self.sigmas[step] if sigma is None else sigma]))
        skipped = []
        for names in calls:
            call = self.session.open([LaneKey(name) for name in names], [slice(i, i + 1) for i in range(len(names))])
            batch = torch.full((len(names), *shape), level)
            facts = Facts(shape, batch.dtype, CPU)
            skip = self.track.enter(call, facts, lambda rows, b=batch: Probe(b[rows]), FLAT)
            if skip:
                out = self.track.predict(call)
                self.track.leave_out(call)
                self.predicted.append({name: float(out[i].mean()) for i, name in enumerate(names)})
            else:
                values = [100.0 * step + ord(name[0]) for name in names]
                self.track.store(call, torch.stack([torch.full(shape, value) for value in values]))
            skipped.append(skip)
        self.session.end()
        return skipped

    @property
    def actions(self) -> list[str]:
        return [record.action for record in self.recorder.records]


def test_each_lane_gets_its_own_feature_back() -> None:
    toy = Toy()
    for step in range(12):
        toy.evaluate(step, [["a", "b"]])
    assert toy.predicted[0] == {"a": ord("a"), "b": ord("b")}
    assert toy.predicted[-1] == {"a": 900 + ord("a"), "b": 900 + ord("b")}


@pytest.mark.parametrize("calls", [[["a", "b"]], [["a"], ["b"]]])
def test_batched_and_split_lanes_get_the_same(calls: list[list[str]]) -> None:
    toy = Toy()
    for step in range(12):
        toy.evaluate(step, calls)
    assert toy.actions == ["computed", "skipped", "skipped"] * 3 + ["computed", "skipped", "computed"]
    assert {name: value for d in toy.predicted[-2:] for name, value in d.items()} == {"a": 997.0, "b": 998.0}


def test_a_repeated_conditioning_is_a_lane_of_its_own() -> None:
    """Report 8: tiles, and further passes of a guider, are all forecast or all computed."""
    toy = Toy()
    toy.evaluate(0, [["a"]])
    assert toy.evaluate(1, [["a"], ["a"]]) == [True, False]
    record = toy.recorder.records[-1]
    assert (record.action, record.work, record.calls, record.lanes) == ("partial", 0.5, 2, 2)
    assert toy.evaluate(2, [["a"], ["a"]]) == [True, True]
    assert toy.predicted[-2:] == [{"a": ord("a")}, {"a": 100 + ord("a")}]  # each its own


def test_a_new_lane_is_computed_without_changing_the_decision() -> None:
    toy = Toy(max_consecutive=1000)
    toy.evaluate(0, [["a"]])
    assert toy.evaluate(1, [["a"], ["b"]]) == [True, False]
    assert toy.recorder.records[-1].action == "partial"
    assert toy.evaluate(2, [["a"], ["b"]]) == [True, True]


def test_a_new_lane_in_the_same_batch_is_computed_with_all_of_it() -> None:
    """A batch cannot be skipped by halves; the decision stays what it was."""
    toy = Toy(max_consecutive=1000)
    toy.evaluate(0, [["a"]])
    assert toy.evaluate(1, [["a", "b"]]) == [False]
    record = toy.recorder.records[-1]
    assert (record.action, record.skip, record.work, record.consecutive) == ("partial", True, 1.0, 1)
    assert toy.evaluate(2, [["a", "b"]]) == [True]
    assert toy.predicted[-1] == {"a": 100 + ord("a"), "b": 100 + ord("b")}


@pytest.mark.parametrize("rest", range(1, REST + 2))
def test_a_lane_may_rest_but_not_for_ever(rest: int) -> None:
    """Guidance that turns to 1 and back: the negative's history survives a few evaluations without it."""
    toy = Toy(steps=20, max_consecutive=1000)
    toy.evaluate(0, [["a"], ["b"]])
    for step in range(rest):
        toy.evaluate(1 + step, [["a"]])
    assert toy.evaluate(1 + rest, [["a"], ["b"]]) == [True, rest <= REST]


@pytest.mark.parametrize("leaving", ["a", "b"])
def test_a_leader_that_rests_or_leaves_costs_nothing(leaving: str) -> None:
    """[a, b] by turns with one of them alone: whoever comes first decides, each lane by its own past."""
    toy = Toy(steps=20, max_consecutive=1000)
    toy.evaluate(0, [["a"], ["b"]])
    for step in range(1, 12):
        staying = "b" if leaving == "a" else "a"
        lanes = [["a"], ["b"]] if step % 2 else [[staying]]
        assert toy.evaluate(step, lanes) == [True] * len(lanes)


def test_a_new_first_lane_computes() -> None:
    toy = Toy(max_consecutive=1000)
    toy.evaluate(0, [["a"]])
    toy.evaluate(1, [["a"]])
    assert toy.evaluate(2, [["b"], ["a"]]) == [False, False]
    assert toy.recorder.records[-1].reason == "no history"
    assert toy.evaluate(3, [["b"], ["a"]]) == [True, True]


def test_a_changed_shape_computes() -> None:
    toy = Toy(max_consecutive=1000)
    toy.evaluate(0, [["a"]])
    toy.evaluate(1, [["a"]])
    assert toy.evaluate(2, [["a"]], shape=(6, 8)) == [False]
    assert toy.recorder.records[-1].reason == "shape changed"
    assert toy.evaluate(3, [["a"]], shape=(6, 8)) == [True]


def test_nothing_is_forecast_across_a_change() -> None:
    """Three features of history, then another shape: only what was computed behind the change counts."""
    toy = Toy(method=freqca(interval=2, warmup_steps=3, transform="none"))
    for step in range(5):
        toy.evaluate(step, [["a"]], shape=(4, 8))
    toy.evaluate(5, [["a"]], shape=(6, 8))
    assert toy.recorder.records[-1].reason == "shape changed"
    assert toy.evaluate(7, [["a"]], shape=(6, 8)) == [True]
    assert toy.predicted[-1] == {"a": 500 + ord("a")}


def test_an_evaluation_above_the_one_before_leaves_no_mark() -> None:
    toy = Toy(max_consecutive=1000)
    for step in range(4):
        toy.evaluate(step, [["a"]])
    assert toy.evaluate(4, [["a"]], sigma=0.9) == [False]
    assert toy.recorder.records[-1].reason == "sigma rose"
    assert toy.recorder.records[-1].consecutive == toy.recorder.records[-2].consecutive == 3
    toy.evaluate(5, [["a"]])
    assert toy.predicted[-1] == {"a": ord("a")}


def test_after_a_rise_the_change_is_measured_from_before_it() -> None:
    toy = Toy(max_consecutive=1000)
    for step in range(3):
        toy.evaluate(step, [["a"]])
    toy.evaluate(3, [["a"]], sigma=0.9, level=5.0)
    toy.evaluate(4, [["a"]], level=1.5)
    assert toy.recorder.records[-1].scores["d"] == pytest.approx(0.5)


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=30, unique=True), st.data())
@settings(max_examples=100, deadline=None)
def test_steps_are_found_by_sigma(levels: list[float], data: Any) -> None:
    """The largest i <= T - 1 with sigmas[i] >= sigma (1 - 1e-4), else 0: against the definition read literally."""
    sigmas = [*sorted(levels, reverse=True), 0.0]
    sigma = data.draw(st.one_of(st.sampled_from(sigmas[:-1]), st.floats(0.0, 1.5)))
    method = spectralcache(**ALWAYS)
    run = session(method, sigmas)
    candidates = [i for i in range(len(sigmas) - 1) if sigmas[i] >= sigma * (1 - 1e-4)]
    assert run.locate(sigma).index == (candidates[-1] if candidates else 0)
    again = run.locate(sigma)
    assert again.stage == 1 and again.index <= again.position <= again.index + 1


def test_evaluations_between_two_steps_have_a_position_between_them() -> None:
    """dpm_2 evaluates twice in a step: a method that counts in steps must not see the same place twice."""
    run = session(spectralcache(**ALWAYS), [1.0, 0.8, 0.5, 0.0])
    positions = [run.locate(sigma).position for sigma in (1.0, 0.9, 0.8, 0.65, 0.5, 0.25)]
    assert positions == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])


def test_history_falls_strictly_and_replaces_within_tolerance() -> None:
    history = History(5)
    for step, sigma in enumerate((1.0, 0.8, 0.8 * (1 - 0.5e-4), 0.6, 0.4)):
        history = history.push(Feature(Step(step, 5, sigma), torch.tensor(float(step)), {"slope": torch.zeros(1)}))
    assert [entry.at.index for entry in history.entries] == [0, 2, 3, 4]
    shorter = History(2, history.entries).push(Feature(Step(5, 5, 0.3), torch.zeros(1)))
    assert [entry.at.index for entry in shorter.entries] == [4, 5]
    assert [entry.at.sigma for entry in history.entries] == sorted((e.at.sigma for e in history.entries), reverse=True)
    assert [bool(entry.learned) for entry in history.entries] == [False, False, False, True]  # the newest one's alone


def test_one_read_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = tracks._read

    def counted(figures: dict[str, torch.Tensor], *others: Any) -> Any:
        reads.append(len(figures))
        return read(figures, *others)

    monkeypatch.setattr(tracks, "_read", counted)
    toy = Toy()
    for step in range(12):
        toy.evaluate(step, [["a"], ["b"], ["c"]])
    assert len(reads) == 12 and max(reads) == 7  # sigma, d, low, high, consecutive, rescaled, distance


def test_the_state_of_the_method_is_float64_where_the_device_has_it() -> None:
    toy = Toy()
    for step in range(3):
        toy.evaluate(step, [["a"]])
    assert set(toy.track._ledger) == {"consecutive", "distance"}
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in toy.track._ledger.values())


def test_without_float64_the_same_read_feeds_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS: figures come over in one read and the rest happens on the CPU, with the same decisions."""
    expected = Toy(threshold=0.5)
    for step in range(12):
        expected.evaluate(step, [["a"]])

    class Elsewhere:
        """A device that is not the tensors' own, so that the engine takes the path of a device without float64."""

        type = "cpu"

        def __ne__(self, other: object) -> bool:
            return True

    made: list[Any] = []
    scalar = tracks._scalar

    def on_cpu(value: float, home: Any) -> torch.Tensor:
        made.append(value)
        return scalar(value, CPU)

    monkeypatch.setattr(Track, "_home", lambda self, device: Elsewhere())
    monkeypatch.setattr(tracks, "_scalar", on_cpu)
    toy = Toy(threshold=0.5)
    for step in range(12):
        toy.evaluate(step, [["a"]])
    assert made
    assert toy.actions == expected.actions
    assert [r.scores for r in toy.recorder.records] == [r.scores for r in expected.recorder.records]


def test_a_thousand_runs_keep_nothing() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        kept.append(weakref.ref(copy))
        return copy

    for _ in range(1000):
        toy = Toy(steps=6)
        toy.session.keep = keep
        for step in range(6):
            toy.evaluate(step, [["a"]])
        toy.session.close()
        assert toy.session.bytes() == 0
        del toy
    gc.collect()
    assert len(kept) > 10_000 and not any(ref() is not None for ref in kept)


def test_a_method_without_a_rule_is_refused() -> None:
    with pytest.raises(CacheError, match="no rule"):
        session(Method("empty", ()), [1.0, 0.0])


# the trace ------------------------------------------------------------------------------------------------------------


def test_speedup_is_the_papers_of_design() -> None:
    toy = Toy(steps=6)
    for step in range(6):
        toy.evaluate(step, [["a"]])
    records = toy.recorder.records
    assert [r.action[0] for r in records] == list("csscsc")
    for record, seconds in zip(records, (50.0, 1.0, 1.0, 10.0, 2.0, 12.0), strict=True):
        record.seconds = seconds
    assert speedup(records)["evaluations"] == 2.0
    assert speedup(records)["wall"] == pytest.approx(5 * 11.0 / 26.0)  # the first evaluation left out of both


def ran(node: str, steps: int, item: int = 0) -> dict[str, Any]:
    return {**empty(), "run": {"prompt": "p", "node": node, "index": 0, "item": item}, "steps": steps}


def test_the_run_book_keeps_the_newest_runs_of_every_node() -> None:
    """Report 11: forty tiles of one node do not push out the run of another."""
    book = RunBook(size=16, nodes=3)
    for i in range(20):
        book.publish(ran("a" if i % 2 else "b", i))
    newest = book.newest(lambda trace: trace["run"]["node"] == "b")
    assert newest is not None and (newest["steps"], newest["run"]["index"]) == (18, 9)
    for tile in range(40):
        book.publish(ran("tiles", tile))
    assert len(book) == 10 + 10 + 16
    assert [trace["steps"] for trace in book.beside(ran("tiles", 0))] == list(range(24, 40))
    assert book.newest(lambda trace: trace["run"]["node"] == "b") is newest
    for item in range(2):
        book.publish(ran("list", item, item))
    assert book.newest(lambda trace: trace["run"]["node"] == "b") is None  # the node that ran longest ago
    assert book.newest(lambda trace: False) is None


def test_a_node_says_a_thing_once_a_prompt() -> None:
    """Report 10: twenty runs of one step are one sentence, whatever its numbers."""
    book, run = RunBook(), {"prompt": "p", "node": "a"}
    assert book.unheard(run, "1 step leaves nothing") and not book.unheard(run, "3 steps leave nothing")
    assert book.unheard(run, "another sentence")
    assert book.unheard({**run, "prompt": "q"}, "1 step leaves nothing")
    assert all(book.unheard({"prompt": None, "node": None}, "outside") for _ in range(2))


def test_runs_of_one_node_are_one_report() -> None:
    runs = []
    for steps in (6, 12):
        toy = Toy(steps=steps)
        for step in range(steps):
            toy.evaluate(step, [["a"]])
        toy.recorder.note("a sentence")
        runs.append(toy.recorder.finish("done", {"prompt": "p", "node": "a", "index": 0}))
    whole = together(runs)
    assert len(whole["evaluations"]) == 18 == whole["computed"] + whole["skipped"]
    assert (whole["skipped"], whole["notes"]) == (runs[0]["skipped"] + runs[1]["skipped"], ["a sentence"])
    assert "2 runs" in report(whole) and together(runs[:1]) is runs[0]


def test_the_report_of_a_run_and_of_none() -> None:
    toy = Toy()
    for step in range(12):
        toy.evaluate(step, [["a"]])
    trace = toy.recorder.finish("done", {"prompt": None, "node": None, "index": 0})
    text = report(trace)
    assert summary(trace) in text and "7 skipped" in text
    assert "first step (1)" in text and "consecutive limit (3)" in text
    assert len(text.splitlines()) > 12
    assert "0 steps" in report(empty())


# hygiene --------------------------------------------------------------------------------------------------------------


def test_cache_core_needs_nothing_of_the_host() -> None:
    """Imports everything with comfy, folder_paths, nodes and server blocked."""
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys\n"
        "for name in ('comfy', 'comfy_api', 'folder_paths', 'nodes', 'server'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "import cache_core\n"
        "assert 'spectralcache' in cache_core.methods()\n"
        "assert cache_core.architecture_of(object()) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pack_is_harmless_without_comfyui() -> None:
    root = Path(__file__).resolve().parents[2]
    code = f"import runpy; runpy.run_path({str(root / '__init__.py')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_identity_has_a_unit_of_its_own() -> None:
    assert (IDENTITY.polynomial, IDENTITY.unit) == ((), 0.25)
