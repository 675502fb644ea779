"""The families whose blocks are described: a skipped evaluation against the host's own forward with its blocks left
out, and the methods that skip inside blocks.

The reference knows nothing of block hooks: the blocks' own `forward` is replaced, so that in the evaluations that the
run skipped nothing of them runs and the image stream leaves the last one as what entered the first plus what the blocks
added when they last ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 8
DESCRIBED = {
    "FLUX.1": "FLUX.1",
    "FLUX.2": "FLUX.2",
    "Chroma": "Chroma",
    "Chroma Radiance": "Chroma Radiance",
    "HunyuanVideo": "HunyuanVideo",
    "HunyuanVideo image to video (concatenated channels)": "HunyuanVideo",
    "HunyuanVideo 1.5": "HunyuanVideo 1.5",
    "HunyuanImage 2.1": "HunyuanImage 2.1",
    "SD 3.5": "SD3",
    "LTX-Video": "LTX-Video",
    "Wan 2.1": "Wan",
    "Wan 2.1 image to video (concatenated channels)": "Wan",
    "Wan 2.2 5B": "Wan",
}
"""family: the architecture that describes it."""
UNDESCRIBED = ("Lumina 2", "HiDream", "LTX-2 (audio and video)", "Kandinsky 5", "Cosmos Predict2", "SD 1.5", "Mochi")
"""Families whose blocks have no hooks, or hooks that cannot be used."""


class Model:
    """A tiny member of a described family."""

    def __init__(self, host: Any, name: str) -> None:
        self.host, self.name, self.family = host, name, host.families.FAMILIES[name]
        self.patcher = self.family.patcher()
        self.plain = self.sample(self.patcher)

    @property
    def diffusion_model(self) -> Any:
        return self.patcher.model.diffusion_model

    def sample(self, model: Any) -> Tensor:
        sides = {"positive": self.family.conditioning(1), "negative": self.family.conditioning(2)}
        out: Tensor = self.host.sample(model, latent=self.family.empty(), steps=STEPS, **sides)
        return out

    def method(self, name: str, **params: Any) -> Any:
        return self.host.host.attach(self.patcher, self.host.core.methods()[name](**params), None)


@pytest.fixture(scope="module", params=DESCRIBED)
def model(request: pytest.FixtureRequest, host: Any) -> Iterator[Model]:
    with torch.inference_mode():
        yield Model(host, request.param)


Read = Callable[[Any], Tensor]
Write = Callable[[Any, Tensor], Any]


class Hollow:
    """A model whose blocks are left out in some of its calls."""

    def __init__(self, model: Any, skips: Sequence[bool]) -> None:
        self.model, self.skips, self.calls = model, skips, -1
        self.entered: Tensor | None = None
        self.residual: Tensor | None = None
        self.blocks = [
            *((block, "double") for block in getattr(model, "double_blocks", ())),
            *((block, "single") for block in getattr(model, "single_blocks", ())),
            *((block, "joint") for block in getattr(model, "joint_blocks", ())),
            *((block, "single") for block in getattr(model, "transformer_blocks", getattr(model, "blocks", ()))),
        ]

    def __enter__(self) -> Hollow:
        for position, (block, kind) in enumerate(self.blocks):
            block.forward = self._around(position, block.forward, kind)
        return self

    def __exit__(self, *_: object) -> None:
        for block, _ in self.blocks:
            del block.forward

    def _around(self, position: int, original: Any, kind: str) -> Any:
        last = position == len(self.blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if position == 0:
                self.calls += 1
                img = kwargs["img"] if kind == "double" else args[1] if kind == "joint" else args[0]
                self.entered = img.clone()
            skip = self.skips[self.calls]
            if kind == "double":
                given: Any = (kwargs["img"], kwargs["txt"])
            else:
                given = args[:2] if kind == "joint" else args[0]
            out = given if skip else original(*args, **kwargs)
            return self._leave(out, kind, skip) if last else out

        return forward

    def _leave(self, out: Any, kind: str, skip: bool) -> Any:
        assert self.entered is not None
        tokens = self.entered.shape[1]
        img = {"double": lambda: out[0], "joint": lambda: out[1], "single": lambda: out[:, -tokens:]}[kind]()
        if not skip:
            self.residual = img - self.entered
            return out
        assert self.residual is not None
        target = self.entered + self.residual
        if kind == "single":
            return torch.cat((out[:, :-tokens], target), dim=1)
        return (target, out[1]) if kind == "double" else (out[0], target)


@pytest.mark.claim(
    "Models",
    "FLUX.1, FLUX.2, Chroma, HunyuanVideo, SD3.5, LTX-Video, Wan: a skip is the host's forward without its blocks",
)
def test_a_skip_is_the_hosts_forward_without_its_blocks(model: Model) -> None:
    host = model.host
    assert host.core.architecture_of(model.diffusion_model).name == DESCRIBED[model.name]
    assert torch.equal(model.sample(host.apply(model.patcher, threshold=1e-6)), model.plain)
    assert host.trace()["cache_bytes"] > 0
    ours = model.sample(host.apply(model.patcher, **host.tiny.SKIPPING))
    trace = host.trace()
    assert (trace["site"], trace["state"], trace["model"]) == ("trunk", "done", DESCRIBED[model.name]), trace["notes"]
    skips = [e["action"] == "skipped" for e in trace["evaluations"]]
    assert sum(skips) >= 3 and trace["partial"] == 0
    with Hollow(model.diffusion_model, skips) as hollow:
        hand = model.sample(model.patcher)
    assert hollow.calls == STEPS - 1
    assert torch.allclose(ours, hand, atol=2e-4 * hand.abs().max().item())
    assert not torch.allclose(ours, model.plain, atol=2e-4 * hand.abs().max().item())


def test_the_signal_is_what_the_first_block_sees(model: Model) -> None:
    """The modulated input, against the input of the first block's own attention."""
    host, seen, ours = model.host, [], []
    first = model.diffusion_model
    block = next(getattr(first, name)[0] for name in LISTS if hasattr(first, name))
    watched = next(part for part in (_part(block, path) for path in ATTENTIONS) if part is not None)
    handle = watched.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    architecture = host.core.architecture_of(first)
    modulated = type(architecture).modulated

    def watch(self: Any, *args: Any) -> Tensor:
        out: Tensor = modulated(self, *args)
        ours.append(out)
        return out

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(architecture), "modulated", watch)
            model.sample(host.apply(model.patcher, threshold=1e-6))
    finally:
        handle.remove()
    assert len(seen) == len(ours) == STEPS
    for theirs, mine in zip(seen, ours, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 * theirs.abs().max().item())


