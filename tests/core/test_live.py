"""The live view: what is told of hand-made runs, how often, to whom, and that nothing it meets gets out."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    """`nodes/live.py` with its relative imports, but without `nodes/__init__.py`, which imports ComfyUI."""
    for name, folder in (("spectralcache_live", ROOT), ("spectralcache_live.nodes", ROOT / "nodes")):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder)]
    return importlib.import_module("spectralcache_live.nodes.live")


live = load()
trace = importlib.import_module("spectralcache_live.cache_core.trace")
ACTIONS = {"c": ("computed", 1.0), "s": ("skipped", 0.0), "p": ("partial", 0.5)}


def run(
    actions: str, reasons: str = "distance", estimate: float | None = None, stood_down: tuple[str, ...] = ()
) -> Any:
    """A recorder after these evaluations: c computed, s skipped, p in part."""
    recorder = trace.Recorder("test", {}, "model", "trunk", len(actions))
    for i, letter in enumerate(actions):
        action, work = ACTIONS[letter]
        reason = "first step" if i == 0 else "last step" if i == len(actions) - 1 else reasons
        scores = {} if estimate is None else {"estimate": estimate if action != "computed" else 9.0}
        recorder.records.append(
            trace.Record(i, 0, 1.0, 1, 1, action, action != "computed", work, reason, scores, {}, 0)
        )
        recorder.watches.append(trace.Stopwatch(trace.torch.device("cpu")))
    for why in stood_down:
        recorder.stood_down = True
        recorder.note(why)
    return recorder


def finished(recorder: Any, wall: float | None = None) -> Any:
    done = recorder.finish("done", {})
    done["speedup"]["wall"] = wall
    return done


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# what is told ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorder", "figures"),
    [
        (run("c"), {"done": 1, "skipped": 0, "partial": 0, "faster": 1.0, "estimate": None}),
        (run("ccc", estimate=0.5), {"done": 3, "skipped": 0, "estimate": None}),
        (run("ccsccs"), {"done": 6, "skipped": 2, "faster": 1.5}),
        (run("cscs", estimate=0.0084), {"skipped": 2, "faster": 2.0, "estimate": 0.0084}),
        (run("cscs", estimate=float("nan")), {"skipped": 2, "estimate": None}),
        (run("cspc"), {"done": 4, "skipped": 1, "partial": 1, "faster": 1.6}),
    ],
)
def test_the_run_so_far(recorder: Any, figures: dict[str, Any]) -> None:
    told = live.progress(recorder)
    assert {name: told[name] for name in figures} == figures
    assert (told["state"], told["steps"], told["method"]) == ("sampling", len(recorder.records), "test")


def test_the_final_figure_is_the_measured_one() -> None:
    recorder = run("ccsccs")
    ended = live.outcome(recorder, "done", finished(recorder, wall=1.27))
    assert (ended["state"], ended["faster"]) == ("done", 1.27)
    assert live.outcome(recorder, "done", None)["faster"] == 1.5  # no trace: by work, as before


@pytest.mark.parametrize("state", ["interrupted", "error"])
def test_a_run_that_did_not_end_says_so(state: str) -> None:
    recorder = run("ccs")
    assert live.outcome(recorder, state, recorder.finish(state, {}))["state"] == state
    assert live.outcome(recorder, state, None)["state"] == state
    stopped = run("ccs", stood_down=("why",))
    assert live.outcome(stopped, state, None)["state"] == state


def test_a_run_that_stood_down_says_why() -> None:
    recorder = run("cccc", stood_down=("a remark", "another cache"))
    ended = live.outcome(recorder, "done", finished(recorder))
    assert (ended["state"], ended["notes"][-1]) == ("stood down", "another cache")


def test_an_evaluation_is_told_with_its_scores_limits_and_reason() -> None:
    scores, limits = {"distance": 0.123456, "low": float("nan")}, {"distance": 0.6, "consecutive": 2.0}
    record = trace.Record(3, 1, 0.87654321, 1, 1, "computed", False, 1.0, "threshold", scores, limits, 1)
    told = live.evaluation(record)
    assert told == [
        *("computed", 3, 1, 0.8765, "threshold"),
        {"distance": [0.1235, 0.6], "low": [None, None], "consecutive": [None, 2.0]},
    ]
    json.dumps(told, allow_nan=False)


# how often ------------------------------------------------------------------------------------------------------------


def sampled(seconds: float, evaluations: int) -> list[tuple[float, dict[str, Any]]]:
    """(when, message) of a run whose evaluations take `seconds` each."""
    clock, sent = Clock(), []
    recorder = run("")
    shown = live.Live(recorder, lambda message: sent.append((clock.now, message)), clock)
    for record in run("c" + "cs" * evaluations).records[:evaluations]:
        clock.now += seconds
        recorder.records.append(record)
        recorder.watches.append(trace.Stopwatch(trace.torch.device("cpu")))
        shown.step()
    shown.end("done", recorder.finish("done", {}))
    return sent


@pytest.mark.parametrize("seconds", [0.001, 0.07, 0.19, 0.25, 0.9, 30.0])
@pytest.mark.parametrize("evaluations", [1, 2, 7, 100])
def test_five_a_second_at_most_the_first_and_the_last_always(seconds: float, evaluations: int) -> None:
    sent = sampled(seconds, evaluations)
    times = [when for when, _ in sent]
    assert max(sum(start <= when < start + 1 for when in times) for start in times) <= 5
    assert times[0] == 100.0 + seconds
    assert (sent[0][1]["done"], sent[0][1]["state"]) == (1, "sampling")
    assert (sent[-1][1]["done"], sent[-1][1]["state"]) == (evaluations, "done")
    if seconds >= live.INTERVAL:
        assert len(sent) == evaluations + 1  # slow enough: each evaluation is shown when it ends


@pytest.mark.parametrize("seconds", [0.07, 0.9])
def test_a_page_that_puts_the_messages_together_has_every_evaluation(seconds: float) -> None:
    put: list[Any] = []
    sent = [message for _, message in sampled(seconds, 40)]
    for message in sent[:-1]:
        assert message["first"] == len(put), "only what is new"
        put += message["evaluations"]
        assert len(put) == message["done"]
    last = sent[-1]
    assert (last["first"], len(last["evaluations"])) == (0, 40), "all of it again, for a page that came late"
    assert last["evaluations"][: len(put)] == put
    assert len({message["run"] for message in sent}) == 1


def test_a_very_long_run_is_not_sent_twice() -> None:
    last = sampled(30.0, live.ALL_AGAIN + 5)[-1][1]
    assert last["first"] == live.ALL_AGAIN + 5 and last["evaluations"] == []


def test_two_runs_have_two_names() -> None:
    assert live.Live(run("c"), None).name != live.Live(run("c"), None).name


# it never costs a run -------------------------------------------------------------------------------------------------


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected")


@pytest.mark.parametrize("part", ["send", "clock", "records"])
def test_nothing_gets_out(part: str) -> None:
    recorder = run("ccs")
    shown = live.Live(recorder, broken if part == "send" else [].append, broken if part == "clock" else Clock())
    if part == "records":
        recorder.records.append(None)
    shown.step()
    shown.end("done", {})


PAGE = {"me": {"feature_flags": {"supports_preview_metadata": True, "supports_manager_v4_ui": True}}}


def server(**parts: Any) -> ModuleType:
    module = ModuleType("server")
    known = {"client_id": "me", "sockets_metadata": PAGE, **parts}
    module.PromptServer = type("PromptServer", (), {"instance": type("Instance", (), known)()})  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("module", "node"),
    [
        (None, "4"),
        (ModuleType("server"), "4"),  # a library of the same name
        (server(client_id=None, send_sync=broken), "4"),  # nobody is named
        (server(send_sync=broken), None),  # attached by a script
        (server(send_sync=broken, sockets_metadata={}), "4"),  # it has gone
        (server(send_sync=broken, sockets_metadata={"me": {"feature_flags": {}}}), "4"),  # a client of the API
        (
            server(send_sync=broken, sockets_metadata={"me": {"feature_flags": {"supports_preview_metadata": True}}}),
            "4",
        ),
    ],
)
def test_without_a_page_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, module: Any, node: str | None) -> None:
    if module is None:
        monkeypatch.delitem(sys.modules, "server", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(live, "_on_screen", lambda node_id: node_id)
    assert live.page(node) is None
    clock: Callable[[], float] = broken
    live.Live(run("ccs"), None, clock).step()  # not even the clock is read


@pytest.mark.parametrize("workflow", [None, "5f0f8f4e"])
def test_the_page_is_the_submitting_one_and_knows_node_and_workflow(
    monkeypatch: pytest.MonkeyPatch, workflow: str | None
) -> None:
    sent: list[tuple[Any, ...]] = []
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}} if workflow else {}
    queue = type("Queue", (), {"get_current_queue_volatile": lambda _: ([(0, "prompt", {}, extra)], [])})()
    module = server(send_sync=lambda _, *message: sent.append(message), prompt_queue=queue)
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(live, "_on_screen", lambda node_id: f"shown {node_id}")
    live.page("4")({"done": 1})
    assert sent == [(live.EVENT, {"node": "shown 4", "workflow": workflow, "done": 1}, "me")]


# the report -----------------------------------------------------------------------------------------------------------


def test_the_report_shows_the_estimated_error() -> None:
    text = trace.report(finished(run("cscs", estimate=0.0084)))
    assert "estimated error 0.8 %" in text.splitlines()[0]
    assert "Estimated error: 0.8 %" in text
    assert "stimated error" not in trace.report(finished(run("cscs")))
    assert "stimated error" not in trace.report(finished(run("cccc", estimate=0.1)))
