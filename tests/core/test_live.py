"""The live text: its words from hand-made runs, how often it is sent, and that nothing it meets gets out."""

import importlib
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


# the words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorder", "words"),
    [
        (run("c"), "0/1 skipped"),
        (run("ccc", estimate=0.5), "0/3 skipped"),
        (run("ccsccs"), "2/6 skipped · 1.5x"),
        (run("cscs", estimate=0.0084), "2/4 skipped · 2.0x · est. error 0.8 %"),
        (run("cscs", estimate=float("nan")), "2/4 skipped · 2.0x"),
        (run("cspc"), "1/4 skipped, 1 in part · 1.6x"),
        (run("cccc", stood_down=("another cache",)), "stood down: another cache"),
        (run("cscc", stood_down=("a remark", "caching failed")), "1/4 skipped · 1.3x · stood down: caching failed"),
    ],
)
def test_the_run_so_far(recorder: Any, words: str) -> None:
    assert live.progress(recorder) == words


def test_the_issues_example() -> None:
    recorder = run("c" + "cs" * 11 + "ccccc", estimate=0.008)
    assert len(recorder.records) == 28
    assert live.outcome(recorder, "done", finished(recorder)) == "11/28 skipped · 1.6x · est. error 0.8 %"


def test_the_final_figure_is_the_measured_one() -> None:
    recorder = run("ccsccs")
    assert live.outcome(recorder, "done", finished(recorder, wall=1.27)) == "2/6 skipped · 1.3x"
    assert live.outcome(recorder, "done", None) == "2/6 skipped · 1.5x"  # no trace: by work, as before


@pytest.mark.parametrize("state", ["interrupted", "error"])
def test_a_run_that_did_not_end_says_only_that(state: str) -> None:
    recorder = run("ccs")
    assert live.outcome(recorder, state, recorder.finish(state, {})) == state
    assert live.outcome(recorder, state, None) == state


@pytest.mark.parametrize(
    ("recorder", "words"),
    [
        (run("cccc", "FDC high band"), "nothing skipped: FDC high band"),
        (run("cc"), "nothing skipped"),
        (run(""), "nothing skipped"),
        (
            run("cccc", stood_down=("4 steps leave nothing safe to skip",)),
            "stood down: 4 steps leave nothing safe to skip",
        ),
    ],
)
def test_a_run_without_a_skip_says_why(recorder: Any, words: str) -> None:
    assert live.outcome(recorder, "done", finished(recorder, wall=1.02)) == words


def test_a_long_reason_is_cut() -> None:
    text = live.progress(run("cc", stood_down=("word " * 200,)))
    assert len(text) <= live.LONGEST_REASON + len("stood down: ") and text.endswith("…")


# how often ------------------------------------------------------------------------------------------------------------


def sampled(seconds: float, evaluations: int) -> list[tuple[float, str]]:
    """(when, text) of a run whose evaluations take `seconds` each."""
    clock, sent = Clock(), []
    recorder = run("")
    shown = live.Live(recorder, lambda text: sent.append((clock.now, text)), clock)
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
    assert sent[0][1] == "0/1 skipped"
    last = f"/{evaluations} skipped" if evaluations > 2 else "nothing skipped"
    assert last in sent[-1][1]
    if seconds >= live.INTERVAL and evaluations > 2:
        assert len({text for _, text in sent}) >= evaluations - 1  # slow enough: each evaluation is shown


def test_the_same_text_is_not_sent_again() -> None:
    clock, sent = Clock(), []
    recorder = run("cccc", stood_down=("why",))
    shown = live.Live(recorder, sent.append, clock)
    for _ in range(5):
        clock.now += 1
        shown.step()
    shown.end("done", finished(recorder))
    assert sent == ["stood down: why"]


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


def server(**parts: Any) -> ModuleType:
    module = ModuleType("server")
    module.PromptServer = type("PromptServer", (), {"instance": type("Instance", (), parts)()})  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("module", "node"),
    [
        (None, "4"),
        (ModuleType("server"), "4"),  # a library of the same name
        (server(client_id=None, send_progress_text=broken), "4"),  # no page
        (server(client_id="me", send_progress_text=broken), None),  # attached by a script
        (server(client_id="me"), "4"),  # a host without the utility
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


def test_the_page_is_the_submitting_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []

    def write(_: Any, text: str, node_id: str, sid: str | None = None) -> None:
        sent.append((text, node_id, sid))

    monkeypatch.setitem(sys.modules, "server", server(client_id="me", send_progress_text=write))
    monkeypatch.setattr(live, "_on_screen", lambda node_id: f"shown {node_id}")
    live.page("4")("hello")
    assert sent == [("hello", "shown 4", "me")]


# the report -----------------------------------------------------------------------------------------------------------


def test_the_report_shows_the_estimated_error() -> None:
    text = trace.report(finished(run("cscs", estimate=0.0084)))
    assert "estimated error 0.8 %" in text.splitlines()[0]
    assert "Estimated error: 0.8 %" in text
    assert "stimated error" not in trace.report(finished(run("cscs")))
    assert "stimated error" not in trace.report(finished(run("cccc", estimate=0.1)))
