"""FreqCa on the real host: invariants, schedules, samplers, add-ons, grids of every shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

STEPS = 14
COMPUTED = [0, 1, 2, 6, 10, 13]
"""Interval 4 after three warm-up steps, and the last step."""


def computed(host: Any) -> list[int]:
    return [e["step"] for e in host.trace()["evaluations"] if e["action"] == "computed"]


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_never_skipping_is_bit_identical(host: Any, sampler: str, cfg: float) -> None:
    """Interval 1 installs nothing; a warm-up longer than the run records everything and never skips."""
    options = {"sampler": sampler, "cfg": cfg, "steps": 8}
    plain = host.sample(host.model, **options)
    for params in ({"interval": 1}, {"warmup_steps": 100}, {"schedule": "adaptive", "threshold": 1e-6}):
        assert torch.equal(host.sample(host.freqca(**params), **options), plain)
        assert host.trace()["skipped"] == 0
    assert host.trace()["cache_bytes"] > 0


@pytest.mark.claim("FreqCa", "every sampler of the host: the schedule holds")
def test_every_sampler_runs_and_all_evaluations_of_a_computed_step_are_computed(host: Any) -> None:
    wrong = {}
    for name in host.comfy.samplers.SAMPLER_NAMES:
        out = host.sample(host.freqca(), sampler=name, steps=STEPS, size=(8, 8))
        trace = host.trace()
        if name in ("dpm_fast", "dpm_adaptive", "lcm"):
            assert trace["state"] == "stood down"
            continue
        steps = trace["steps"]
        due = {0, 1, 2, *range(2, steps, 4), steps - 1}
        risen = {"sigma rose", "no history"}
        bad = [
            (e["step"], e["action"], e["reason"])
            for e in trace["evaluations"]
            if (e["action"] == "computed") != (e["step"] in due) and e["reason"] not in risen
        ]
        if bad or not torch.isfinite(out).all():
            wrong[name] = bad
    assert wrong == {}


@pytest.mark.claim("FreqCa", "any size and aspect ratio, odd sizes included")
@pytest.mark.parametrize("size", [(12, 16), (8, 24), (13, 9), (6, 6)])
@pytest.mark.parametrize("transform", ["dct", "fft", "none"])
def test_any_size_and_aspect_ratio(host: Any, size: tuple[int, int], transform: str) -> None:
    out = host.sample(host.freqca(transform=transform, cutoff=0.4), steps=STEPS, size=size)
    trace = host.trace()
    assert torch.isfinite(out).all()
    assert computed(host) == COMPUTED and trace["state"] == "done" and trace["notes"] == []


def test_the_bands_matter_and_hold_in_both_is_hold(host: Any) -> None:
    split = host.sample(host.freqca(cutoff=0.4), steps=STEPS)
    whole = host.sample(host.freqca(transform="none"), steps=STEPS)
    assert not torch.equal(split, whole)
    held = [
        host.sample(host.freqca(low_order=0, high_order=0, transform=t), steps=STEPS) for t in ("dct", "fft", "none")
    ]
    assert torch.equal(held[0], held[1]) and torch.equal(held[0], held[2])


@pytest.mark.parametrize("feature", ["absolute", "residual"])
def test_holding_the_absolute_feature_repeats_the_trunks_result(host: Any, feature: str) -> None:
    """What reaches the final layer on a skip: the anchor's tokens (absolute), or this entry plus the residual."""
    reached: list[torch.Tensor] = []

    def record(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        reached.append(args[0].clone())

    handle = host.diffusion_model.final_layer.register_forward_pre_hook(record)
    try:
        host.sample(host.freqca(high_order=0, feature=feature), steps=STEPS)
    finally:
        handle.remove()
    assert torch.equal(reached[3], reached[2]) == (feature == "absolute")
    assert not torch.equal(reached[6], reached[5])


@pytest.mark.parametrize("predictor", ["hermite", "newton", "taylor", "linear"])
@pytest.mark.parametrize("feature", ["absolute", "residual"])
def test_every_predictor_stays_near_the_full_run(host: Any, predictor: str, feature: str) -> None:
    """Every second step on a trained model: far closer to the full run than the picture is large."""
    full = host.sample(host.model, steps=STEPS)
    out = host.sample(host.freqca(interval=2, predictor=predictor, feature=feature), steps=STEPS)
    assert host.trace()["skipped"] == 5
    assert float((out - full).abs().mean()) < 0.25 * float(full.abs().mean())


def test_the_releases_arithmetic_differs_where_spacing_is_uneven(host: Any) -> None:
    ours = host.sample(host.freqca(interval=5), steps=STEPS)
    released = host.sample(host.freqca(interval=5, reference=True), steps=STEPS)
    assert torch.isfinite(released).all() and not torch.equal(ours, released)


@pytest.mark.parametrize("batch", [1, 3])
def test_batched_and_split_conditionings_agree(host: Any, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    options = {"cfg": 3.0, "batch": batch, "steps": STEPS}
    together = host.sample(host.freqca(), **options)
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = host.sample(host.freqca(), **options)
    assert computed(host) == COMPUTED
    assert torch.allclose(together, apart, atol=1e-3 * float(together.abs().max()))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_memory_is_one_feature_per_order_and_no_modulated_input(host: Any, order: int) -> None:
    host.sample(host.freqca(high_order=order), steps=STEPS, cfg=3.0, size=(16, 24))
    one = 8 * 12 * 256 * 4
    assert host.trace()["cache_bytes"] == 2 * (order + 1) * one


def test_adaptive_lets_spectralcaches_gate_decide(host: Any) -> None:
    gate = {"threshold": 0.6, "max_consecutive": 2}
    host.sample(host.freqca(schedule="adaptive", warmup_steps=1, **gate), steps=STEPS)
    adaptive = host.trace()
    host.sample(host.apply(**gate), steps=STEPS)
    assert adaptive["evaluations"][1]["scores"].keys() == host.trace()["evaluations"][1]["scores"].keys()
    assert adaptive["skipped"] >= 4
    held = {"low_order": 0, "high_order": 0, "feature": "residual"}
    out = host.sample(host.freqca(schedule="adaptive", warmup_steps=1, **gate, **held), steps=STEPS)
    assert torch.equal(out, host.sample(host.apply(**gate), steps=STEPS))  # then it *is* SpectralCache


@pytest.mark.claim("FreqCa", "Kontext references are left out of the bands")
def test_references_are_split_off(host: Any) -> None:
    latent = torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(4))
    positive = [[t, {**o, "reference_latents": [latent]}] for t, o in host.conditioning(1)]
    plain = host.sample(host.model, steps=STEPS, positive=positive)
    assert torch.equal(host.sample(host.freqca(warmup_steps=100), steps=STEPS, positive=positive), plain)
    host.sample(host.freqca(), steps=STEPS, positive=positive)
    assert computed(host) == COMPUTED
    assert host.trace()["cache_bytes"] == 3 * 6 * 8 * 256 * 4  # target tokens only


def test_added_image_tokens_move_the_run_to_whole_model_calls(host: Any) -> None:
    def append(args: dict[str, Any]) -> dict[str, Any]:
        return {
            **args,
            "img": torch.cat((args["img"], torch.zeros_like(args["img"][:, :2])), dim=1),
            "img_ids": torch.cat((args["img_ids"], torch.zeros_like(args["img_ids"][:, :2])), dim=1),
        }

    model = host.model.clone()
    model.set_model_patch(append, "post_input")
    final = host.diffusion_model.final_layer
    handle = final.register_forward_pre_hook(lambda _, args: (args[0][:, :48], *args[1:]))
    try:
        out = host.sample(host.freqca(model), steps=STEPS)
    finally:
        handle.remove()
    trace = host.trace()
    assert torch.isfinite(out).all() and computed(host) == COMPUTED and trace["site"] == "model"
    assert any("image tokens enter the blocks" in note for note in trace["notes"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(host: Any, dtype: torch.dtype) -> None:
    import comfy.sd

    path = str(host.weights / "emoji_flux.safetensors")
    model = comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})
    model.model.manual_cast_dtype = None
    plain = host.sample(model, steps=STEPS)
    assert torch.equal(host.sample(host.freqca(model, warmup_steps=100), steps=STEPS), plain)
    assert torch.isfinite(host.sample(host.freqca(model), steps=STEPS)).all()


def test_nothing_is_forecast_across_the_start_of_a_controlnet(host: Any) -> None:
    """A ControlNet that starts at evaluation 7 makes a step in every feature: the forecast begins anew behind it."""
    calls = 0

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        control = {"input": [torch.full((1, 48, 256), 0.5)], "output": []} if calls > 7 else None
        return executor(*args[:4], control, *args[5:], **kwargs)

    controlled = host.model.clone()
    controlled.add_wrapper_with_key("apply_model", "control", add)
    predictors = host.core.methods()["freqca"]().rules[0].predictor
    lengths: list[tuple[int, int]] = []
    predict = type(predictors).predict

    def watched(self: Any, history: Any, now: Any, grid: Any = None, figures: Any = None) -> Any:
        lengths.append((now.index, len(history)))
        return predict(self, history, now, grid, figures)

    type(predictors).predict = watched
    try:
        host.sample(host.freqca(controlled), steps=STEPS)
    finally:
        type(predictors).predict = predict
    assert [e["reason"] for e in host.trace()["evaluations"] if e["step"] == 7] == ["control changed"]
    assert dict(lengths) == {3: 3, 4: 3, 5: 3, 8: 1, 9: 1, 11: 2, 12: 2}
