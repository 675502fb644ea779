"""Site branch on the real host: one side of guidance derived from the other, in ComfyUI's arrangements of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

STEPS, SIZE = 9, (8, 8)
GAINS = {"gain_low": 0.0, "gain_high": 0.0}


def extend(conditioning: list[Any], **values: Any) -> list[Any]:
    return [[tensor, {**options, **values}] for tensor, options in conditioning]


def derived(host: Any, model: Any = None, **params: Any) -> Any:
    """CFG-Cache that derives two of three steps."""
    method = host.core.methods()["cfg_cache"]
    return host.host.attach(model or host.model, method(**{**method.skipping, **params}), None)


def refusing(host: Any, model: Any = None) -> Any:
    method = host.core.methods()["cfg_cache"]
    return host.host.attach(model or host.model, method(**method.refusing), None)


@pytest.fixture
def rows(host: Any) -> Iterator[Callable[[], int]]:
    """Rows of the model that have run since it was last asked."""
    seen: list[int] = []
    handle = host.diffusion_model.img_in.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0]))

    def taken() -> int:
        count = sum(seen)
        seen.clear()
        return count

    yield taken
    handle.remove()


def dynamic(host: Any, **params: Any) -> Any:
    """DynCFGCache, which measures how far the sides are apart."""
    return host.host.attach(host.model, host.core.methods()["dyncfg_cache"](**params), None)


def derived_steps(host: Any) -> list[int]:
    return [e["step"] for e in host.trace()["evaluations"] if e.get("derived", 0)]


# what is derived ------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Guidance", "the negative's result is the positive's with the last difference, composed by hand")
def test_a_derived_side_is_the_other_with_the_stored_difference(host: Any) -> None:
    seen: list[tuple[float, list[torch.Tensor]]] = []

    def spy(executor: Any, model: Any, conds: Any, x: Any, sigma: Any, options: Any) -> Any:
        out = executor(model, conds, x, sigma, options)
        seen.append((float(sigma[0]), [part.clone() for part in out]))
        return out

    outside = host.model.clone()
    outside.add_wrapper_with_key("calc_cond_batch", "spy", spy)  # added first, so that it stands around ours
    host.sample(derived(host, outside, **GAINS), cfg=3.0, steps=STEPS, batch=2, size=SIZE)
    steps, anchor = derived_steps(host), 0
    assert steps == [i for i in range(1, STEPS - 1) if i % 3] and len(seen) == STEPS
    for step, (sigma, (cond, uncond)) in enumerate(seen):
        if step not in steps:
            anchor = step
            continue
        before, (cond_then, uncond_then) = seen[anchor]
        expected = cond - sigma * (cond_then - uncond_then) / before
        assert torch.allclose(uncond, expected, atol=1e-5) and not torch.equal(uncond, cond)


@pytest.mark.claim("Guidance", "a derived evaluation runs the rows of the positive alone; the trace counts both sides")
@pytest.mark.parametrize("batch", [1, 2])
def test_rows_and_trace_agree_batched_and_split(
    host: Any, rows: Any, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cfg": 3.0, "steps": STEPS, "batch": batch, "size": SIZE}
    together = host.sample(derived(host), **options)
    trace, ran = host.trace(), rows()
    assert ran == batch * (2 * STEPS - len(derived_steps(host))) and trace["state"] == "done"
    assert sum(e["work"] for e in trace["evaluations"]) * 2 * batch == ran
    assert (trace["computed"], trace["partial"], trace["skipped"]) == (4, 5, 0)
    assert {e.get("derived", 0) for e in trace["evaluations"]} == {0, batch}
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = host.sample(derived(host), **options)
    assert rows() == ran and {e["calls"] for e in host.trace()["evaluations"]} == {1, 2}
    assert torch.allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_cfg_pp"])
def test_the_invariants_on_samplers(host: Any, sampler: str) -> None:
    """heun evaluates a step twice, CFG++ goes on with the negative's result itself."""
    options = {"cfg": 3.0, "steps": STEPS, "size": SIZE, "sampler": sampler}
    plain = host.sample(host.model, **options)
    for off in (refusing(host), derived(host, interval=1)):
        assert torch.equal(host.sample(off, **options), plain) and derived_steps(host) == []
    fast = derived(host)
    out = host.sample(fast, **options)
    assert set(derived_steps(host)) == {1, 2, 4, 5, 7} and torch.isfinite(out).all() and not torch.equal(out, plain)
    assert torch.equal(host.sample(fast, **options), out)  # nothing is left over from the first run


