"""What goes wrong: our own code, the model's numbers, other caches, hosts that have changed, a thousand runs."""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

FAST = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
STEPS = 12


# our own failures -----------------------------------------------------------------------------------------------------


@pytest.mark.claim("Complaints about caching packs", "a failing cache breaks the run, or samples it a second time")
@pytest.mark.parametrize("place", ["begin", "open", "enter", "predict", "store", "end"])
@pytest.mark.parametrize("error", [RuntimeError("injected"), torch.OutOfMemoryError("injected")])
def test_our_failure_costs_the_cache_and_never_the_picture(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str, error: Exception
) -> None:
    plain = host.sample(host.model, steps=STEPS)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    owner = host.core.Session if hasattr(host.core.Session, place) else host.track
    monkeypatch.setattr(owner, place, fail)
    out = host.sample(host.apply(**FAST), steps=STEPS)
    trace = host.trace()
    assert torch.equal(out, plain)
    assert trace["state"] == "stood down"
    assert len(trace["evaluations"]) == (0 if place in ("begin", "end") else STEPS)  # those two make the records
    assert sum("injected" in note for note in trace["notes"]) == 1
    assert sum("injected" in record.getMessage() for record in caplog.records if record.levelname == "WARNING") == 1


def test_a_failure_in_the_middle_of_the_run_keeps_what_was_sampled(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = host.track.predict
    calls = 0

    def fail_third(self: Any, call: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("injected")
        return predict(self, call, *rest)

    monkeypatch.setattr(host.track, "predict", fail_third)
    out = host.sample(host.apply(**FAST), steps=STEPS)
    trace = host.trace()
    assert torch.isfinite(out).all()
    assert (trace["site"], len(trace["evaluations"])) == ("model", STEPS) and trace["skipped"] > 2
    assert sum("whole model calls are skipped instead" in note for note in trace["notes"]) == 1, trace["notes"]


# the model's numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_returns_rubbish_once_is_computed_again(host: Any, value: float) -> None:
    with host.spoiled(value):
        host.sample(host.apply(threshold=0.6), steps=STEPS)
    evaluations = host.trace()["evaluations"]
    assert host.trace()["state"] == "done"
    assert [e["action"] for e in evaluations[3:5]] == [
        "computed",
        "computed",
    ]  # the value, and the one compared with it
    assert evaluations[3]["scores"]["d"] is None


# foreign forwards and recorded allocations ----------------------------------------------------------------------------


@pytest.mark.claim(
    "Complaints about caching packs",
    "packs that replace the forward (PuLID and others): whole model calls are skipped instead",
)
def test_a_forward_without_hooks_falls_back_to_whole_model_calls(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    """PuLID-like packs replace `forward_orig`; their copy may know nothing of block hooks."""
    model = host.diffusion_model
    original = type(model).forward_orig

    def without_hooks(self: Any, *args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> Any:
        return original(self, *args, transformer_options={**transformer_options, "patches_replace": {}}, **kwargs)

    model.forward_orig = types.MethodType(without_hooks, model)
    try:
        plain = host.sample(host.model, steps=STEPS)
        assert torch.equal(host.sample(host.apply(threshold=1e-6), steps=STEPS), plain)
        caplog.clear()
        host.sample(host.apply(**FAST), steps=STEPS)
    finally:
        del model.forward_orig
    trace = host.trace()
    assert (trace["site"], trace["state"]) == ("model", "done")
    assert trace["skipped"] >= 6
    assert trace["evaluations"][0]["reason"] == "blocks not reached"
    assert len([r for r in caplog.records if "block hooks" in r.getMessage()]) == 1


class RecordingHost:
    """A stand-in for a newer `comfy.model_prefetch`: while a block records, nothing of ours may allocate memory to
    keep.
    """

    def __init__(self) -> None:
        self.MALLOC_GRAPHS: dict[int, Any] = {}
        self.paused = 0
        self.pauses = 0

    @contextlib.contextmanager
    def pause_malloc_graph(self, sync: bool = False) -> Iterator[None]:
        self.paused += 1
        self.pauses += 1
        try:
            yield
        finally:
            self.paused -= 1


@pytest.fixture
def recording_host(host: Any, monkeypatch: pytest.MonkeyPatch) -> RecordingHost:
    stand_in = RecordingHost()
    monkeypatch.setattr(host.comfy, "model_prefetch", stand_in, raising=False)
    return stand_in


def test_everything_kept_is_made_while_recording_is_paused(
    host: Any, recording_host: RecordingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    clone = torch.Tensor.clone
    keep = host.host.keep

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        def traced(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            made.append(recording_host.paused)
            return clone(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, "clone", traced)
        try:
            return keep(tensor)
        finally:
            monkeypatch.setattr(torch.Tensor, "clone", clone)

    monkeypatch.setattr(host.host, "keep", watched)
    host.sample(host.apply(**FAST), steps=STEPS, cfg=3.0)
    assert made and all(paused == 1 for paused in made)
    assert recording_host.pauses == len(made)


def test_every_tensor_that_a_session_holds_came_from_keep(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocation rule: nothing else may outlive a forward."""
    from_keep: set[int] = set()
    alive: list[torch.Tensor] = []
    keep = host.host.keep

    def remembered(tensor: torch.Tensor) -> torch.Tensor:
        copy = keep(tensor)
        alive.append(copy)  # so that no id is used twice
        from_keep.add(id(copy))
        return copy

    held: list[int] = []
    end = host.core.Session.end

    def checked_end(self: Any) -> None:
        end(self)
        tensors = [t for track in self.tracks for t in (*track.tensors(), *track._ledger.values())]
        held.append(len(tensors))
        assert all(id(t) in from_keep for t in tensors)

    monkeypatch.setattr(host.host, "keep", remembered)
    monkeypatch.setattr(host.core.Session, "end", checked_end)
    host.sample(host.apply(**FAST), steps=STEPS, cfg=3.0)
    assert min(held) >= 8


@pytest.mark.claim(
    "Complaints about caching packs", "newer ComfyUI aborts when a cache outlives recorded memory (stand-in)"
)
def test_an_open_recording_moves_the_run_to_whole_model_calls(host: Any, recording_host: RecordingHost) -> None:
    """Blocks may not be skipped while their allocations are recorded; outside the forward they may."""
    import threading

    def record(executor: Any, *args: Any, **kwargs: Any) -> Any:
        recording_host.MALLOC_GRAPHS[threading.get_ident()] = types.SimpleNamespace(_comfy_active=True)
        try:
            return executor(*args, **kwargs)
        finally:
            recording_host.MALLOC_GRAPHS.clear()

    def recorded(model: Any) -> Any:
        patched = model.clone()
        patched.add_wrapper_with_key("diffusion_model", "recording", record)
        return patched

    plain = host.sample(recorded(host.model), steps=STEPS)
    assert torch.equal(host.sample(recorded(host.apply(threshold=1e-6)), steps=STEPS), plain)
    _, blocks = host.counted(lambda: host.sample(recorded(host.apply(**FAST)), steps=STEPS))
    trace = host.trace()
    assert (trace["site"], trace["state"]) == ("model", "done")
    assert trace["evaluations"][0]["reason"] == "allocations recorded"
    assert trace["skipped"] >= 6 and blocks == trace["computed"] * host.blocks


# other caches ---------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Complaints about caching packs", "two caches on one model: ours stands down (EasyCache, LazyCache)")
@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("order", ["ours first", "ours last"])
def test_another_cache_on_the_model_makes_ours_stand_down(
    host: Any, caplog: pytest.LogCaptureFixture, node: str, order: str
) -> None:
    import comfy_extras.nodes_easycache as easycache

    def other(model: Any) -> Any:
        return getattr(easycache, node).execute(model, 0.0, 0.15, 0.95, False)[0]

    alone = host.sample(other(host.model), steps=STEPS)
    caplog.clear()
    model = other(host.apply(**FAST)) if order == "ours first" else host.apply(other(host.model), **FAST)
    assert torch.equal(host.sample(model, steps=STEPS), alone)
    trace = host.trace()
    assert (trace["state"], trace["skipped"]) == ("stood down", 0)
    assert "another cache" in trace["notes"][0]
    assert len([r for r in caplog.records if "another cache" in r.getMessage()]) == 1


# hosts to come --------------------------------------------------------------------------------------------------------


def test_extra_arguments_of_a_future_host_are_passed_on(host: Any) -> None:
    seen: list[Any] = []

    class Executor:
        class_obj = host.model.model

        def __call__(self, *args: Any, **kwargs: Any) -> str:
            seen.append((args, kwargs))
            return "out"

    x, sigma = torch.zeros(1, 16, 4, 4), torch.ones(1)
    module = host.host
    assert module.predict_noise(Executor(), x, sigma, {}, 1, "new", extra=2) == "out"
    assert module.apply_model(Executor(), x, sigma, None, None, None, {"a": 1}, "new", extra=2) == "out"
    assert module.apply_model(Executor(), x, sigma, transformer_options={"a": 1}, extra=2) == "out"
    assert seen[0][0][2:] == ({}, 1, "new") and seen[0][1] == {"extra": 2}
    assert seen[1][0][5:] == ({"a": 1}, "new")
    assert seen[2][1] == {"transformer_options": {"a": 1}, "extra": 2}


@pytest.mark.claim(
    "Complaints about caching packs", "a ComfyUI update breaks the pack: it samples uncached with one warning"
)
@pytest.mark.parametrize("missing", ["sigmas", "sampler", "options"])
def test_a_host_that_has_changed_samples_uncached_with_one_warning(
    host: Any, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    class Executor:
        class_obj = types.SimpleNamespace()

        def __call__(self, *args: Any, **kwargs: Any) -> str:
            return "sampled"

    guider = types.SimpleNamespace() if missing == "sampler" else types.SimpleNamespace(model_patcher=host.model)
    sigmas = None if missing == "sigmas" else torch.linspace(1, 0, 9)
    extra: dict[str, Any] = {} if missing == "options" else {"model_options": {}}
    attachment = host.host.Attachment(host.spectralcache(), None)
    assert host.host.sampler_sample(attachment, Executor(), guider, sigmas, extra) == "sampled"
    assert len([r for r in caplog.records if r.levelname == "WARNING" and "could not start" in r.getMessage()]) == 1


@pytest.mark.parametrize("kind", ["SAMPLER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL"])
def test_a_host_without_one_of_our_hooks_samples_uncached_with_one_warning(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    plain = host.sample(host.model, steps=STEPS)
    with monkeypatch.context() as patch:
        patch.delattr(host.comfy.patcher_extension.WrappersMP, kind)
        model = host.apply(**FAST)
    assert torch.equal(host.sample(model, steps=STEPS), plain)
    assert len([r for r in caplog.records if "cannot be attached" in r.getMessage()]) == 1


@pytest.mark.claim(
    "Complaints about caching packs", "a ComfyUI update renames a model's inside: whole model calls are skipped instead"
)
def test_an_architecture_whose_inside_was_renamed_samples_on(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`img_mod` gone between the check and the call: the signal fails, the picture does not."""
    flux = type(host.core.architecture_of(host.diffusion_model))

    def renamed(self: Any, model: Any, img: Any, vec: Any) -> Any:
        raise AttributeError("'DoubleStreamBlock' object has no attribute 'img_mod'")

    monkeypatch.setattr(flux, "modulated", renamed)
    assert torch.isfinite(host.sample(host.apply(**FAST), steps=STEPS)).all()
    assert (host.trace()["state"], host.trace()["site"]) == ("done", "model")
    assert "img_mod" in host.trace()["notes"][0] and host.trace()["skipped"] >= 6


# a thousand runs ------------------------------------------------------------------------------------------------------


def census(host: Any) -> tuple[int, int, int]:
    """How many tensors, sessions and module hooks are alive."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.diffusion_model.modules())
    return kinds.count(torch.Tensor), kinds.count(host.core.Session), hooks


@pytest.mark.claim("Complaints about caching packs", "memory grows from run to run")
def test_many_runs_leave_nothing_behind(host: Any) -> None:
    """A hundred runs on one node output; a thousand of the session alone are in the core tests."""
    model = host.apply(**FAST)
    for _ in range(3):
        host.sample(model, steps=6, size=(4, 4))
    before = census(host)
    wrappers = repr(model.wrappers)
    for seed in range(100):
        host.sample(model, steps=6, size=(4, 4), seed=seed)
    after = census(host)
    assert after[0] <= before[0] + 2
    assert after[1:] == before[1:]
    assert repr(model.wrappers) == wrappers
    outside = [trace for trace in host.host.RUNS.beside(host.trace())]
    assert len(outside) == 48
