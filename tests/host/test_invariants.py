"""The invariants, on the real host with the small trained FLUX. Tests that take `caching` walk every method."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

SAMPLERS = ["euler", "ddim", "dpmpp_2m"]
FAST = {"threshold": 5.0, "max_consecutive": 2}
"""Skips two of three steps."""


def skipped(trace: dict[str, Any]) -> list[int]:
    return [e["step"] for e in trace["evaluations"] if e["action"] == "skipped"]


def calls(trace: dict[str, Any]) -> set[int]:
    """Model calls an evaluation, of those that made any."""
    return {e["calls"] for e in trace["evaluations"] if e["calls"]}


def decisions(trace: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(e["step"], e["stage"], e["action"], e["reason"]) for e in trace["evaluations"]]


# 1: attached but never skipping is bit-identical ----------------------------------------------------------------------


@pytest.mark.claim("Every method", "switched off, or refusing every step: bit-identical, with as many blocks run")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (3.0, 2)])
@pytest.mark.parametrize("gate", ["never", "refusing"])
def test_never_skipping_is_bit_identical(
    host: Any, caching: Any, sampler: str, cfg: float, batch: int, gate: str
) -> None:
    options = {"sampler": sampler, "cfg": cfg, "batch": batch, "steps": 8}
    plain, blocks = host.counted(lambda: host.sample(host.model, **options))
    ours, ours_blocks = host.counted(lambda: host.sample(getattr(caching, gate)(), **options))
    assert torch.equal(plain, ours)
    assert blocks == ours_blocks
    trace = host.trace()
    assert (trace["computed"], trace["skipped"], trace["state"]) == (8, 0, "done")
    assert (trace["cache_bytes"] > 0) == (gate == "refusing")  # recording fully on


@pytest.mark.parametrize("params", [{"threshold": 0.0}, {"max_consecutive": 0}])
def test_either_of_two_values_switches_it_off(host: Any, params: dict[str, float]) -> None:
    assert torch.equal(host.sample(host.apply(**params), steps=8), host.sample(host.model, steps=8))
    assert host.trace()["cache_bytes"] == 0


def test_off_installs_no_block_hook(host: Any) -> None:
    seen: list[Any] = []

    def spy(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args[5].get("patches_replace", {}))
        return executor(*args, **kwargs)

    for threshold in (0.0, 0.6):
        model = host.apply(threshold=threshold)
        model.add_wrapper_with_key("apply_model", "spy", spy)
        host.sample(model, steps=6)
    assert not any(seen[:6])
    assert all(len(replace["dit"]) == host.blocks for replace in seen[6:])


# 2: removed, the model is what it was ---------------------------------------------------------------------------------


@pytest.mark.claim("Complaints about caching packs", "state leaks: the effect stays after the node is gone")
def test_removed_after_cached_runs_is_bit_identical(host: Any, caching: Any) -> None:
    plain = host.sample(host.model)
    cached = host.sample(caching.fast())
    assert not torch.equal(plain, cached)
    assert torch.equal(host.sample(host.model), plain)
    assert torch.equal(host.sample(caching.fast()), cached)  # second use: nothing is left over from the first
    assert torch.equal(host.sample(host.model), plain)


@pytest.mark.claim(
    "Complaints about caching packs", "state leaks after an error, an interrupt or running out of memory"
)
@pytest.mark.parametrize(
    ("failure", "where"),
    [("error", "first block"), ("interrupt", "middle block"), ("out of memory", "last block"), ("error", "last block")],
)
def test_removed_after_a_failed_run_is_bit_identical(host: Any, caching: Any, failure: str, where: str) -> None:
    plain, cached = host.sample(host.model), host.sample(caching.fast())
    management = host.comfy.model_management
    kinds = {
        "error": RuntimeError("injected"),
        "interrupt": management.InterruptProcessingException(),
        "out of memory": torch.OutOfMemoryError("injected"),
    }
    blocks = [*host.diffusion_model.double_blocks, *host.diffusion_model.single_blocks]
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise kinds[failure]

    index = {"first block": 0, "middle block": host.blocks // 2, "last block": -1}[where]
    handle = blocks[index].register_forward_pre_hook(fail)
    try:
        with pytest.raises(type(kinds[failure])):
            host.sample(caching.fast())
    finally:
        handle.remove()
    assert host.trace()["state"] == ("interrupted" if failure == "interrupt" else "error")
    assert torch.equal(host.sample(host.model), plain)
    assert torch.equal(host.sample(caching.fast()), cached)


@pytest.mark.claim("Every method", "nothing is held after a run")
def test_nothing_is_held_after_a_run(host: Any, caching: Any, remains: Any) -> None:
    model = caching.fast()
    host.sample(model, cfg=3.0)
    gc.collect()
    assert len(remains.tensors) > 5 and len(remains.sessions) == 1
    assert [ref for ref in remains.tensors if ref() is not None] == []
    assert remains.sessions[0]() is None


def test_the_model_that_came_in_is_not_changed(host: Any, caching: Any) -> None:
    before = repr(host.model.model_options), dict(host.model.wrappers), dict(host.model.attachments)
    host.sample(caching.fast())
    assert (repr(host.model.model_options), dict(host.model.wrappers), dict(host.model.attachments)) == before


# 3: nothing kept aliases what is returned -----------------------------------------------------------------------------


@pytest.mark.claim(
    "Complaints about caching packs", "blurry pictures from a cache that aliases tensors the host writes into"
)
def test_writing_into_what_a_skip_returned_changes_nothing_later(host: Any) -> None:
    """The host adds ControlNet outputs in place to whatever a block returned."""

    clean = host.sample(host.apply(**FAST, gamma_low=1000, gamma_high=1000))
    final = host.diffusion_model.final_layer
    captured: list[torch.Tensor] = []

    def spoil(_: Any, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        captured.append(args[0])
        args[0].fill_(float("nan"))  # the trunk's output is used up; a cache that kept it by reference is poisoned now

    handle = final.register_forward_hook(spoil)
    try:
        spoiled = host.sample(host.apply(**FAST, gamma_low=1000, gamma_high=1000))
    finally:
        handle.remove()
    assert len(captured) == 12
    assert torch.equal(clean, spoiled)


# 4 and 7: lanes -------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Complaints about caching packs", "wrong residual where CFG is split into two calls")
@pytest.mark.parametrize(("sampler", "batch"), [("euler", 1), ("ddim", 2), ("dpmpp_2m", 1)])
def test_batched_and_split_conditionings_agree(
    host: Any, caching: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, batch: int
) -> None:
    options = {"cfg": 3.0, "batch": batch, "sampler": sampler}
    together = host.sample(caching.fast(), **options)
    first = host.trace()
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = host.sample(caching.fast(), **options)
    second = host.trace()
    assert calls(first) == {1} and calls(second) == {2}
    assert decisions(first) == decisions(second)
    assert torch.allclose(together, apart, atol=1e-3)


@pytest.mark.claim("Every method", "conditional and unconditional results do not mix")
def test_cond_and_uncond_do_not_mix(host: Any, caching: Any) -> None:
    """With the same conditioning on both sides CFG cancels, so a cached CFG run equals the cached run without it."""
    same = host.conditioning(1)
    alone = host.sample(caching.fast(), cfg=1.0, positive=same)
    guided = host.sample(caching.fast(), cfg=3.0, positive=same, negative=host.conditioning(1))
    assert torch.allclose(alone, guided, atol=2e-3)
    different = host.sample(caching.fast(), cfg=3.0, positive=same)
    assert not torch.allclose(alone, different, atol=2e-2)


def test_unequal_prompt_lengths_are_two_calls_of_one_decision(host: Any, caching: Any) -> None:
    host.sample(caching.fast(), cfg=3.0, negative=host.conditioning(2, tokens=5))
    trace = host.trace()
    assert {(e["calls"], e["lanes"]) for e in trace["evaluations"] if e["calls"]} == {(2, 2)}
    assert trace["skipped"] > 4 and (caching.halves or trace["partial"] == 0)


# 5: first and last step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [5, 6, 7, 8, 20])
def test_first_and_last_step_are_computed(host: Any, sampler: str, steps: int) -> None:
    host.sample(
        host.apply(threshold=10, max_consecutive=1000, gamma_low=1000, gamma_high=1000), sampler=sampler, steps=steps
    )
    trace = host.trace()
    assert skipped(trace) == list(range(1, steps - 1))
    assert [trace["evaluations"][i]["reason"] for i in (0, -1)] == ["first step", "last step"]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "heun"])
@pytest.mark.parametrize("steps", [5, 20])
def test_both_ends_are_computed_whatever_the_method(host: Any, caching: Any, sampler: str, steps: int) -> None:
    host.sample(caching.fast(), sampler=sampler, steps=steps, size=(8, 8))
    ends = [e["action"] for e in host.trace()["evaluations"] if e["step"] in (0, steps - 1)]
    assert set(ends) == {"computed"} and len(ends) >= 2


@pytest.mark.claim("Complaints about caching packs", "few-step models: nothing is skipped, and it is said")
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_too_few_steps_stand_down_with_a_note(host: Any, caching: Any, steps: int) -> None:
    plain = host.sample(host.model, steps=steps)
    assert torch.equal(host.sample(caching.fast(), steps=steps), plain)
    trace = host.trace()
    assert (trace["state"], trace["skipped"], trace["computed"]) == ("stood down", 0, steps)
    assert "nothing safe to skip" in trace["notes"][0]


# 8: the same decisions whatever ran before ----------------------------------------------------------------------------


@pytest.mark.claim("Complaints about caching packs", "the second run differs, or needs a restart")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 2), (3.0, 1)])
def test_decisions_repeat_whatever_ran_before(host: Any, caching: Any, sampler: str, cfg: float, batch: int) -> None:
    model = caching.fast()
    options = {"sampler": sampler, "cfg": cfg, "batch": batch}
    first = host.sample(model, **options)
    before = decisions(host.trace())
    host.sample(model, steps=7, size=(10, 6), seed=5)  # another size and schedule on the same node output
    host.sample(host.apply(threshold=2.0), batch=3 - batch)
    assert torch.equal(host.sample(model, **options), first)
    assert decisions(host.trace()) == before


# the trace tells the truth --------------------------------------------------------------------------------------------


@pytest.mark.claim(
    "Complaints about caching packs", "no way to see whether anything was skipped: the trace equals the blocks that ran"
)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (3.0, 2)])
def test_the_trace_agrees_with_the_blocks_that_ran(
    host: Any, caching: Any, sampler: str, cfg: float, batch: int
) -> None:
    _, blocks = host.counted(lambda: host.sample(caching.fast(), sampler=sampler, cfg=cfg, batch=batch))
    trace = host.trace()
    assert trace["skipped"] > 2
    assert trace["computed"] + trace["skipped"] + trace["partial"] == len(trace["evaluations"]) == 12
    if caching.halves:  # every block runs, with what it reuses: test_modules counts what ran in it
        assert blocks == 12 * host.blocks
        return
    assert blocks == trace["computed"] * host.blocks
    assert sum(e["work"] for e in trace["evaluations"]) * host.blocks == blocks


def test_memory_is_one_feature_and_one_modulated_input_per_lane(host: Any) -> None:
    host.sample(host.apply(**FAST), cfg=3.0, batch=2, size=(16, 24))
    tokens, width, rows, lanes = 8 * 12, host.diffusion_model.hidden_size, 2, 2
    one = tokens * width * rows * 4
    assert host.trace()["cache_bytes"] == pytest.approx(lanes * 2 * one, abs=1000)


# two nodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Graphs", "two Apply nodes in a chain: the later one counts")
def test_a_second_apply_replaces_the_first(host: Any) -> None:
    alone = host.sample(host.apply(**FAST))
    assert torch.equal(host.sample(host.apply(host.apply(threshold=0.2), **FAST)), alone)
    assert len(host.trace()["evaluations"]) == 12


def test_a_foreign_block_patch_runs_on_computed_steps_only(host: Any) -> None:
    calls = 0

    def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.02}

    patched = host.model.clone()
    patched.set_model_patch_replace(patch, "dit", "double_block", 1)
    plain = host.sample(patched)
    assert calls == 12
    assert torch.equal(host.sample(host.apply(patched, threshold=1e-6)), plain)
    calls = 0
    host.sample(host.apply(patched, **FAST))
    assert calls == host.trace()["computed"] < 12