LISTS = ("double_blocks", "joint_blocks", "transformer_blocks", "blocks")
ATTENTIONS = ("img_attn.qkv", "x_block.attn.qkv", "attn1.to_q", "self_attn.q")
"""What the modulated input goes into, in each kind of block."""


def _part(block: Any, path: str) -> Any:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


@pytest.mark.claim("Models", "methods that skip ranges of blocks, on each family whose blocks are described")
@pytest.mark.parametrize("method", ["first_block_cache", "dbcache", "taylorseer", "freqca", "fastcache"])
def test_methods_at_blocks(model: Model, method: str) -> None:
    published = model.host.core.methods()[method]
    assert torch.equal(model.sample(model.method(method, **published.refusing)), model.plain)
    out = model.sample(model.method(method, **published.skipping))
    trace = model.host.trace()
    assert torch.isfinite(out).all() and not torch.equal(out, model.plain)
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] > 0, trace["notes"]
    assert trace["site"] in ("trunk", "blocks", "model"), trace["site"]


@pytest.mark.claim("Half steps", "FLUX's blocks wherever they are used (FLUX.2, Chroma, HunyuanVideo), and Wan's")
@pytest.mark.parametrize("method", ["feb_cache", "taylorseer"])
def test_methods_at_modules(model: Model, method: str) -> None:
    """Attention and MLP of FLUX's blocks, wherever they are used; the others' are not described and say so."""
    published = model.host.core.methods()[method]
    extra = {"site": "modules"} if "site" in published.defaults else {}
    assert torch.equal(model.sample(model.method(method, **{**published.refusing, **extra})), model.plain)
    out = model.sample(model.method(method, **{**published.skipping, **extra}))
    trace = model.host.trace()
    assert torch.isfinite(out).all()
    if model.name in ("SD 3.5", "LTX-Video"):
        assert trace["site"] != "attention" and (trace["notes"] or trace["site"] in ("trunk", "model"))
        return
    assert trace["site"] == "attention" and trace["state"] == "done", trace["notes"]
    assert sum(e["work"] for e in trace["evaluations"]) < STEPS and not torch.equal(out, model.plain)


@pytest.mark.parametrize("name", UNDESCRIBED)
def test_families_without_usable_hooks_get_whole_model_calls(host: Any, name: str) -> None:
    patcher = host.families.FAMILIES[name].patcher()
    assert host.core.architecture_of(patcher.model.diffusion_model) is None
