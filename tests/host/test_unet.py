"""Site unet on the real host: DeepCache on tiny U-Nets of the SD1.5 and SDXL classes, with random weights, against the
host's own blocks composed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

STEPS = 7


@dataclass
class Small:
    """A tiny U-Net: its runs, what it was called with, and which of its blocks ran."""

    host: Any
    family: str
    calls: list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]] = field(default_factory=list)
    ran: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model, self.text, self.shape = self.host.tiny.load(self.family)
        self.unet = self.model.model.diffusion_model
        self.blocks = {"input": len(self.unet.input_blocks), "output": len(self.unet.output_blocks)}

    def watch(self) -> list[Any]:
        """The host runs a block's layers one by one, so that a block is counted by its first layer."""
        handles = [self.unet.register_forward_hook(
            lambda _, args, kwargs, out: self.calls.append((args, dict(kwargs), out.clone())), with_kwargs=True
        )]  # fmt: skip
        groups = {
            "input": self.unet.input_blocks,
            "middle": [self.unet.middle_block],
            "output": self.unet.output_blocks,
        }
        for name, group in groups.items():
            for i, block in enumerate(group):
                layer = next(iter(block))
                handles.append(layer.register_forward_hook(lambda *_, at=(name, i): self.ran.append(at)))
        return handles

    def conditioning(self, seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, 8, self.text, generator=generator)
        return [[text, {"pooled_output": torch.randn(1, 1280, generator=generator)}]]

    def sample(self, model: Any = None, **options: Any) -> torch.Tensor:
        sides = {"positive": self.conditioning(1), "negative": self.conditioning(2)}
        given = {"latent": torch.zeros(self.shape), "steps": STEPS, "cfg": 3.0} | sides | options
        self.calls.clear()
        self.ran.clear()
        out: torch.Tensor = self.host.sample(model or self.model, **given)
        return out

    def deep(self, model: Any = None, **params: Any) -> Any:
        method = self.host.core.methods()["deepcache"](**params)
        return self.host.host.attach(model or self.model, method, None)

    def by_hand(self, call: Any, kept: int, stands_in: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The host's U-Net from its own layers: its output, and what entered the last `kept` output blocks."""
        from comfy.ldm.modules.diffusionmodules import openaimodel

        (x, timesteps), options = call[0][:2], call[1]
        context, y, count = options["context"], options.get("y"), self.blocks["input"]
        embedded = openaimodel.timestep_embedding(timesteps, self.unet.model_channels).to(x.dtype)
        emb = self.unet.time_embed(embedded)
        emb = emb + self.unet.label_emb(y) if y is not None else emb
        h, hs = x, []
        for block in list(self.unet.input_blocks)[: count if stands_in is None else kept]:
            h = openaimodel.forward_timestep_embed(block, h, emb, context, {})
            hs.append(h)
        first = 0 if stands_in is None else count - kept
        if stands_in is None:
            h = openaimodel.forward_timestep_embed(self.unet.middle_block, h, emb, context, {})
        else:
            h = stands_in
        entered = h
        for i in range(first, count):
            entered = h if i == count - kept else entered
            joined = torch.cat([h, hs.pop()], dim=1)
            size = hs[-1].shape if hs else None
            h = openaimodel.forward_timestep_embed(self.unet.output_blocks[i], joined, emb, context, {}, size)
        return self.unet.out(h.type(x.dtype)), entered


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def small(request: pytest.FixtureRequest, host: Any) -> Iterator[Small]:
    made = Small(host, request.param)
    handles = made.watch()
    yield made
    for handle in handles:
        handle.remove()


@pytest.mark.claim("U-Nets", "DeepCache on SD1.5 and SDXL (tiny, random weights): the host's U-Net composed by hand")
@pytest.mark.parametrize("branch", [0, 1, 3])
def test_a_skip_is_the_hosts_unet_over_its_outer_blocks(small: Small, branch: int) -> None:
    kept = branch + 1
    plain = small.sample()
    out = small.sample(small.deep(interval=3, branch=branch))
    trace = small.host.trace()
    skipped = [e["step"] for e in trace["evaluations"] if e["skip"]]
    assert trace["site"] == "unet" and skipped == [1, 2, 4, 5] and not torch.equal(out, plain)
    calls, everything = list(small.calls), {("middle", 0)}
    everything |= {(name, i) for name, count in small.blocks.items() for i in range(count)}
    outer = {at for at in everything if at[0] == "input" and at[1] < kept}
    outer |= {("output", i) for i in range(small.blocks["output"] - kept, small.blocks["output"])}
    assert len(calls) == STEPS
    assert sorted(small.ran) == sorted([*(3 * [*everything]), *(4 * [*outer])])  # each one as often as it has to
    deep = None
    for step, call in enumerate(calls):
        expected, entered = small.by_hand(call, kept, deep if step in skipped else None)
        assert torch.allclose(call[2], expected, atol=1e-5), step
        deep = deep if step in skipped else entered
    works = {e["work"] for e in trace["evaluations"] if e["skip"]}
    assert len(works) == 1 and 0 < works.pop() < 1 and {e["action"] for e in trace["evaluations"]} == {
        "computed", "partial"}  # fmt: skip


def test_off_and_refusing_are_bit_identical_and_nothing_stays(small: Small, remains: Any) -> None:
    lists = [small.unet.input_blocks, small.unet.middle_block, small.unet.output_blocks]
    plain = small.sample(sampler="heun", steps=5)
    for params in ({"interval": 1}, {"warmup_steps": 100}):
        assert torch.equal(small.sample(small.deep(**params), sampler="heun", steps=5), plain)
        assert small.host.trace()["partial"] == 0
    fast = small.deep(interval=3)
    out = small.sample(fast, sampler="heun", steps=5)
    assert torch.equal(small.sample(fast, sampler="heun", steps=5), out) and not torch.equal(out, plain)
    assert torch.equal(small.sample(sampler="heun", steps=5), plain)
    after = [small.unet.input_blocks, small.unet.middle_block, small.unet.output_blocks]
    assert all(a is b for a, b in zip(lists, after, strict=True))
    assert len(remains.tensors) > 4 and [ref for ref in remains.tensors if ref() is not None] == []


def test_batched_and_split_agree(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    together = small.sample(small.deep(interval=3), latent=torch.zeros(2, *small.shape[1:]))
    monkeypatch.setattr(small.host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = small.sample(small.deep(interval=3), latent=torch.zeros(2, *small.shape[1:]))
    assert {e["calls"] for e in small.host.trace()["evaluations"]} == {2}
    assert torch.allclose(together, apart, atol=1e-4)


def test_an_error_in_a_shortened_call_leaves_the_model_whole(small: Small) -> None:
    plain = small.sample()
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first skip: only the outermost blocks run
            raise RuntimeError("injected")

    handle = next(iter(small.unet.output_blocks[-1])).register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="injected"):
            small.sample(small.deep(interval=3))
    finally:
        handle.remove()
    assert torch.equal(small.sample(), plain)


# where it stands aside ------------------------------------------------------------------------------------------------


def patched(name: str) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        clone = model.clone()
        if name == "FreeU":
            from comfy_extras.nodes_freelunch import FreeU_V2

            return FreeU_V2.execute(clone, 1.3, 1.4, 0.9, 0.2).args[0]
        if name == "attention patch":
            clone.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v))
        else:
            clone.add_wrapper_with_key("diffusion_model", "theirs", lambda executor, *a, **k: executor(*a, **k))
        return clone

    return make


