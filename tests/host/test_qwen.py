"""DESIGN section 3 on Qwen-Image: the host's own class with random weights, at small dimensions."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

STEPS = 12
SAMPLERS = ["euler", "heun", "dpmpp_2m"]
SIZES = [(26, 38), (38, 26), (13, 17), (15, 10), (7, 12)]
"""Latent sizes: 832 x 1216 and its transpose at a quarter of the scale, and odd ones."""


@pytest.fixture(scope="module")
def qwen(host: Any) -> Any:
    return host.tiny.Qwen(host)


@pytest.fixture(scope="module")
def layered(host: Any) -> Any:
    return host.tiny.Qwen(host, "qwen_image_layered")


def decisions(trace: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(e["step"], e["stage"], e["action"], e["reason"]) for e in trace["evaluations"]]


# 1: attached but never skipping is bit-identical ----------------------------------------------------------------------


@pytest.mark.claim("Models", "Qwen-Image: never skipping is bit-identical, and cached runs skip whole trunks")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_never_skipping_is_bit_identical(host: Any, qwen: Any, sampler: str, cfg: float, batch: int) -> None:
    options = {"sampler": sampler, "cfg": cfg, "batch": batch}
    qwen.check(**options)
    plain = qwen.sample(**options)
    for off in (host.apply(qwen.model, threshold=0.0), host.freqca(qwen.model, interval=1)):
        assert torch.equal(qwen.sample(off, **options), plain)
        assert host.trace()["cache_bytes"] == 0


def test_every_sampler_is_bit_identical(host: Any, qwen: Any) -> None:
    """dpm_adaptive counts its own steps and takes hundreds."""
    wrong = []
    for name in host.comfy.samplers.SAMPLER_NAMES:
        if name != "dpm_adaptive":
            options = {"sampler": name, "steps": 6, "cfg": 3.0, "size": (6, 8)}
            plain = qwen.sample(**options)
            if not torch.equal(qwen.sample(host.apply(qwen.model, threshold=1e-6), **options), plain):
                wrong.append(name)
    assert wrong == []


@pytest.mark.claim("Models", "Qwen-Image: 832 x 1216 (the same aspect, smaller) and odd sizes")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_sizes(qwen: Any, size: tuple[int, int], cfg: float) -> None:
    qwen.check(size=size, cfg=cfg, batch=2)


@pytest.mark.claim("Models", "Qwen-Image-Layered")
@pytest.mark.parametrize("sizes", [(), ((8, 8),)])
@pytest.mark.parametrize("size", [(12, 16), (13, 17)])
def test_layers(layered: Any, size: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> None:
    sides = {"positive": layered.conditioning(1, *sizes), "negative": layered.conditioning(2, *sizes)}
    assert layered.sample(size=size).shape == (1, 16, 3, *size)
    layered.check(size=size, cfg=3.0, **sides)


# trained weights ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(host: Any) -> Any:
    """The small Qwen-Image that makes pictures."""
    return host.load_qwen()


@pytest.mark.claim("Models", "Qwen-Image, trained: Auto is closer to the full run than as many plain steps")
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("site", ["model", "trunk"])
def test_auto_is_closer_than_fewer_steps_on_trained_weights(host: Any, pictures: Any, cfg: float, site: str) -> None:
    model, cases = host.foreign.trained(host, 2, pictures)
    gains = []
    for positive, noise in cases:
        sides = {"positive": positive, "negative": host.caption(""), "latent": torch.zeros_like(noise), "noise": noise}

        def sample(patched: Any, steps: int, sides: Any = sides) -> Any:
            sampler = host.comfy.samplers.sampler_object("euler")
            return host.foreign.run(host, patched, sampler, host.foreign.simple(host, model, steps), cfg=cfg, **sides)

        full = sample(model, 20)
        assert full.shape == (1, 16, 1, 24, 24)
        assert torch.equal(sample(host.apply(model, threshold=0.0), 20), full)
        out = sample(host.auto(model, computed=10, site=site), 20)
        assert host.trace()["computed"] == 10
        gains.append(host.foreign.decibels(out, full) - host.foreign.decibels(sample(model, 10), full))
    assert sum(gains) / len(gains) > 2, gains


# 2: removed, the model is what it was ---------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["none", "error", "interrupt", "out of memory"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_removed_after_any_run_is_bit_identical(host: Any, qwen: Any, failure: str, block: int) -> None:
    plain = qwen.sample()
    ours = host.apply(qwen.model, **host.tiny.SKIPPING)
    cached = qwen.sample(ours)
    kinds = {
        "error": RuntimeError("injected"),
        "interrupt": host.comfy.model_management.InterruptProcessingException(),
        "out of memory": torch.OutOfMemoryError("injected"),
    }
    if failure != "none":
        calls: list[int] = []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise kinds[failure]

        handle = qwen.blocks[block].register_forward_pre_hook(fail)
        try:
            with pytest.raises(type(kinds[failure])):
                qwen.sample(ours)
        finally:
            handle.remove()
    assert torch.equal(qwen.sample(), plain)
    assert torch.equal(qwen.sample(ours), cached)


def test_nothing_is_held_after_a_run(host: Any, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    make = host.host.keep

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        copy = make(tensor)
        kept.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(host.host, "keep", keep)
    qwen.sample(host.apply(qwen.model, **host.tiny.SKIPPING), cfg=3.0)
    gc.collect()
    assert len(kept) > 20
    assert [ref for ref in kept if ref() is not None] == []


# 3: nothing kept aliases what is returned -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
def test_writing_into_what_the_blocks_returned_changes_nothing_later(host: Any, qwen: Any, method: str) -> None:
    params = host.tiny.SKIPPING if method == "spectralcache" else {"interval": 3}
    ours = host.host.attach(qwen.model, host.core.methods()[method](**params), None)
    clean = qwen.sample(ours)
    spoilt: list[int] = []

    def spoil(_: Any, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        spoilt.append(1)
        args[0].fill_(float("nan"))

    handle = qwen.diffusion_model.norm_out.register_forward_hook(spoil)
    try:
        assert torch.equal(qwen.sample(ours), clean)
    finally:
        handle.remove()
    assert len(spoilt) == STEPS


# 4 and 7: lanes -------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Models", "Qwen-Image: CFG batched and split into two calls")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(12, 16), (13, 17)])
def test_batched_and_split_conditionings_agree(
    host: Any, qwen: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, batch: int, size: tuple[int, int]
) -> None:
    options = {"cfg": 3.0, "batch": batch, "sampler": sampler, "size": size}
    ours = host.apply(qwen.model, **host.tiny.SKIPPING)
    together = qwen.sample(ours, **options)
    first = host.trace()
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = qwen.sample(ours, **options)
    second = host.trace()
    assert [{e["calls"] for e in trace["evaluations"]} for trace in (first, second)] == [{1}, {2}]
    assert decisions(first) == decisions(second)
    assert torch.allclose(together, apart, atol=1e-4 * float(apart.abs().max()))


def test_cond_and_uncond_do_not_mix(host: Any, qwen: Any) -> None:
    """With the same conditioning on both sides CFG cancels, so a cached CFG run equals the cached run without it."""
    ours = host.apply(qwen.model, **host.tiny.SKIPPING)
    alone = qwen.sample(ours, cfg=1.0)
    near = 1e-3 * float(alone.abs().max())
    assert torch.allclose(alone, qwen.sample(ours, cfg=3.0, negative=qwen.conditioning(1)), atol=near)
    assert not torch.allclose(alone, qwen.sample(ours, cfg=3.0), atol=10 * near)


@pytest.mark.claim("Models", "Qwen-Image: text masks, and prompts of unequal length")
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("tokens", [8, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_text_masks(qwen: Any, cfg: float, tokens: int, dtype: torch.dtype) -> None:
    """The mask reaches a block through its closure alone. (A float mask is added to the attention's logits.)"""
    whole = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    mask = whole if dtype == torch.int64 else (whole - 1).float() * 1e4
    sides = {"positive": qwen.conditioning(1, attention_mask=mask), "negative": qwen.conditioning(2, tokens=tokens)}
    assert not torch.allclose(qwen.sample(cfg=cfg, **sides), qwen.sample(cfg=cfg), atol=1e-3)
    qwen.check(cfg=cfg, **sides)


# 5 and 8: steps, and the same decisions whatever ran before -----------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 8, 20])
def test_first_and_last_step_are_computed(host: Any, qwen: Any, steps: int) -> None:
    unlimited = {"max_consecutive": 1000, "tads_min": 10.0, "tads_max": 10.0}
    qwen.sample(host.apply(qwen.model, **host.tiny.SKIPPING | unlimited), steps=steps)
    computed = [e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"]
    assert computed == ["first step", "last step"]


@pytest.mark.claim("Models", "Qwen-Image with few steps (Lightning): 4 stand down, fewer than 8 skip with a note")
@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_few_steps(host: Any, qwen: Any, method: str, steps: int) -> None:
    """Lightning runs 4 or 8 steps, Euler, CFG 1, with the Apply nodes as they come."""
    ours = host.host.attach(qwen.model, host.core.methods()[method](), None)
    plain, out = qwen.sample(steps=steps), qwen.sample(ours, steps=steps)
    trace = host.trace()
    assert torch.isfinite(out).all()
    ends = (trace["evaluations"][0], trace["evaluations"][-1])
    assert [e["action"] for e in ends] == ["computed", "computed"]
    if steps == 4:
        assert torch.equal(out, plain) and trace["state"] == "stood down"
        assert "nothing safe to skip" in trace["notes"][0]
    else:
        assert trace["state"] == "done"
        assert any(f"only {steps} steps" in note for note in trace["notes"]) or steps == 8


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_decisions_repeat_whatever_ran_before(host: Any, qwen: Any, cfg: float) -> None:
    ours = host.apply(qwen.model, threshold=4.0, gamma_low=2.0)
    first, before = qwen.sample(ours, cfg=cfg), decisions(host.trace())
    assert 0 < host.trace()["skipped"] < STEPS - 2
    qwen.sample(ours, steps=7, size=(10, 6), seed=5, positive=qwen.conditioning(3, (8, 8)))
    qwen.sample(host.freqca(qwen.model), batch=2)
    assert torch.equal(qwen.sample(ours, cfg=cfg), first)
    assert decisions(host.trace()) == before


# 6: what comes unexpected, and which models are described -------------------------------------------------------------


def test_an_inside_that_was_renamed_samples_on(host: Any, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(*_: Any) -> Any:
        raise AttributeError("no attribute 'img_mod'")

    monkeypatch.setattr(type(host.core.architecture_of(qwen.diffusion_model)), "modulated", renamed)
    assert torch.isfinite(qwen.sample(host.apply(qwen.model, **host.tiny.SKIPPING))).all()
    assert (host.trace()["state"], host.trace()["site"]) == ("done", "model")
    assert "img_mod" in host.trace()["notes"][0]


@pytest.mark.claim("Models", "relatives of Qwen-Image with other blocks (Nunchaku, single stream): whole model calls")
def test_relatives_with_other_blocks_get_the_model_site(host: Any) -> None:
    relative = host.tiny.Qwen(host)
    for block in relative.blocks:
        block.__class__ = type("SomeOtherBlock", (type(block),), {})
    plain = relative.sample()
    assert torch.equal(relative.sample(host.apply(relative.model, threshold=1e-6)), plain)
    relative.sample(host.apply(relative.model, **host.tiny.SKIPPING))
    trace = host.trace()
    assert trace["site"] == "model" and trace["skipped"] >= 6
    assert "not described yet, so whole model calls are skipped" in trace["notes"][0]


def test_blocks_compiled_one_by_one_are_still_its_own(host: Any) -> None:
    compiled = host.tiny.Qwen(host)
    plain = compiled.sample()
    for i, block in enumerate(compiled.blocks):
        compiled.blocks[i] = torch.compile(block, backend="eager")
    out = compiled.sample(host.apply(compiled.model, **host.tiny.SKIPPING))
    assert host.trace()["site"] == "trunk" and host.trace()["skipped"] >= 6
    assert torch.allclose(compiled.sample(), plain, atol=1e-4) and torch.isfinite(out).all()


# patches of others ----------------------------------------------------------------------------------------------------


def scaled(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    out = extra["original_block"](args)
    return {**out, "img": out["img"] * 1.03}


@pytest.mark.claim("Add-ons", "Qwen-Image: block patches of other packs on any block, before or after our node")
@pytest.mark.parametrize("block", [0, 1, 2])
def test_foreign_patches_on_any_block(host: Any, qwen: Any, block: int) -> None:
    patched = qwen.model.clone()
    patched.set_model_patch_replace(scaled, "dit", "double_block", block)
    assert not torch.equal(qwen.sample(patched), qwen.sample())
    before = qwen.check(patched)
    after = host.apply(qwen.model, **host.tiny.SKIPPING)
    after.set_model_patch_replace(scaled, "dit", "double_block", block)
    qwen.sample(after)
    assert decisions(host.trace()) == decisions(before)


@pytest.mark.claim("Add-ons", "Qwen-Image: Skip Layer Guidance")
def test_skip_layer_guidance_has_a_lane_of_its_own(host: Any, qwen: Any) -> None:
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def guided(model: Any) -> Any:
        return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, double_layers="1", single_layers="")[0]

    plain = qwen.sample(guided(qwen.model), cfg=3.0)
    assert not torch.equal(plain, qwen.sample(cfg=3.0))
    assert torch.equal(qwen.sample(guided(host.apply(qwen.model, threshold=1e-6)), cfg=3.0), plain)
    qwen.sample(guided(host.apply(qwen.model, **host.tiny.SKIPPING)), cfg=3.0)
    skips = [e for e in host.trace()["evaluations"] if e["skip"]]
    assert len(skips) >= 6 and all(e["action"] == "skipped" and e["work"] == 0 for e in skips)
