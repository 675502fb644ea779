"""A small Wan with random weights: what its architecture file says against what the host's own blocks do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

STEPS = 10
SKIPPING = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}


@pytest.fixture(scope="module")
def wan(host: Any) -> Any:
    return host.tiny.Wan(host)


@pytest.mark.claim("Models", "Wan 2.1 and 2.2 (random weights): the trunk, batched and split CFG; off is bit-identical")
@pytest.mark.parametrize("split", [False, True])
def test_the_trunk(host: Any, wan: Any, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    options, runs = {"steps": STEPS, "cfg": 3.0}, []
    plain = wan.sample(**options)
    for threshold in (0.0, 1e-6):
        assert torch.equal(wan.sample(host.apply(wan.model, threshold=threshold), **options), plain)
    handles = [block.register_forward_hook(lambda *_: runs.append(1)) for block in wan.blocks]
    try:
        out = wan.sample(host.apply(wan.model, **SKIPPING), **options)
    finally:
        for handle in handles:
            handle.remove()
    trace = host.trace()
    assert (trace["site"], trace["state"], trace["model"], trace["notes"]) == ("trunk", "done", "Wan", [])
    assert trace["skipped"] >= 4 and len(runs) == trace["computed"] * len(wan.blocks) * (1 + split)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert host.core.architecture_of(wan.diffusion_model).grid(tuple(wan.shape)) == (2, 4, 4)


@pytest.mark.parametrize("method", ["dbcache", "fastcache", "profilingdit"])
def test_methods_with_a_tail_or_single_blocks(host: Any, wan: Any, method: str) -> None:
    """The text passes by the blocks: what needs it gets an empty stream."""
    published = host.core.methods()[method]
    params = {**published.skipping, **({"head": 1, "tail": 1} if method == "dbcache" else {})}
    model = wan.model
    if method == "dbcache":  # two blocks leave nothing between a head and a tail
        params |= {"tail": 0}
    out = wan.sample(host.host.attach(model, published(**params), None), steps=STEPS)
    trace = host.trace()
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] >= 1, trace["notes"]
    assert torch.isfinite(out).all() and not torch.equal(out, wan.sample(steps=STEPS))


@pytest.mark.parametrize("frames", [1, 2])
def test_the_modulated_input_is_what_enters_self_attention(host: Any, wan: Any, frames: int) -> None:
    """With one noise level for all, and with one a frame (Wan 2.2 5B)."""
    model, seen = wan.diffusion_model, []
    architecture, width, grid = host.core.architecture_of(model), model.dim, (2, 4, 4)
    img, text = torch.randn(1, 32, width), torch.randn(1, 8, width)
    levels = torch.randn(1, frames, 6, width)
    handle = model.blocks[0].self_attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model.blocks[0](img, e=levels, freqs=model.rope_encode(*grid[:1], 8, 8, dtype=torch.float32), context=text)
    finally:
        handle.remove()
    args = {"img": img, "txt": text, "vec": levels, "transformer_options": {"grid_sizes": grid}}
    streams = architecture.enter(args)
    assert streams.targets == 32 and not streams.references
    assert torch.allclose(architecture.modulated(model, streams.img, streams.vec), seen[0], atol=1e-5)


def test_the_shares_of_the_14b(host: Any) -> None:
    """Self attention, cross attention, feed-forward at 832 x 480, 81 frames: counted by hand for the reference."""
    from comfy.ldm.wan.model import WanModel

    shape = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 1}
    model = WanModel(**shape, device="meta", operations=host.comfy.ops.disable_weight_init)
    architecture, image, text = host.core.architecture_of(model), 21 * 30 * 52, 512
    found = {
        (kind, stream): share
        for kind in ("attention", "mlp")
        for (_, stream), share in host.shares(architecture, model, architecture.slots(model), kind, image, text).items()
    }
    assert [round(found[unit], 2) for unit in (("attention", "img"), ("attention", "cross"), ("mlp", "img"))] == [
        0.69,
        0.09,
        0.22,
    ]


def test_shares_are_what_torch_counts_in_image_to_video(host: Any) -> None:
    """Where the cross attention looks at text and at an image's tokens, by keys and values of their own."""
    from torch.utils.flop_counter import FlopCounterMode

    model = host.families.FAMILIES["Wan 2.1 image to video (concatenated channels)"].patcher().model.diffusion_model
    architecture, (block, *_), image, text, seen = host.core.architecture_of(model), model.blocks, 32, 8, 5
    img, context = torch.randn(1, image, model.dim), torch.randn(1, seen + text, model.dim)
    freqs = model.rope_encode(2, 8, 8, dtype=torch.float32)
    counted = []
    for run in (
        lambda: block.self_attn(img, freqs),
        lambda: block.cross_attn(img, context, context_img_len=seen),
        lambda: block.ffn(img),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    slots = architecture.slots(model)
    kinds = ("attention", "mlp")
    attention, mlp = (host.shares(architecture, model, slots, kind, image, seen + text) for kind in kinds)
    shares = [len(slots) * each for each in (attention[0, "img"], attention[0, "cross"], mlp[0, "img"])]
    assert shares == pytest.approx([each / sum(counted) for each in counted], rel=0.02)


def test_relatives_are_not_described(host: Any) -> None:
    """Their blocks are not all that happens between the embedding and the head."""
    from comfy.ldm.wan.model import CameraWanModel, WanModel

    shape = {"dim": 96, "ffn_dim": 64, "num_heads": 2, "num_layers": 1, "device": "meta"}
    options = {**shape, "operations": host.comfy.ops.disable_weight_init}
    assert host.core.architecture_of(WanModel(**options)) is not None
    assert host.core.architecture_of(CameraWanModel(**options)) is None
    assert host.core.architecture_of(WanModel(**options, in_dim_ref_conv=16)) is None
