"""Conditionings in every arrangement that ComfyUI offers: lanes never mix, and one evaluation follows one decision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

FAST = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
STEPS = 12


def actions(host: Any) -> list[str]:
    return [e["action"] for e in host.trace()["evaluations"]]


def mask(size: tuple[int, int]) -> torch.Tensor:
    """The same every time, whatever ran before: 1 h w."""
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(3))


def extend(conditioning: list[Any], **values: Any) -> list[Any]:
    return [[tensor, {**options, **values}] for tensor, options in conditioning]


def guided(host: Any, guider: Any, seed: int = 0) -> torch.Tensor:
    """One run of a guider, as SamplerCustomAdvanced makes it."""
    latent = torch.zeros(1, 16, *host.size)
    noise = host.comfy.sample.prepare_noise(latent, seed)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    return guider.sample(noise, latent, host.comfy.samplers.sampler_object("euler"), sigmas, seed=seed)


def both(caching: Any, run: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The same run on the plain model and with a gate that refuses every time: recording on, nothing skipped."""
    return run(caching.host.model), run(caching.refusing())


@pytest.fixture(scope="module")
def made() -> dict[object, torch.Tensor]:
    """Uncached runs with which several cases compare, each made once."""
    return {}


ARRANGEMENTS: dict[str, Any] = {
    "combined": lambda h: {"positive": [*h.conditioning(1), *h.conditioning(3)]},
    "area": lambda h: {"positive": [*h.conditioning(1), *extend(h.conditioning(3), area=(4, 6, 0, 6), strength=1.0)]},
    "area alone": lambda h: {"positive": extend(h.conditioning(3), area=(8, 6, 0, 3), strength=1.0)},
    "timed": lambda h: {
        "positive": [
            *extend(h.conditioning(1), start_percent=0.0, end_percent=0.5),
            *extend(h.conditioning(3), start_percent=0.5, end_percent=1.0),
        ]
    },
    "unequal lengths": lambda h: {"positive": h.conditioning(1, tokens=6)},
    "masked": lambda h: {
        "positive": [*h.conditioning(1), *extend(h.conditioning(3), mask=mask(h.size), mask_strength=0.7)]
    },
}


@pytest.mark.claim("Conditioning", "combined, area, masked, timed prompts and prompts of unequal length")
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_never_skipping_is_bit_identical_in_every_arrangement(host: Any, caching: Any, name: str) -> None:
    plain, ours = both(caching, lambda model: host.sample(model, cfg=3.0, steps=STEPS, **ARRANGEMENTS[name](host)))
    assert torch.equal(plain, ours)
    assert actions(host) == ["computed"] * STEPS