def test_a_measured_distance_decides(host: Any, rows: Any) -> None:
    options = {"cfg": 3.0, "steps": STEPS, "size": SIZE}
    plain, all_rows = host.sample(host.model, **options), rows()
    assert torch.equal(host.sample(dynamic(host, threshold=1e-6), **options), plain) and rows() == all_rows
    first = host.trace()["evaluations"][1]
    assert first["scores"]["d"] > 0 and (first["reason"], first["limits"]["sum"]) == ("threshold", 1e-6)
    host.sample(dynamic(host, threshold=2.5 * first["scores"]["d"], stand_in="difference"), **options)
    assert derived_steps(host)[:2] == [1, 2] and rows() == all_rows - len(derived_steps(host))


def test_nothing_is_held_after_a_run(host: Any, remains: Any) -> None:
    host.sample(derived(host), cfg=3.0, steps=STEPS, size=SIZE)
    assert len(remains.tensors) >= 4 and [ref for ref in remains.tensors if ref() is not None] == []


# arrangements ---------------------------------------------------------------------------------------------------------


def controlled(host: Any, conditioning: list[Any], end: float = 1.0) -> list[Any]:
    """A ControlNet of nothing but a constant, through the host's own class."""
    import comfy.controlnet

    class Constant(comfy.controlnet.ControlBase):
        def get_control(self, x: Any, t: Any, cond: Any, count: int, options: Any) -> Any:
            if self.timestep_range is not None and t[0] < self.timestep_range[1]:
                return None
            tokens = x.shape[2] * x.shape[3] // 4
            return {"input": [torch.full((x.shape[0], tokens, 128), 0.3)], "output": []}

        def copy(self) -> Any:
            return Constant()

        def get_models(self) -> list[Any]:
            return []

    net = Constant()
    net.timestep_percent_range = (0.0, end)
    return extend(conditioning, control=net, control_apply_to_uncond=True)


ARRANGEMENTS: dict[str, Any] = {
    "combined": lambda h: {"positive": [*h.conditioning(1), *h.conditioning(3)]},
    "combined negatives": lambda h: {"negative": [*h.conditioning(2), *h.conditioning(3)]},
    "area": lambda h: {"positive": [*h.conditioning(1), *extend(h.conditioning(3), area=(8, 4, 0, 4), strength=1.0)]},
    "masked, unequal lengths": lambda h: {
        "positive": [*h.conditioning(1, tokens=6),
                     *extend(h.conditioning(3), mask=torch.ones(1, 8, 8) * 0.5, mask_strength=0.7)]
    },
    "ControlNet": lambda h: {"positive": controlled(h, h.conditioning(1))},
}  # fmt: skip


@pytest.mark.claim("Guidance", "derived beside combined, area and masked prompts, combined negatives and ControlNet")
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangements(host: Any, rows: Any, name: str) -> None:
    """Refusing: bit-identical. Deriving: the negative side's rows, and only these, are spared."""
    options = {"cfg": 3.0, "steps": STEPS, "size": SIZE, **ARRANGEMENTS[name](host)}
    plain, all_rows = host.sample(host.model, **options), rows()
    assert torch.equal(host.sample(refusing(host), **options), plain) and rows() == all_rows
    out, ran = host.sample(derived(host), **options), rows()
    trace = host.trace()
    negatives = 2 if name in ("combined negatives", "area") else 1  # an area is put on both sides
    assert trace["state"] == "done" and trace["notes"] == []
    assert derived_steps(host) == [1, 2, 4, 5, 7]
    assert ran == all_rows - 5 * negatives
    assert sum(e["work"] for e in trace["evaluations"]) == pytest.approx(STEPS * ran / all_rows)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)


@pytest.mark.claim("Guidance", "derived across edges: computed where a timed prompt or a ControlNet begins or ends")
@pytest.mark.parametrize("edge", ["timed prompt", "ControlNet"])
def test_an_edge_computes_both_sides(host: Any, edge: str) -> None:
    timed = {
        "timed prompt": lambda: [*extend(host.conditioning(1), start_percent=0.0, end_percent=0.5),
                                 *extend(host.conditioning(3), start_percent=0.5, end_percent=1.0)],
        "ControlNet": lambda: controlled(host, host.conditioning(1), end=0.5),
    }  # fmt: skip
    host.sample(derived(host, interval=100), cfg=3.0, steps=STEPS, size=SIZE, positive=timed[edge]())
    reasons = {e["step"]: e["reason"] for e in host.trace()["evaluations"] if not e.get("derived", 0)}
    assert reasons.pop(0) == "first step" and reasons.pop(STEPS - 1) == "last step"
    assert len(reasons) == 1 and set(reasons.values()) == {"conditioning changed"}


