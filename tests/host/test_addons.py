"""What people put around a FLUX: references, masks, patches, hooks, other samplings, compilation, other precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

FAST = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
STEPS = 12


def referenced(host: Any, sizes: list[tuple[int, int]]) -> list[Any]:
    """Conditioning with reference latents (FLUX Kontext) of the given latent sizes."""
    generator = torch.Generator().manual_seed(4)
    latents = [torch.randn(1, 16, h, w, generator=generator) for h, w in sizes]
    return [[tensor, {**options, "reference_latents": latents}] for tensor, options in host.conditioning(1)]


def check(caching: Any, model: Any = None, *, least: int = 6, site: str = "", **options: Any) -> dict[str, Any]:
    """Refusing gate: bit-identical; fast gate: finite and `least` skips. Returns the fast run's trace."""
    host = caching.host
    model = model or host.model
    options = {"steps": STEPS, **options}
    plain = host.sample(model, **options)
    assert torch.equal(host.sample(caching.refusing(model), **options), plain)
    assert host.trace()["skipped"] == 0 and host.trace()["cache_bytes"] > 0
    out = host.sample(caching.fast(model), **options)
    trace: dict[str, Any] = host.trace()
    assert torch.isfinite(out).all()
    assert trace["skipped"] >= least, host.core.report(trace)
    assert trace["site"] == (site or caching.site)
    return trace


def where_more(caching: Any) -> str:
    """Auto, unless told where, skips whole evaluations where these are more than the model's calls."""
    return "guided" if caching.method == "auto" and "site" not in caching.skip else ""


# Kontext --------------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Add-ons", "FLUX Kontext reference latents, one or several, larger than the target")
@pytest.mark.parametrize("sizes", [[(8, 12)], [(6, 6), (14, 14)]])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_reference_latents(host: Any, caching: Any, sizes: list[tuple[int, int]], cfg: float) -> None:
    positive = referenced(host, sizes)
    trace = check(caching, positive=positive, negative=positive, cfg=cfg, least=4)
    if caching.method == "spectralcache":
        bell = host.gates.Bell(10.0, 0.5, 1.5)(host.types.Step(5, STEPS, 0.0))
        assert trace["evaluations"][5]["limits"]["distance"] == pytest.approx(bell * 0.22 / 0.6)  # Kontext's own row


def test_the_signal_sees_references_and_knows_where_they_begin(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance runs over target and reference tokens, as Kontext's polynomial was fitted; bands over the target."""
    signal = type(host.spectralcache().rules[0].signal)
    look = signal.look
    probes: list[Any] = []

    def watched(self: Any, probe: Any) -> Any:
        probes.append(probe)
        return look(self, probe)

    monkeypatch.setattr(signal, "look", watched)
    host.sample(host.apply(**FAST), steps=STEPS, positive=referenced(host, [(8, 8)]))
    assert {(probe.modulated.shape[1], probe.targets) for probe in probes} == {(24 + 16, 24)}


def test_the_feature_covers_target_tokens_only(host: Any) -> None:
    one = 4 * 6 * host.diffusion_model.hidden_size * 4  # target tokens, width, float32
    references = 10 * 10 * host.diffusion_model.hidden_size * 4
    host.sample(host.apply(**FAST), steps=STEPS, positive=referenced(host, [(20, 20)]))
    assert host.trace()["cache_bytes"] == pytest.approx(
        2 * one + references, abs=500
    )  # feature, M of the target, M of references


def test_a_reference_that_differs_between_the_sides_of_cfg(host: Any, caching: Any) -> None:
    check(caching, positive=referenced(host, [(8, 8)]), negative=host.conditioning(2), cfg=3.0, least=4)


# latents and schedules ------------------------------------------------------------------------------------------------


@pytest.mark.claim("Add-ons", "inpainting with a noise mask")
def test_inpainting_with_a_noise_mask(host: Any, caching: Any) -> None:
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 4:] = 1
    options = {"latent": latent, "noise_mask": mask}
    check(caching, **options)
    out = host.sample(caching.fast(), steps=STEPS, **options)
    assert torch.allclose(out[..., :4], latent[..., :4], atol=1e-4)  # what was masked is untouched


@pytest.mark.claim("Add-ons", "Differential Diffusion")
def test_differential_diffusion(host: Any, caching: Any) -> None:
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    model = DifferentialDiffusion.execute(host.model)[0]
    mask = torch.linspace(0, 1, 12).expand(1, 1, 8, 12).clone()
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(7))
    check(caching, model, latent=latent, noise_mask=mask)


@pytest.mark.claim("Samplers", "denoise 0.1 to 1")
@pytest.mark.parametrize("denoise", [0.1, 0.35, 0.6, 1.0])
def test_denoise(caching: Any, denoise: float) -> None:
    latent = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(7))
    trace = check(caching, latent=latent, denoise=denoise)
    assert trace["steps"] == STEPS
    assert [e["step"] for e in trace["evaluations"]] == list(range(STEPS))


@pytest.mark.claim("Add-ons", "ModelSampling nodes before or after our node")
def test_model_sampling_nodes(host: Any, caching: Any) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    model = ModelSamplingFlux().patch(host.model, 1.15, 0.5, 512, 512)[0]
    before = check(caching, model)
    after_node = ModelSamplingFlux().patch(caching.fast(), 1.15, 0.5, 512, 512)[0]
    host.sample(after_node, steps=STEPS)
    assert [e["sigma"] for e in host.trace()["evaluations"]] == [e["sigma"] for e in before["evaluations"]]


# patches of others ----------------------------------------------------------------------------------------------------


