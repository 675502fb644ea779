"""A skipped evaluation against the host's own blocks, composed by hand (with ControlNet outputs too)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 12
SKIPPING = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}


class ByHand:
    """FLUX's forward from its modules, with a trunk that can be left out: out = final_layer(H_0 + R)."""

    def __init__(self, model: Any, control: dict[str, list[Tensor]] | None) -> None:
        self.model = model
        self.control = control or {"input": [], "output": []}
        self.residual: Tensor | None = None

    def velocity(self, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor, skip: bool) -> Tensor:
        from comfy.ldm.flux.layers import timestep_embedding

        model = self.model
        tokens, ids = model.process_img(x)
        img = model.img_in(tokens)
        vec = model.time_in(timestep_embedding(sigma, 256).to(img.dtype)) + model.vector_in(pooled)
        txt = model.txt_in(text)
        txt_ids = torch.zeros(x.shape[0], text.shape[1], 3)
        pe = model.pe_embedder(torch.cat((txt_ids, ids), dim=1))
        if skip:
            assert self.residual is not None
            out = img + self.residual
        else:
            out = self.trunk(img.clone(), txt, vec, pe)
            self.residual = out - img
        last = self.control["output"]
        if len(last) == len(model.single_blocks):
            out = out + last[-1]
        out = model.final_layer(out, vec)
        h, w = x.shape[2] // 2, x.shape[3] // 2
        return out.reshape(x.shape[0], h, w, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def trunk(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        """H_L without the last block's control output, which the host adds itself on every evaluation."""
        for i, block in enumerate(self.model.double_blocks):
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe)
            if i < len(self.control["input"]):
                img = img + self.control["input"][i]
        joint = torch.cat((txt, img), dim=1)
        for i, block in enumerate(self.model.single_blocks):
            joint = block(joint, vec=vec, pe=pe)
            if i < len(self.control["output"]) and i < len(self.model.single_blocks) - 1:
                joint = torch.cat(
                    (joint[:, : txt.shape[1]], joint[:, txt.shape[1] :] + self.control["output"][i]), dim=1
                )
        return joint[:, txt.shape[1] :]


def controlled(model: Any, control: dict[str, list[Tensor]] | None) -> Any:
    """The model with a fixed ControlNet result on every call."""

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        fresh = None if control is None else {name: [t.clone() for t in group] for name, group in control.items()}
        return executor(*args[:4], fresh, *args[5:], **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key("apply_model", "control", add)
    return patched


@pytest.mark.claim(
    "Add-ons", "FLUX ControlNet, on computed and skipped steps (against the host's blocks composed by hand)"
)
@pytest.mark.parametrize("with_control", [False, True])
@pytest.mark.parametrize("order", ["control first", "cache first"])
@pytest.mark.parametrize("size", [(12, 16), (14, 10)])
def test_cached_euler_run_equals_the_blocks_composed_by_hand(
    host: Any, with_control: bool, order: str, size: tuple[int, int]
) -> None:
    tokens = size[0] * size[1] // 4
    generator = torch.Generator().manual_seed(3)
    adds = [0.3 * torch.randn(1, tokens, 256, generator=generator) for _ in range(host.blocks)]
    doubles = len(host.diffusion_model.double_blocks)
    control = {"input": adds[:doubles], "output": adds[doubles:]} if with_control else None
    if order == "control first":
        model = host.apply(controlled(host.model, control), **SKIPPING)
    else:
        model = controlled(host.apply(**SKIPPING), control)

    ours = host.sample(model, steps=STEPS, size=size)
    trace = host.trace()
    skips = [e["action"] == "skipped" for e in trace["evaluations"]]
    assert sum(skips) == 7

    sigmas = torch.tensor([e["sigma"] for e in trace["evaluations"]] + [0.0])
    conditioning = host.conditioning(1)
    text, pooled = conditioning[0][0], conditioning[0][1]["pooled_output"]
    hand = ByHand(host.diffusion_model, control)
    empty = torch.zeros(1, 16, *size)
    x = host.comfy.sample.prepare_noise(empty, 0) * sigmas[0]
    for i, skip in enumerate(skips):
        x = x + (sigmas[i + 1] - sigmas[i]) * hand.velocity(x, sigmas[i : i + 1], text, pooled, skip)
    x = host.model.model.process_latent_out(x)
    assert torch.allclose(ours, x, atol=2e-4 * x.abs().max().item())


@pytest.mark.claim("Add-ons", "a ControlNet that starts or ends in the middle of a run")
@pytest.mark.parametrize("slots", [("input", 0), ("output", 1)])
def test_a_controlnet_that_starts_or_ends_mid_run_computes(host: Any, slots: tuple[str, int]) -> None:
    calls = 0

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        tensor = torch.full((1, 48, 256), 0.2)
        control = {"input": [None] * 2, "output": [None] * 2} if 4 <= calls < 8 else None
        if control is not None:
            control[slots[0]][slots[1]] = tensor
        return executor(*args[:4], control, *args[5:], **kwargs)

    model = host.apply(threshold=10, max_consecutive=1000, gamma_low=1000, gamma_high=1000)
    model.remove_wrappers_with_key("apply_model", host.host.KEY)
    model.add_wrapper_with_key("apply_model", "control", add)
    model.add_wrapper_with_key("apply_model", host.host.KEY, host.host.apply_model)
    host.sample(model, steps=STEPS)
    reasons = {e["step"]: e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"}
    assert reasons == {0: "first step", 3: "control changed", 7: "control changed", 11: "last step"}
