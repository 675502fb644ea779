"""Sites attention and mlp against blocks composed by hand: the host's own forwards, with submodules' outputs put in by
torch's forward hooks. The oracle knows nothing of our overrides.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

STEPS, SMALL = 7, {"steps": 7, "size": (8, 8)}
ATTENTION, MLP = {2, 4, 5}, {3, 4}
"""Steps that reuse each module: one state after the other, and both."""


class ByHand:
    """A model whose modules give, on the steps of a table, what they gave on the last step that is not in it."""

    def __init__(self, blocks: Any, attention: set[int], mlp: set[int], calls: int) -> None:
        self.table, self.calls, self.step, self.call = {"attention": attention, "mlp": mlp}, calls, -1, -1
        self.kept: dict[Any, Any] = {}
        self.handles: list[Any] = []
        first = blocks[0]
        self.handles.append(first.register_forward_pre_hook(self.tick))
        for block in blocks:
            if hasattr(block, "linear2"):
                self.handles.append(block.linear2.register_forward_hook(self.joint))
            elif hasattr(block, "attn"):
                self.watch("attention", block.attn)
            elif hasattr(block, "self_attn"):
                self.watch("attention", block.self_attn, block.cross_attn)
                self.watch("mlp", block.ffn)
            else:
                self.watch("attention", block.img_attn.proj, block.txt_attn.proj)
            if hasattr(block, "img_mlp"):
                self.watch("mlp", block.img_mlp, block.txt_mlp)

    def tick(self, *_: Any) -> None:
        self.call = (self.call + 1) % self.calls
        self.step += self.call == 0

    def watch(self, kind: str, *modules: Any) -> None:
        for module in modules:
            self.handles.append(module.register_forward_hook(lambda m, _, out, k=kind: self.held(k, (k, m), out)))

    def held(self, kind: str, key: Any, out: Any) -> Any:
        key = (*key, self.call)
        if self.step not in self.table[kind]:
            self.kept[key] = out.clone() if isinstance(out, torch.Tensor) else tuple(each.clone() for each in out)
        again = self.kept[key]
        return again.clone() if isinstance(again, torch.Tensor) else tuple(each.clone() for each in again)

    def joint(self, linear: Any, args: Any, _: Any) -> torch.Tensor:
        """A single block's output as the sum of both modules'."""
        width, weight = linear.out_features, linear.weight.float()
        attention = args[0][..., :width].float() @ weight[:, :width].T
        mlp = args[0][..., width:].float() @ weight[:, width:].T + linear.bias.float()
        both = self.held("attention", ("a", linear), attention) + self.held("mlp", ("m", linear), mlp)
        return both.to(args[0].dtype)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def by_hand(blocks: Any, run: Any, calls: int = 1, attention: set[int] = ATTENTION, mlp: set[int] = MLP) -> Any:
    oracle = ByHand(blocks, attention, mlp, calls)
    try:
        return run()
    finally:
        oracle.remove()


def states(host: Any, model: Any, attention: set[int] = ATTENTION, mlp: set[int] = MLP, **rule: Any) -> Any:
    """A clone of the model that reuses attention and MLP on these steps."""
    types, gates, predictors = host.types, host.schedules, host.predictors
    rules = tuple(
        types.Rule((place,), types.Signal(), gates.Listed(lambda schedule, steps=frozenset(steps): steps),
                   predictors.Hold(), "absolute", **rule)
        for place, steps in ((types.ATTENTION, attention), (types.MLP, mlp))
    )  # fmt: skip
    return host.host.attach(model, types.Method("states", rules), None)


def works(trace: dict[str, Any]) -> list[float]:
    return [round(e["work"], 3) for e in trace["evaluations"]]


@pytest.mark.claim("Half steps", "FLUX: attention, MLP, both or neither reused equal the blocks composed by hand")
@pytest.mark.parametrize("split", [False, True])
def test_the_four_states_on_flux(host: Any, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    blocks = [*host.diffusion_model.double_blocks, *host.diffusion_model.single_blocks]
    options = {"steps": STEPS, "cfg": 3.0, "batch": 2, "size": (8, 8)}
    expected = by_hand(blocks, lambda: host.sample(host.model, **options), 2 if split else 1)
    ours = host.sample(states(host, host.model), **options)
    trace = host.trace()
    assert torch.allclose(ours, expected, atol=2e-4)
    assert not torch.allclose(ours, host.sample(host.model, **options), atol=1e-2)
    half, other = works(trace)[2:4]
    assert works(trace) == [1, 1, half, other, 0, half, 1] and half + other == pytest.approx(1) and 0.3 < half < 0.7
    assert [e["action"] for e in trace["evaluations"]][2:5] == ["partial", "partial", "skipped"]
    assert {e["calls"] for e in trace["evaluations"]} == {2 if split else 1}
    assert all("forward" not in module.__dict__ for module in host.diffusion_model.modules())


def test_a_reused_mlp_runs_no_activation(host: Any) -> None:
    """Nor is an activation of nothing joined to attention's result, in blocks that hold both in one layer."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        """Elements that go through an activation, by step."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.gelu.default:
                self.steps[-1] += args[0].numel()
            return func(*args, **(kwargs or {}))

    model, counted = states(host, host.model), Counted()
    handle = host.diffusion_model.register_forward_pre_hook(lambda *_: counted.steps.append(0))
    try:
        with counted:
            host.sample(model, **SMALL)
    finally:
        handle.remove()
    every = counted.steps[0]
    assert every and counted.steps == [0 if step in MLP else every for step in range(STEPS)]


