"""How a machine runs a model: weights that are streamed block by block, quantised layers, strict settings, interrupts;
and what is loaded beside it: a ControlNet checkpoint, an adapter that looks at a picture.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 8
METHODS = {
    "auto": {"quality": "Custom", "speedup": 2.0},
    "spectralcache": {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0},
    "freqca": {"interval": 3},
    "first_block_cache": {"threshold": 10.0},
    "feb_cache": {},
}
"""Settings that skip much: whole calls, trunk, bands, a range of blocks, attention and MLP."""

pytestmark = pytest.mark.usefixtures("untrained")
every_method = pytest.mark.parametrize("method", METHODS)


def settings(host: Any, method: str, model: Any = None) -> tuple[Any, Any]:
    """A clone on which nothing is skipped, and one on which much is."""
    published = host.core.methods()[method]
    refusing, skipping = published.refusing, {**published.skipping, **METHODS[method]}
    return tuple(host.host.attach(model or host.model, published(**params), None) for params in (refusing, skipping))


def check(host: Any, method: str, model: Any = None, **options: Any) -> dict[str, Any]:
    """Refusing: to the bit. Skipping: finite, repeatable, and the model as it was. Returns the skipping run's trace."""
    model = model or host.model
    refusing, skipping = settings(host, method, model)
    plain = host.sample(model, steps=STEPS, **options)
    assert torch.equal(host.sample(refusing, steps=STEPS, **options), plain)
    assert host.trace()["computed"] == STEPS
    out = host.sample(skipping, steps=STEPS, **options)
    trace: dict[str, Any] = host.trace()
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] > 0, trace["notes"]
    assert torch.equal(host.sample(skipping, steps=STEPS, **options), out)
    assert torch.equal(host.sample(model, steps=STEPS, **options), plain)
    return trace


# weights that are not there -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def streamed(host: Any, model: Any) -> Iterator[Counter[str]]:
    """While open every layer fetches its weights when it runs, as on a card that cannot hold them. Counts them."""
    import comfy.ops

    layers = {id(layer): name for name, layer in model.named_modules() if hasattr(layer, "comfy_cast_weights")}
    before = {name: layer.comfy_cast_weights for name, layer in model.named_modules() if id(layer) in layers}
    fetched: Counter[str] = Counter()
    fetch = comfy.ops.cast_bias_weight

    def count(layer: Any, *args: Any, **kwargs: Any) -> Any:
        fetched[layers.get(id(layer), "")] += 1
        return fetch(layer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.ops, "cast_bias_weight", count)
        for name in before:
            model.get_submodule(name).comfy_cast_weights = True
        try:
            yield fetched
        finally:
            for name, value in before.items():
                model.get_submodule(name).comfy_cast_weights = value


@pytest.mark.claim(
    "Machines", "weights streamed block by block (low VRAM): on a skip none of what is skipped is fetched"
)
@every_method
def test_nothing_is_streamed_on_a_skip(host: Any, method: str) -> None:
    model = host.diffusion_model
    named = [name for name, _ in model.named_modules()]
    blocks = [name for name in named if name.startswith(("double_blocks.", "single_blocks."))]
    blocks = [name for name in blocks if name != "double_blocks.0.img_mod.lin"]  # the signal looks through it
    with streamed(host, model) as fetched:
        plain = host.sample(host.model, steps=STEPS)
        whole = Counter(fetched)
        assert whole and all(count == STEPS for count in whole.values())
        refusing, skipping = settings(host, method)
        assert torch.equal(host.sample(refusing, steps=STEPS), plain)
        fetched.clear()
        host.sample(skipping, steps=STEPS)
    trace = host.trace()
    work = sum(e["work"] for e in trace["evaluations"])
    inside = sum(count for name, count in fetched.items() if name in blocks)
    outside = sum(count for name, count in fetched.items() if name not in blocks)
    all_inside = sum(count for name, count in whole.items() if name in blocks)
    assert trace["skipped"] + trace["partial"] > 0 and work < STEPS
    if trace["site"] == "attention":  # a half step fetches what it runs; the joint layers of single blocks are cut
        assert inside < all_inside
    elif method == "first_block_cache":  # its first block always runs
        assert inside < all_inside
    else:
        assert inside == all_inside * trace["computed"] / STEPS
    if trace["site"] == "model":
        assert outside == sum(count for name, count in whole.items() if name not in blocks) * trace["computed"] / STEPS