@pytest.mark.claim("U-Nets", "DeepCache stands down where other nodes patch the U-Net's blocks, and says so")
@pytest.mark.parametrize("name", ["FreeU", "attention patch", "wrapper"])
def test_patches_stand_down(small: Small, name: str) -> None:
    model = patched(name)(small.model)
    plain = small.sample(model)
    assert torch.equal(small.sample(small.deep(model, interval=3)), plain)
    trace = small.host.trace()
    assert trace["state"] == "stood down" and trace["computed"] == STEPS
    assert any("may count on every block" in note for note in trace["notes"])


def test_steps_with_a_controlnet_are_computed(small: Small) -> None:
    import comfy.controlnet

    class Constant(comfy.controlnet.ControlBase):
        def get_control(self, x: Any, t: Any, cond: Any, count: int, options: Any) -> Any:
            if t[0] < self.timestep_range[1]:
                return None
            return {"input": [], "output": [], "middle": [torch.full((x.shape[0], 1, 1, 1), 0.3)]}

        def get_models(self) -> list[Any]:
            return []

        def copy(self) -> Any:
            return Constant()

    net = Constant()
    net.timestep_percent_range = (0.0, 0.4)
    sides = {
        side: [[tensor, {**options, "control": net}] for tensor, options in small.conditioning(seed)]
        for side, seed in (("positive", 1), ("negative", 2))
    }
    small.sample(small.deep(interval=100), **sides)
    trace = small.host.trace()
    reasons = [e["reason"] for e in trace["evaluations"]]
    under = reasons.count("ControlNet")
    assert under >= 2 and reasons[:under] == ["ControlNet"] * under and trace["state"] == "done"
    assert reasons[under] == "no history" and trace["partial"] == STEPS - under - 2
    assert any("with a ControlNet are computed in full" in note for note in trace["notes"])


def test_a_transformer_has_no_such_place(host: Any) -> None:
    method = host.core.methods()["deepcache"](interval=3)
    plain = host.sample(host.model, steps=5, size=(8, 8))
    assert torch.equal(host.sample(host.host.attach(host.model, method, None), steps=5, size=(8, 8)), plain)
    assert host.trace()["state"] == "stood down" and "DeepCache has no place to skip at" in host.trace()["notes"][0]