@pytest.mark.claim("Conditioning", "positive and negative batched or split by memory: the same decisions")
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_cached_run_agrees_batched_and_split(
    host: Any, caching: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cfg": 3.0, "steps": STEPS, **ARRANGEMENTS[name](host)}
    together = host.sample(caching.fast(), **options)
    first = actions(host)
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = host.sample(caching.fast(), **options)
    assert actions(host) == first
    assert first.count("skipped") >= 4
    # a conditioning that is new in the middle of a gap computes its whole call: batched, the other one with it
    close = 1e-2 if name == "timed" and caching.halves else 1e-3
    assert torch.allclose(together, apart, atol=close * float(together.abs().max()))


def test_a_conditioning_that_appears_mid_run_is_computed(host: Any) -> None:
    """Positive changes half way: it is not the first lane (the negative is), so that step is skipped in part."""
    unlimited = FAST | {"max_consecutive": 1000}
    host.sample(host.apply(**unlimited), cfg=3.0, steps=STEPS, **ARRANGEMENTS["timed"](host))
    evaluations = host.trace()["evaluations"]
    partial = [e for e in evaluations if e["action"] == "partial"]
    assert len(partial) == 1 and partial[0]["skip"]
    assert [e["action"] for e in evaluations].count("skipped") == STEPS - 3


def test_the_first_lane_changing_computes(host: Any) -> None:
    host.sample(host.apply(**FAST | {"max_consecutive": 1000}), cfg=1.0, steps=STEPS, **ARRANGEMENTS["timed"](host))
    reasons = [e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"]
    assert reasons == ["first step", "no history", "last step"]


def guiders(host: Any) -> dict[str, Any]:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def dual_cfg(model: Any) -> Any:
        guider = Guider_DualCFG(model)
        guider.set_conds(host.conditioning(1), host.conditioning(3), host.conditioning(2))
        guider.set_cfg(3.0, 1.5)
        return guider

    def perp_neg(model: Any) -> Any:
        guider = Guider_PerpNeg(model)
        guider.set_conds(host.conditioning(1), host.conditioning(2), host.conditioning(3))
        guider.set_cfg(3.0, 1.0)
        return guider

    return {"DualCFG": dual_cfg, "PerpNeg": perp_neg}


@pytest.mark.claim("Conditioning", "DualCFGGuider and PerpNegGuider")
@pytest.mark.parametrize("name", ["DualCFG", "PerpNeg"])
def test_guiders_with_three_conditionings(host: Any, caching: Any, name: str) -> None:
    plain, ours = both(caching, lambda model: guided(host, guiders(host)[name](model)))
    assert torch.equal(plain, ours)
    guided(host, guiders(host)[name](caching.fast()))
    trace = host.trace()
    assert {e["lanes"] for e in trace["evaluations"] if e["calls"]} == {3}
    assert trace["skipped"] >= 6 and (caching.halves or trace["partial"] == 0)


@pytest.mark.claim("Conditioning", "DualModelGuider")
def test_two_models_of_one_run_do_not_mix(host: Any, caching: Any) -> None:
    """DualModelGuider runs the negative on a second model, with the first one's options and the same list position."""
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    other = host.tiny.load("flux")[0]
    host.perturb(other, "double_blocks.0.img_attn.proj.weight")

    def run(model: Any) -> torch.Tensor:
        guider = Guider_DualModel(model, other)
        guider.set_conds(host.conditioning(1), host.conditioning(1))
        guider.set_cfg(3.0)
        return guided(host, guider)

    plain, ours = both(caching, run)
    assert torch.equal(plain, ours)
    assert {e["lanes"] for e in host.trace()["evaluations"]} == {2}
    cached = run(caching.fast())
    assert host.trace()["skipped"] >= 6
    assert not torch.allclose(cached, host.sample(caching.fast(), cfg=1.0, steps=STEPS), atol=1e-2)


def skip_layer(model: Any) -> Any:
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, double_layers="0", single_layers="1")[0]


@pytest.mark.claim("Conditioning", "Skip Layer Guidance, before and after our node: its pass is forecast as well")
@pytest.mark.parametrize("order", ["guidance after", "guidance before"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_skip_layer_guidance_has_a_lane_of_its_own(host: Any, caching: Any, made: Any, order: str, cfg: float) -> None:
    """Its extra pass has the conditioning's uuid and sigma, with other patches: a repeat, treated as the others are.

    It also strengthens what a forecast has missed, so the steps are not as few as elsewhere here.
    """
    steps = 28
    if ("skip layer", cfg) not in made:
        made["skip layer", cfg] = host.sample(skip_layer(host.model), cfg=cfg, steps=steps)
    plain = made["skip layer", cfg]

    def ours(attach: Any) -> torch.Tensor:
        model = skip_layer(attach()) if order == "guidance after" else attach(skip_layer(host.model))
        return host.sample(model, cfg=cfg, steps=steps)

    assert torch.equal(ours(caching.refusing), plain)
    out = ours(caching.fast)
    evaluations = host.trace()["evaluations"]
    assert torch.isfinite(out).all()
    skips = [e for e in evaluations if e["skip"]]
    assert len(skips) >= 6
    assert all(e["action"] == "skipped" and e["work"] == 0 for e in skips)
    assert float((out - plain).abs().mean()) < float(plain.abs().mean())


@pytest.mark.claim("Conditioning", "Perturbed Attention Guidance's extra pass, and Normalized Attention Guidance")
@pytest.mark.parametrize("name", ["PAG", "NAG"])
def test_attention_guidance(host: Any, caching: Any, name: str) -> None:
    from comfy_extras.nodes_nag import NAGuidance
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def guidance(model: Any) -> Any:
        if name == "PAG":
            return PerturbedAttentionGuidance.execute(model, 2.0)[0]
        return NAGuidance.execute(model, 5.0, 0.5, 1.5)[0]

    plain = host.sample(guidance(host.model), cfg=3.0, steps=STEPS)
    for model in (guidance(caching.refusing()), caching.refusing(guidance(host.model))):
        assert torch.equal(host.sample(model, cfg=3.0, steps=STEPS), plain)
    out = host.sample(guidance(caching.fast()), cfg=3.0, steps=STEPS)
    assert torch.isfinite(out).all()
    assert sum(e["skip"] for e in host.trace()["evaluations"]) >= 6


@pytest.mark.claim("Conditioning", "context windows (Wan)")
def test_context_windows_are_lanes_of_their_own(host: Any, caching: Any) -> None:
    """Windows share the conditioning's uuid; on a video model each has its own tokens."""
    import comfy.context_windows

    patcher, text, _ = host.tiny.load("wan2.1")
    handler = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule(comfy.context_windows.ContextSchedules.STATIC_STANDARD),
        comfy.context_windows.get_matching_fuse_method(comfy.context_windows.ContextFuseMethods.PYRAMID),
        context_length=4,
        context_overlap=1,
        dim=2,
    )
    patcher.model_options["context_handler"] = handler
    generator = torch.Generator().manual_seed(0)
    conditioning = [[torch.randn(1, 8, text, generator=generator), {}]]
    latent = torch.zeros(1, 16, 8, 8, 8)
    options = {"latent": latent, "positive": conditioning, "negative": conditioning, "steps": STEPS}
    plain = host.sample(patcher, **options)
    assert torch.equal(host.sample(caching.refusing(patcher), **options), plain)
    lanes = {e["lanes"] for e in host.trace()["evaluations"]}
    assert min(lanes) >= 2
    host.sample(caching.fast(patcher), **options)
    trace = host.trace()
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] >= 6, trace["notes"]


@pytest.mark.claim("Conditioning", "batches of 1 to 4")
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_batches(host: Any, caching: Any, made: Any, batch: int) -> None:
    if ("batch", batch) not in made:
        made["batch", batch] = host.sample(host.model, batch=batch, cfg=3.0, steps=STEPS)
    plain = made["batch", batch]
    assert torch.equal(host.sample(caching.refusing(), batch=batch, cfg=3.0, steps=STEPS), plain)
    out = host.sample(caching.fast(), batch=batch, cfg=3.0, steps=STEPS)
    assert host.trace()["skipped"] >= 6
    if batch == 1:
        return
    alone = host.sample(caching.fast(), batch=1, cfg=3.0, steps=STEPS)
    assert torch.allclose(out[:1], alone, atol=1e-3 * float(alone.abs().max()))  # rows never mix


@pytest.mark.claim("Graphs", "two samplers fed by one Apply node")
def test_two_samplers_fed_by_one_apply(host: Any, caching: Any) -> None:
    model = caching.fast()
    first = host.sample(model, steps=STEPS)
    second = host.sample(model, steps=STEPS, seed=9, size=(10, 10))
    assert torch.equal(host.sample(model, steps=STEPS), first)
    assert torch.equal(host.sample(model, steps=STEPS, seed=9, size=(10, 10)), second)


@pytest.mark.claim("Graphs", "two Apply nodes in parallel")
def test_two_applies_in_parallel_do_not_meet(host: Any) -> None:
    strict, loose = host.apply(threshold=0.3), host.apply(**FAST)
    expected = [host.sample(host.apply(threshold=0.3)), host.sample(host.apply(**FAST))]
    assert torch.equal(host.sample(strict), expected[0])
    assert torch.equal(host.sample(loose), expected[1])
    assert torch.equal(host.sample(strict), expected[0])


@pytest.mark.claim("Add-ons", "LoRA before or after our node")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_before_and_after_lora_is_the_same(host: Any, caching: Any, strength: float) -> None:
    patches = host.weight_patches("img_attn.proj.weight")

    def lora(model: Any) -> Any:
        patched = model.clone()
        assert len(patched.add_patches(patches, strength)) == len(host.diffusion_model.double_blocks)
        return patched

    plain = host.sample(lora(host.model))
    assert not torch.equal(plain, host.sample(host.model))
    assert torch.equal(host.sample(caching.refusing(lora(host.model))), plain)
    before, after = host.sample(lora(caching.fast())), host.sample(caching.fast(lora(host.model)))
    assert torch.equal(before, after)
    host.sample(host.model)  # unpatch for whoever comes next