def scaled(amount: float) -> Any:
    def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * amount}

    return patch


@pytest.mark.claim("Add-ons", "block patches of other packs on any block")
@pytest.mark.parametrize("slot", [("double_block", 0), ("double_block", 1), ("single_block", 0), ("single_block", 2)])
def test_foreign_patches_on_any_slot(host: Any, caching: Any, slot: tuple[str, int]) -> None:
    model = host.model.clone()
    model.set_model_patch_replace(scaled(1.03), "dit", *slot)
    trace = check(caching, model)
    after = caching.fast()
    after.set_model_patch_replace(scaled(1.03), "dit", *slot)
    host.sample(after, steps=STEPS)
    assert [e["action"] for e in host.trace()["evaluations"]] == [e["action"] for e in trace["evaluations"]]


@pytest.mark.claim("Add-ons", "block patches bound to one conditioning")
def test_patches_bound_to_a_conditioning(host: Any, caching: Any) -> None:
    import comfy.hooks

    group = comfy.hooks.HookGroup()
    patches = {"transformer_options": {"patches_replace": {"dit": {("double_block", 1): scaled(1.05)}}}}
    group.add(comfy.hooks.TransformerOptionsHook(transformers_dict=patches["transformer_options"]))
    hooked = [[tensor, {**options, "hooks": group}] for tensor, options in host.conditioning(1)]
    plain = host.sample(host.model, steps=STEPS, cfg=3.0)
    assert not torch.equal(plain, host.sample(host.model, steps=STEPS, cfg=3.0, positive=hooked))
    check(caching, cfg=3.0, positive=hooked, site=where_more(caching))


@pytest.mark.claim("Add-ons", "tokens added by post_input patches")
def test_post_input_tokens(host: Any, caching: Any) -> None:
    def prepend(args: dict[str, Any]) -> dict[str, Any]:
        extra = torch.full_like(args["txt"][:, :3], 0.1)
        ids = torch.zeros_like(args["txt_ids"][:, :3])
        return {
            **args,
            "txt": torch.cat((extra, args["txt"]), dim=1),
            "txt_ids": torch.cat((ids, args["txt_ids"]), dim=1),
        }

    model = host.model.clone()
    model.set_model_patch(prepend, "post_input")
    check(caching, model)


@pytest.mark.claim("Add-ons", "LoRA hooks with keyframes")
def test_lora_hooks_with_keyframes_compute_when_the_weights_change(host: Any, caching: Any) -> None:
    import comfy.hooks

    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init = False
    hook.weights = None
    group = comfy.hooks.HookGroup()
    group.add(hook)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.4))
    group.set_keyframes_on_hooks(keyframes)
    hooked = [[tensor, {**options, "hooks": group}] for tensor, options in host.conditioning(1)]

    def reasons(model: Any) -> list[str]:
        model.add_hook_patches(hook, host.weight_patches("img_attn.proj.weight"), strength_patch=1.0)
        host.sample(model, steps=STEPS, positive=hooked)
        return [e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"]

    # where whole evaluations are skipped, the keyframe is an edge that is known beforehand
    changed = "conditioning changed" if (where_more(caching) or caching.site) == "guided" else "weights changed"
    assert reasons(caching.fast()).count(changed) == 1
    assert host.trace()["skipped"] >= 5
    unlimited = FAST | {"max_consecutive": 1000}
    assert reasons(host.apply(**unlimited)) == ["first step", "weights changed", "last step"]


# compilation and precision --------------------------------------------------------------------------------------------


@pytest.mark.claim("Precision and compilation", "TorchCompileModel before or after our node (eager backend)")
def test_torch_compile_decides_on_every_call_and_does_not_recompile(host: Any, caching: Any) -> None:
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    small, *_ = host.tiny.load("flux of two blocks")  # tracing is what takes time
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def guards(entries: Any) -> list[bool]:
        return ["transformer_options" not in entry.name for entry in entries]

    def compiled(model: Any) -> Any:
        patched = model.clone()
        set_torch_compile_wrapper(model=patched, backend=backend, options={"guard_filter_fn": guards})
        return patched

    eager = host.sample(caching.fast(small) if not caching.halves else small, steps=STEPS)
    expected = ["computed"] * STEPS if caching.halves else [e["action"] for e in host.trace()["evaluations"]]
    for model in (compiled(caching.fast(small)), caching.fast(compiled(small))):
        out = host.sample(model, steps=STEPS)
        assert [e["action"] for e in host.trace()["evaluations"]] == expected
        assert torch.allclose(out, eager, atol=1e-4 * float(eager.abs().max()))
        once = graphs
        host.sample(model, steps=STEPS)
        assert graphs == once > 0
    torch._dynamo.reset()


@pytest.mark.claim("Precision and compilation", "fp16, bf16 and fp8 weights")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_precisions(host: Any, caching: Any, dtype: torch.dtype) -> None:
    model, *_ = host.tiny.load("flux", dtype)
    trace = check(caching, model, least=4)
    if caching.method == "spectralcache":
        assert trace["evaluations"][1]["scores"]["d"] is not None


def test_features_are_kept_in_the_models_precision(host: Any) -> None:
    import comfy.sd

    path = str(host.weights / "emoji_flux.safetensors")
    host.sample(host.apply(comfy.sd.load_diffusion_model(path), **FAST), steps=STEPS)
    full = host.trace()["cache_bytes"]
    half_model = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.bfloat16})
    half_model.model.manual_cast_dtype = None
    host.sample(host.apply(half_model, **FAST), steps=STEPS)
    assert host.trace()["cache_bytes"] < 0.6 * full
