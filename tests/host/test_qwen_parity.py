"""Qwen-Image: cached runs against the host's own blocks composed by hand, with all that is added between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

STEPS = 12
METHODS = ["index", "index_timestep_zero", "negative_index", "offset"]


@pytest.fixture(scope="module")
def qwen(host: Any) -> Any:
    return host.tiny.Qwen(host)


def nudge(args: dict[str, Any]) -> dict[str, Any]:
    """A control patch as DiffSynth's: it looks at the stream and writes into it."""
    img = args["img"]
    img[:, :20] += 0.3 * torch.tanh(img[:, :20]) * (1 + args["block_index"])
    return args


class ByHand:
    """Qwen-Image's forward from its modules, with a trunk that can be left out: out = proj_out(norm_out(H_0 + R)).

    control: b n d per block, added after it; patched: whether `nudge` runs after every block.
    """

    def __init__(
        self,
        model: Any,
        mask: Tensor | None,
        references: list[Tensor],
        method: str,
        control: list[Tensor],
        patched: bool,
    ) -> None:
        self.model, self.mask, self.references, self.method = model, mask, references, method
        self.control, self.patched = control, patched
        self.residual: Tensor | None = None

    def velocity(self, x: Tensor, sigma: Tensor, text: Tensor, skip: bool) -> Tensor:
        model = self.model
        target, ids, (_, _, t, h, w) = model.process_img(x)
        entry = model.img_in(target)
        txt = model.txt_in(model.txt_norm(text))
        last = len(model.transformer_blocks) - 1
        if skip:
            assert self.residual is not None
            out = entry + self.residual
        else:
            out = self.trunk(x, entry, ids, txt, sigma)
            self.residual = out - entry
        out = self.between(last, out)
        out = model.proj_out(model.norm_out(out, model.time_text_embed(sigma, out)))
        out = rearrange(out, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h // 2, w=w // 2, p=2, q=2)
        return out[..., : x.shape[-2], : x.shape[-1]]

    def between(self, i: int, img: Tensor) -> Tensor:
        """What the host does after block i, on computed and on skipped evaluations."""
        if self.patched:
            img = nudge({"img": img, "block_index": i})["img"]
        if self.control:
            add = self.control[i]
            img = torch.cat((img[:, : add.shape[1]] + add, img[:, add.shape[1] :]), dim=1)
        return img

    def trunk(self, x: Tensor, entry: Tensor, ids: Tensor, txt: Tensor, sigma: Tensor) -> Tensor:
        """H_L, target tokens, before what follows the last block."""
        model, targets = self.model, entry.shape[1]
        img, place, right, down = entry, 0, 0, 0
        for latent in self.references:
            shift = {}
            if self.method == "offset":
                sideways = latent.shape[-2] + down <= latent.shape[-1] + right
                shift = {"h_offset": down} if sideways else {"w_offset": right}
                down = max(down, latent.shape[-2] + shift.get("h_offset", 0))
                right = max(right, latent.shape[-1] + shift.get("w_offset", 0))
            place = 1 if self.method == "offset" else place + (-1 if self.method == "negative_index" else 1)
            tokens, more, _ = model.process_img(latent.repeat(x.shape[0], 1, 1, 1, 1), index=place, **shift)
            img, ids = torch.cat((img, model.img_in(tokens)), dim=1), torch.cat((ids, more), dim=1)
        zero = self.method == "index_timestep_zero" and self.references
        temb = model.time_text_embed(torch.cat((sigma, 0 * sigma)) if zero else sigma, img)
        start = max(-(-x.shape[-1] // 2) // 2, -(-x.shape[-2] // 2) // 2)
        text_ids = torch.arange(start, start + txt.shape[1]).reshape(1, -1, 1).repeat(x.shape[0], 1, 3)
        pe = model.pe_embedder(torch.cat((text_ids, ids), dim=1))
        for i, block in enumerate(model.transformer_blocks):
            txt, img = block(img, txt, self.mask, temb, pe, targets if zero else None)
            if i < len(model.transformer_blocks) - 1:
                img = self.between(i, img)
        return img[:, :targets]


def controlled(model: Any, control: list[Tensor], patched: bool) -> Any:
    """The model with a fixed ControlNet result on every call, and with the block patch."""

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        fresh = {"input": [tensor.clone() for tensor in control]} if control else None
        return executor(*args[:4], fresh, *args[5:], **kwargs)

    changed = model.clone()
    changed.add_wrapper_with_key("apply_model", "control", add)
    if patched:
        changed.set_model_double_block_patch(nudge)
    return changed


def compare(
    host: Any,
    qwen: Any,
    *,
    size: tuple[int, int] = (12, 16),
    batch: int = 1,
    sizes: tuple[tuple[int, int], ...] = (),
    method: str = "index",
    masked: bool = False,
    control: bool = False,
    patched: bool = False,
    cache_first: bool = False,
) -> None:
    """A cached Euler run of the host equals the same run by hand, skips included."""
    tokens = -(-size[0] // 2) * -(-size[1] // 2) * qwen.layers
    generator = torch.Generator().manual_seed(3)
    adds = [0.5 * torch.randn(1, tokens, 128, generator=generator) for _ in qwen.blocks] if control else []
    skipping = host.tiny.SKIPPING
    if cache_first:
        model = controlled(host.apply(qwen.model, **skipping), adds, patched)
    else:
        model = host.apply(controlled(qwen.model, adds, patched), **skipping)
    options: dict[str, Any] = {"reference_latents_method": method}
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    if masked:
        options["attention_mask"] = mask
    positive = qwen.conditioning(1, *sizes, **options)

    ours = qwen.sample(model, size=size, batch=batch, positive=positive)
    trace = host.trace()
    skips = [e["action"] == "skipped" for e in trace["evaluations"]]
    assert trace["site"] == "trunk" and sum(skips) >= 6, trace["notes"]

    base = qwen.model.model
    references = [base.process_latent_in(latent) for latent in positive[0][1].get("reference_latents", ())]
    logits = (mask - 1).float() * torch.finfo(torch.float32).max if masked else None
    hand = ByHand(qwen.diffusion_model, logits, references, method, adds, patched)
    sigmas = torch.tensor([e["sigma"] for e in trace["evaluations"]] + [0.0])
    x = host.comfy.sample.prepare_noise(torch.zeros(batch, 16, qwen.layers, *size), 0) * sigmas[0]
    text = positive[0][0].repeat(batch, 1, 1)
    for i, skip in enumerate(skips):
        x = x + (sigmas[i + 1] - sigmas[i]) * hand.velocity(x, sigmas[i].repeat(batch), text, skip)
    x = base.process_latent_out(x)
    assert torch.allclose(ours, x, atol=2e-4 * float(x.abs().max()))


@pytest.mark.claim("Models", "Qwen-Image: a skipped evaluation equals the host's own blocks composed by hand")
@pytest.mark.parametrize("size", [(12, 16), (26, 38), (13, 17)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_runs(host: Any, qwen: Any, size: tuple[int, int], batch: int, masked: bool) -> None:
    compare(host, qwen, size=size, batch=batch, masked=masked)


@pytest.mark.claim(
    "Add-ons", "Qwen-Image ControlNet and block control patches (DiffSynth), on computed and skipped steps"
)
@pytest.mark.parametrize(("control", "patched"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("sizes", [(), ((20, 20),)])
def test_control(
    host: Any, qwen: Any, control: bool, patched: bool, cache_first: bool, sizes: tuple[tuple[int, int], ...]
) -> None:
    compare(host, qwen, control=control, patched=patched, cache_first=cache_first, sizes=sizes)


@pytest.mark.claim(
    "Models", "Qwen-Image-Edit: every reference method, one or several references, larger than the target (by hand)"
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [((12, 16),), ((8, 8), (21, 20))])
@pytest.mark.parametrize("batch", [1, 2])
def test_references(host: Any, qwen: Any, method: str, sizes: tuple[tuple[int, int], ...], batch: int) -> None:
    compare(host, qwen, method=method, sizes=sizes, batch=batch, size=(13, 16))


def test_a_block_patch_finds_reference_tokens_on_every_evaluation(host: Any, qwen: Any) -> None:
    seen: list[tuple[int, int]] = []

    def count(args: dict[str, Any]) -> dict[str, Any]:
        seen.append((args["img"].shape[1], args["txt"].shape[1]))
        return args

    model = qwen.model.clone()
    model.set_model_double_block_patch(count)
    qwen.sample(host.apply(model, **host.tiny.SKIPPING), positive=qwen.conditioning(1, (8, 8)))
    assert host.trace()["skipped"] >= 6
    assert seen == [(48 + 16, 8)] * STEPS * 3


def test_references_with_a_text_mask(host: Any, qwen: Any) -> None:
    compare(host, qwen, method="index_timestep_zero", sizes=((8, 8),), masked=True, control=True)


@pytest.mark.parametrize("sizes", [(), ((8, 8),)])
def test_layers(host: Any, sizes: tuple[tuple[int, int], ...]) -> None:
    compare(host, host.tiny.Qwen(host, "qwen_image_layered"), method="negative_index", sizes=sizes)


@pytest.mark.parametrize("slot", [0, 2])
def test_a_controlnet_that_starts_or_ends_mid_run_computes(host: Any, qwen: Any, slot: int) -> None:
    calls = 0

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        control: dict[str, list[Any]] = {"input": [None] * 3}
        control["input"][slot] = torch.full((1, 48, 128), 0.2)
        return executor(*args[:4], control if 4 <= calls < 8 else None, *args[5:], **kwargs)

    model = qwen.model.clone()
    model.add_wrapper_with_key("apply_model", "control", add)
    unlimited = {"max_consecutive": 1000, "tads_min": 10.0, "tads_max": 10.0}
    qwen.sample(host.apply(model, **host.tiny.SKIPPING | unlimited))
    reasons = {e["step"]: e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"}
    assert reasons == {0: "first step", 3: "control changed", 7: "control changed", 11: "last step"}