class Packed(torch.nn.Module):
    """A linear layer whose weight is packed and unpacked anew in each forward, as GGUF's: no plain `weight` to cut."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 127 + 1e-12
        self.packed = (weight / self.scale).round().to(torch.int8)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.packed.to(x.dtype) * self.scale.to(x.dtype)
        return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


@pytest.mark.claim("Machines", "layers that unpack their weights in each forward (shaped as GGUF's)")
@every_method
def test_packed_layers(host: Any, method: str) -> None:
    model = host.tiny.load("flux")[0]
    inner = model.model.diffusion_model
    for name, layer in list(inner.named_modules()):
        if isinstance(layer, torch.nn.Linear) and "blocks." in name:
            parent, _, last = name.rpartition(".")
            setattr(inner.get_submodule(parent), last, Packed(layer))
    trace = check(host, method, model)
    assert trace["site"] in ("model", "trunk", "attention")


@pytest.mark.claim(
    "Devices", "the host's way of running on several GPUs, the CPU as its one device: computed in full, with a note"
)
@every_method
def test_several_gpus_are_computed_in_full(host: Any, method: str) -> None:
    plain = host.sample(host.model, steps=STEPS)
    _, skipping = settings(host, method)
    skipping.model_options["multigpu_clones"] = {torch.device("cpu"): host.model}
    assert torch.equal(host.sample(skipping, steps=STEPS), plain)
    assert host.trace()["state"] == "stood down" and "multi-GPU" in host.trace()["notes"][0]


# settings of the process ----------------------------------------------------------------------------------------------


@pytest.mark.claim("Machines", "--deterministic and --fast")
@every_method
@pytest.mark.parametrize("setting", ["--deterministic", "--fast"])
def test_strict_and_fast(host: Any, monkeypatch: pytest.MonkeyPatch, method: str, setting: str) -> None:
    """In this process, as the host sets them up at its start; nothing of ours may need what is forbidden then."""
    from comfy.cli_args import PerformanceFeature, args

    if setting == "--fast":
        monkeypatch.setattr(args, "fast", set(PerformanceFeature))
        check(host, method, host.tiny.load("flux")[0])
        return
    monkeypatch.setattr(args, "deterministic", True)
    torch.use_deterministic_algorithms(True)
    try:
        check(host, method)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.claim("Machines", "interrupted at every block: the next run is the plain one, to the bit")
@pytest.mark.parametrize("method", ["auto", "spectralcache", "feb_cache"])
def test_an_interrupt_at_every_block(host: Any, method: str) -> None:
    interrupt = host.comfy.model_management.InterruptProcessingException
    plain = host.sample(host.model, steps=STEPS)
    _, skipping = settings(host, method)
    cached = host.sample(skipping, steps=STEPS)
    model = host.diffusion_model
    for block in (*model.double_blocks, *model.single_blocks):
        for run in (1, 2):  # in the first evaluation, and in the second one that computes this block
            calls: list[int] = []

            def stop(_: Any, __: Any, calls: list[int] = calls, run: int = run) -> None:
                calls.append(1)
                if len(calls) == run:
                    raise interrupt

            handle = block.register_forward_pre_hook(stop)
            try:
                with pytest.raises(interrupt):
                    host.sample(skipping, steps=STEPS)
            finally:
                handle.remove()
            assert host.trace()["state"] == "interrupted"
    assert torch.equal(host.sample(skipping, steps=STEPS), cached)
    assert torch.equal(host.sample(host.model, steps=STEPS), plain)


# what is loaded beside the model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controlnet(host: Any) -> Any:
    """A FLUX ControlNet of the host's own class with random weights, through the host's loader of checkpoints."""
    import comfy.controlnet
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    with torch.inference_mode(False):
        shape = {**host.tiny.FLUX1, "depth": 2, "depth_single_blocks": 2, "guidance_embed": False}
        model = ControlNetFlux(**shape, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        host.tiny.randomize(model, seed=5)
        checkpoint = {
            name.replace("_norm.weight", "_norm.scale"): weight.clone() for name, weight in model.state_dict().items()
        }
        return comfy.controlnet.load_controlnet_state_dict(checkpoint)


def controlled(controlnet: Any, start: float, end: float, text: list[Any]) -> list[Any]:
    """A prompt with the ControlNet on it, as ControlNetApplyAdvanced does it."""
    hint = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(6))
    net = controlnet.copy().set_cond_hint(hint, 0.8, (start, end))
    return [[tensor, {**options, "control": net, "control_apply_to_uncond": False}] for tensor, options in text]


@pytest.mark.claim(
    "Add-ons", "a FLUX ControlNet checkpoint of the host's class (random weights), for a part of the run"
)
@pytest.mark.parametrize(("method", "span"), [*((name, (0.2, 0.6)) for name in METHODS), ("spectralcache", (0.0, 1.0))])
def test_a_controlnet_checkpoint(host: Any, controlnet: Any, method: str, span: tuple[float, float]) -> None:
    assert controlnet is not None
    sides = {
        "positive": controlled(controlnet, *span, host.conditioning(1)),
        "negative": controlled(controlnet, *span, host.conditioning(2)),
    }
    bare = host.sample(host.model, steps=STEPS, cfg=3.0)
    assert not torch.equal(host.sample(host.model, steps=STEPS, cfg=3.0, **sides), bare)
    check(host, method, cfg=3.0, **sides)


class Adapter:
    """Looks at a picture from each double block: a cross attention of its own, added to the block's image stream, in a
    part of the run. The shape in which IP-Adapter and PuLID reach FLUX.
    """

    def __init__(self, width: int, start: float, end: float) -> None:
        generator = torch.Generator().manual_seed(7)
        self.keys, self.values = torch.randn(2, 4, width, generator=generator).unbind(0)
        self.start, self.end = start, end
        self.runs = 0

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = extra["original_block"](args)
        sigma = float(args["transformer_options"]["sigmas"][0])
        if not self.end <= sigma <= self.start:
            return out
        self.runs += 1
        weights = (out["img"] @ self.keys.T).softmax(-1)
        return {**out, "img": out["img"] + 0.3 * (weights @ self.values)}


@pytest.mark.claim(
    "Add-ons", "adapters that look at a picture from the blocks, for a part of the run (IP-Adapter, PuLID)"
)
@every_method
@pytest.mark.parametrize("order", ["adapter first", "cache first"])
def test_an_adapter_on_the_blocks(host: Any, method: str, order: str) -> None:
    model = host.diffusion_model
    adapter = Adapter(model.hidden_size, 0.9, 0.3)

    def adapted(patcher: Any) -> Any:
        clone = patcher.clone()
        for i in range(len(model.double_blocks)):
            clone.set_model_patch_replace(adapter, "dit", "double_block", i)
        return clone

    bare, plain = host.sample(host.model, steps=STEPS), host.sample(adapted(host.model), steps=STEPS)
    assert not torch.equal(bare, plain) and adapter.runs > 0
    if order == "adapter first":
        refusing, skipping = settings(host, method, adapted(host.model))
    else:
        refusing, skipping = (adapted(clone) for clone in settings(host, method))
    assert torch.equal(host.sample(refusing, steps=STEPS), plain)
    adapter.runs = 0
    out = host.sample(skipping, steps=STEPS)
    trace = host.trace()
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] > 0, trace["notes"]
    assert torch.equal(host.sample(host.model, steps=STEPS), bare)