def test_context_windows_are_derived_each_by_itself(host: Any) -> None:
    import comfy.context_windows as windows

    patcher, text, _ = host.tiny.load("wan2.1")
    patcher.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=4, context_overlap=1, dim=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    prompts = {side: [[torch.randn(1, 8, text, generator=generator), {}]] for side in ("positive", "negative")}
    options = {"latent": torch.zeros(1, 16, 8, 8, 8), "steps": 6, "cfg": 3.0, **prompts}
    plain = host.sample(patcher, **options)
    assert torch.equal(host.sample(refusing(host, patcher), **options), plain)
    host.sample(derived(host, patcher), **options)
    evaluations = host.trace()["evaluations"]
    assert derived_steps(host) == [1, 2, 4]
    windows_of = {e["calls"] for e in evaluations}
    assert {e.get("derived", 0) for e in evaluations} == {0, *windows_of} and min(windows_of) > 1


# where it stands aside ------------------------------------------------------------------------------------------------


def rescaled(host: Any) -> Any:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(host.model, 0.7)[0]


def recorded(host: Any) -> Any:
    """As Self-Attention Guidance does: an attention patch records, a function behind guidance uses it."""
    patched = host.model.clone()
    patched.set_model_attn1_replace(lambda *a, **k: None, "middle", 0, 0)
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    return patched


ASIDE: dict[str, Any] = {
    "CFG 1": (lambda h: h.model, {"cfg": 1.0}, "no negative side was calculated"),
    "RescaleCFG": (rescaled, {}, "a guidance function of another node"),
    "attention guidance": (recorded, {}, "an attention patch with a guidance function"),
}


@pytest.mark.claim("Guidance", "CFG 1, foreign guidance functions: nothing is derived, and it is said")
@pytest.mark.parametrize("name", ASIDE)
def test_where_nothing_is_derived_it_is_said(host: Any, name: str) -> None:
    make, changed, sentence = ASIDE[name]
    model, options = make(host), {"cfg": 3.0, "steps": STEPS, "size": SIZE, **changed}
    plain = host.sample(model, **options)
    assert torch.equal(host.sample(derived(host, model), **options), plain)
    trace = host.trace()
    assert trace["state"] == "stood down" and trace["computed"] == STEPS
    assert any(sentence in note for note in trace["notes"]), trace["notes"]


@pytest.mark.claim("Guidance", "DualCFGGuider: nothing is derived, and it is said")
def test_three_conditionings_stand_aside(host: Any) -> None:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def run(model: Any) -> torch.Tensor:
        guider = Guider_DualCFG(model)
        guider.set_conds(host.conditioning(1), host.conditioning(3), host.conditioning(2))
        guider.set_cfg(3.0, 1.5)
        sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
        latent = torch.zeros(1, 16, *SIZE)
        noise = host.comfy.sample.prepare_noise(latent, 0)
        out: torch.Tensor = guider.sample(noise, latent, host.comfy.samplers.sampler_object("euler"), sigmas, seed=0)
        return out

    assert torch.equal(run(derived(host)), run(host.model))
    trace = host.trace()
    assert trace["state"] == "stood down" and "calculates 3 sides at once" in trace["notes"][0]


def test_an_extra_pass_of_the_positive_is_not_taken_for_a_side(host: Any) -> None:
    """Skip Layer Guidance calculates the positive once more, alone, with a layer left out."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def guided(model: Any) -> Any:
        return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, double_layers="0", single_layers="1")[0]

    plain = host.sample(guided(host.model), cfg=3.0, steps=STEPS, size=SIZE)
    assert torch.equal(host.sample(guided(refusing(host)), cfg=3.0, steps=STEPS, size=SIZE), plain)
    host.sample(guided(derived(host)), cfg=3.0, steps=STEPS, size=SIZE)
    assert derived_steps(host) == [1, 2, 4, 5, 7]
    assert {(e["calls"], e["lanes"]) for e in host.trace()["evaluations"]} == {(2, 3), (2, 2)}


# Auto -----------------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Guidance", "Auto with guidance derive keeps its budget, and every other computed step costs half")
def test_auto_derives_in_its_computed_steps(host: Any, rows: Any) -> None:
    plain = host.sample(host.model, cfg=3.0, steps=20, size=SIZE)
    rows()
    refused = host.auto(keep_first=100, guidance="derive")
    out = host.sample(refused, cfg=3.0, steps=20, size=SIZE)
    assert (rows() < 40) == (len(derived_steps(host)) > 0) and not torch.equal(out, plain)
    host.sample(host.auto(computed=10, guidance="derive"), cfg=3.0, steps=20, size=SIZE)
    trace, ran = host.trace(), rows()
    assert trace["computed"] + trace["partial"] == 10 and trace["partial"] == len(derived_steps(host)) >= 2
    assert ran == 20 - trace["partial"] and trace["site"] == "guided"
    off = host.auto(speedup=1.0, guidance="derive")
    assert torch.equal(host.sample(off, cfg=3.0, steps=20, size=SIZE), plain)
    alone = host.sample(host.auto(computed=10, guidance="derive"), cfg=1.0, steps=20, size=SIZE)
    assert torch.equal(alone, host.sample(host.auto(computed=10, site="guided"), cfg=1.0, steps=20, size=SIZE))
