"""Sites attention and mlp against blocks composed by hand: the host's own forwards, with submodules' outputs put in by
torch's forward hooks. The oracle knows nothing of our overrides.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

STEPS = 7
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
    options = {"steps": STEPS, "cfg": 3.0, "batch": 2}
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