@pytest.mark.claim("Half steps", "Qwen-Image: attention, MLP, both or neither reused equal the blocks composed by hand")
@pytest.mark.parametrize("split", [False, True])
def test_the_four_states_on_qwen_image(host: Any, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    qwen = host.tiny.Qwen(host)
    options = {"steps": STEPS, "cfg": 3.0}
    expected = by_hand(qwen.blocks, lambda: qwen.sample(**options), 2 if split else 1)
    ours = qwen.sample(states(host, qwen.model), **options)
    assert torch.allclose(ours, expected, atol=2e-4)
    assert not torch.allclose(ours, qwen.sample(**options), atol=1e-3)
    trace = host.trace()
    assert works(trace)[4] == 0 and trace["partial"] == 3 and trace["skipped"] == 1, trace["notes"]


@pytest.mark.claim("Half steps", "Wan: attention, MLP, both or neither reused equal the blocks composed by hand")
@pytest.mark.parametrize("split", [False, True])
def test_the_four_states_on_wan(host: Any, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    """Self and cross attention are reused together."""
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    wan = host.tiny.Wan(host)
    compare_on_wan(host, wan.model, lambda model: wan.sample(model, steps=STEPS, cfg=3.0), split)


@pytest.mark.claim("Half steps", "Wan image to video: the same, where the cross attention looks at an image too")
@pytest.mark.parametrize("split", [False, True])
def test_the_four_states_on_wan_image_to_video(host: Any, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    family = host.families.FAMILIES["Wan 2.1 image to video (concatenated channels)"]
    sides = {"positive": family.conditioning(1), "negative": family.conditioning(2)}
    model, seen = family.patcher(), []
    block = model.model.diffusion_model.blocks[0]
    block.cross_attn.register_forward_pre_hook(lambda _, args, named: seen.append(named["context_img_len"]),
                                               with_kwargs=True)  # fmt: skip
    compare_on_wan(host, model, lambda model: host.sample(model, latent=family.empty(), steps=STEPS, cfg=3.0, **sides),
                   split)  # fmt: skip
    image = family.constants["clip_vision_output"].penultimate_hidden_states.shape[1]
    assert set(seen) == {image} and hasattr(block.cross_attn, "k_img")


def compare_on_wan(host: Any, model: Any, run: Any, split: bool) -> None:
    plain = run(model)
    expected = by_hand(model.model.diffusion_model.blocks, lambda: run(model), 2 if split else 1)
    ours = run(states(host, model))
    trace = host.trace()
    assert torch.allclose(ours, expected, atol=2e-4)
    assert not torch.allclose(ours, plain, atol=1e-3)
    assert works(trace)[4] == 0 and trace["partial"] == 3 and trace["skipped"] == 1, trace["notes"]


class Kept:
    """What a fused block asks of a site: it stores in one pass and stands in afterwards."""

    def __init__(self, session: Any) -> None:
        self.session, self.kept, self.reuse, self.idle = session, None, False, False

    def standing(self, layer: int, stream: str, like: torch.Tensor) -> Any:
        return self.kept.clone() if self.reuse else None

    def replaced(self, layer: int, stream: str, idle: bool = False) -> None:
        self.idle = idle

    def records(self, layer: int) -> bool:
        return True

    def stored(self, layer: int, stream: str, out: torch.Tensor) -> torch.Tensor:
        self.kept = out.clone()
        return out

    def alone(self) -> Any:
        return contextlib.nullcontext()


class Scaled(torch.nn.Linear):
    """A format that cannot be cut: what it holds is not what it multiplies with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight * 3, self.bias)


@pytest.mark.claim("Half steps", "joint layers in fp32, bf16, fp16 and fp8 are cut; formats that cannot be are not")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "float8_e4m3fn", "scaled"])
def test_joint_layers_of_every_format(host: Any, weights: str) -> None:
    """A single block's two layers: each of the four states against its two terms, in the precision it computes in."""
    import comfy.ops

    fused = host.fused
    layer = Scaled if weights == "scaled" else comfy.ops.manual_cast.Linear
    dtype = torch.float32 if weights == "scaled" else getattr(torch, weights)
    width, hidden, compute = 64, 256, torch.bfloat16 if weights == "bfloat16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        enter, leave = layer(width, 3 * width + hidden), layer(width + hidden, width)
        for parameter in (*enter.parameters(), *leave.parameters()):
            parameter.requires_grad_(False)
            parameter.data = (torch.randn(parameter.shape, generator=generator) / 16).to(dtype)
    session = host.session([])
    part = host.types.Fused(enter, leave, width)
    joint = fused.Fusion(part, 0, fused.Cut(host.host.lent))
    sides = joint.sides = {"attention": Kept(session), "mlp": Kept(session)}

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block without its attention and activation: what goes into the second layer, and what comes out."""
        inside = joint.enter(x)
        joined = torch.cat((inside[..., :width], inside[..., 3 * width :]), dim=-1)
        return joined, joint.leave(joined)

    old, new = (torch.randn(2, 5, width, generator=generator).to(compute) for _ in range(2))
    terms = {}
    weight = (leave.weight.float() * (3 if weights == "scaled" else 1)).to(compute).float()
    for name, x in (("old", old), ("new", new)):
        for side in sides.values():
            side.reuse = False
        joined, out = run(x)
        assert torch.equal(out, leave(joined))  # a computed block is the host's own
        attention = joined[..., :width].float() @ weight[:, :width].T
        terms[name] = attention, out.float() - attention
    tolerance = 0.1 if compute == torch.bfloat16 else 1e-4
    for attention, mlp in ((True, False), (False, True), (True, True)):
        for side in sides.values():
            side.reuse = False
        run(old)
        sides["attention"].reuse, sides["mlp"].reuse = attention, mlp
        _, out = run(new)
        cut = weights != "scaled" or (attention and mlp)
        expected = terms["old" if attention and cut else "new"][0] + terms["old" if mlp and cut else "new"][1]
        assert torch.allclose(out.float(), expected, atol=tolerance), (attention, mlp)
    assert (weights == "scaled") == (session.recorder.notes == [fused.UNCUT])


@pytest.mark.claim("Half steps", "foreign attention overrides and block patches run on what is computed")
def test_foreign_attention_and_patches_run_on_computed_units(host: Any) -> None:
    calls: list[str] = []

    def attend(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("attention")
        return function(*args, **kwargs) * 1.1

    def patch(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        calls.append("patch")
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.02}

    model = host.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    model.set_model_patch_replace(patch, "dit", "double_block", 1)
    plain = host.sample(model, **SMALL)
    every = host.blocks * STEPS
    assert calls.count("attention") == every and calls.count("patch") == STEPS
    assert torch.equal(host.sample(states(host, model, set(), set()), **SMALL), plain)
    calls.clear()
    cached = host.sample(states(host, model, ATTENTION, set()), **SMALL)
    assert calls.count("attention") == host.blocks * (STEPS - len(ATTENTION)) and calls.count("patch") == STEPS
    blocks = [*host.diffusion_model.double_blocks, *host.diffusion_model.single_blocks]
    expected = by_hand(blocks, lambda: host.sample(model, **SMALL), attention=ATTENTION, mlp=set())
    assert torch.allclose(cached, expected, atol=2e-4)


@pytest.mark.claim("Half steps", "compiled models stand down with a note")
def test_a_compiled_model_stands_down(host: Any) -> None:
    model = host.model.clone()
    model.add_wrapper_with_key(
        "apply_model", "torch.compile", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    plain = host.sample(host.model, **SMALL)
    assert torch.equal(host.sample(states(host, model), **SMALL), plain)
    assert "compiled" in host.trace()["notes"][-1]


@pytest.mark.claim("Half steps", "what is kept in main memory or in fp8; a budget keeps the last blocks and says so")
def test_where_and_how_much_is_kept(host: Any) -> None:
    feb = host.core.methods()["feb_cache"]

    def run(**options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        method = feb(work=0.35, **options)
        return host.sample(host.host.attach(host.model, method, None), **SMALL), host.trace()

    plain = host.sample(host.model, **SMALL)
    device, trace = run()
    beside = trace["cache_bytes"] - trace["foreseen_bytes"]  # a few latents, which the engine keeps for every method
    assert 0 <= beside < 0.2 * trace["foreseen_bytes"]
    assert "foreseen" in host.core.report(trace)
    ram, other = run(store="ram")
    assert torch.equal(ram, device) and other["foreseen_bytes"] == 0
    eight, smaller = run(store="fp8")
    assert smaller["foreseen_bytes"] < 0.3 * trace["foreseen_bytes"]  # of float32
    assert smaller["cache_bytes"] - beside == pytest.approx(smaller["foreseen_bytes"], rel=0.01)
    assert 0 < float((eight - device).norm()) < 0.2 * float((device - plain).norm())
    tight, few = run(memory=trace["foreseen_bytes"] / 2e9)
    assert 0 < few["cache_bytes"] - beside <= trace["foreseen_bytes"] / 2
    assert any("only the last" in note for note in few["notes"])
    assert max(e["work"] for e in few["evaluations"]) == 1 and min(works(few)) > 0.3  # the first blocks always run
    assert not torch.equal(tight, device) and float((tight - plain).norm()) < float((device - plain).norm())
