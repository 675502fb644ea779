"""The methods of Cache Method on a small FLUX and a small Qwen-Image: what must hold for each. Methods with nodes of
their own go through all tests of the invariants; for the others the same engine is at work, and this is what a method
could still break.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

NEEDS_BLOCKS = ["first_block_cache", "dbcache", "adacache", "dicache", "fastcache", "fastercache", "smoothcache"]
NEEDS_BLOCKS += ["seacache", "quantcache"]
STEPS, SIZE = 5, (4, 6)
"""Few steps of a few tokens: what takes time is the weights, once an evaluation."""


def attached(host: Any, name: str, params: Any, model: Any = None) -> Any:
    return host.host.attach(model or host.model, host.core.methods()[name](**params), None)


@dataclass
class Family:
    """A small model, how it is sampled, and its uncached pictures, each made once."""

    model: Any
    make: Callable[..., torch.Tensor]
    known: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict)

    def sample(self, model: Any, sampler: str, cfg: float) -> torch.Tensor:
        return self.make(model, sampler=sampler, cfg=cfg, steps=STEPS, size=SIZE)

    def plain(self, sampler: str, cfg: float) -> torch.Tensor:
        if (sampler, cfg) not in self.known:
            self.known[sampler, cfg] = self.sample(self.model, sampler, cfg)
        return self.known[sampler, cfg]


@pytest.fixture(scope="module")
def families(host: Any) -> dict[str, Family]:
    """Both with random weights: it does not matter here what they paint."""
    qwen = host.tiny.Qwen(host)
    return {"FLUX": Family(host.tiny.load("flux")[0], host.sample), "Qwen-Image": Family(qwen.model, qwen.sample)}


@pytest.mark.claim("Methods", "each published method, FLUX and Qwen-Image: off and refusing are bit-identical")
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("family", ["FLUX", "Qwen-Image"])
def test_the_essentials(host: Any, families: Any, further: str, family: str, sampler: str, cfg: float) -> None:
    name, method, small = further, host.core.methods()[further], families[family]
    exact = small.plain(sampler, cfg)
    if (sampler, cfg) == ("euler", 1.0):
        off = attached(host, name, method.never, small.model)
        assert torch.equal(small.sample(off, sampler, cfg), exact)
    refusing = attached(host, name, method.refusing, small.model)
    assert torch.equal(small.sample(refusing, sampler, cfg), exact)
    refused = host.trace()
    assert refused["state"] == "done" and refused["skipped"] + refused["partial"] == 0
    fast = attached(host, name, method.skipping, small.model)
    cached = small.sample(fast, sampler, cfg)
    trace = host.trace()
    assert trace["state"] == "done" and trace["model"].startswith(family), trace["notes"]
    assert trace["skipped"] + trace["partial"] >= 1, trace["notes"]
    assert {e["skip"] for e in trace["evaluations"] if e["step"] in (0, STEPS - 1)} == {False}
    assert torch.isfinite(cached).all() and not torch.equal(cached, exact)
    if (sampler, cfg) == ("euler", 3.0):
        assert torch.equal(small.sample(fast, sampler, cfg), cached)  # nothing is left over from the first run
        assert torch.equal(small.sample(small.model, sampler, cfg), exact)


@pytest.mark.claim("Methods", "a method that needs blocks stands down on a model whose blocks are not described")
@pytest.mark.parametrize("name", NEEDS_BLOCKS)
def test_without_blocks_a_method_stands_down_and_says_so(host: Any, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(host.host, "architecture_of", lambda model: None)
    exact = host.sample(host.model, steps=STEPS, size=SIZE)
    method = host.core.methods()[name]
    assert torch.equal(host.sample(attached(host, name, method.skipping), steps=STEPS, size=SIZE), exact)
    trace = host.trace()
    assert trace["state"] == "stood down" and f"{method.title} has no place to skip at" in trace["notes"][0]


@pytest.mark.claim("Methods", "FastCache skips single blocks: the trace's share of work is what ran")
def test_fastcache_skips_single_blocks(host: Any) -> None:
    options = {"steps": 8, "size": SIZE, "cfg": 3.0}
    for threshold in (0.15, 10.0):
        fast = attached(host, "fastcache", {"threshold": threshold})
        _, ran = host.counted(lambda fast=fast: host.sample(fast, **options))
        trace = host.trace()
        work = [e["work"] for e in trace["evaluations"]]
        assert ran == round(sum(work) * host.blocks) and trace["site"] == "blocks"
        shares = {round(share * host.blocks, 6) for share in work}
        assert all(share == int(share) for share in shares)
        assert (trace["partial"] > 0) == (threshold < 1) and work[0] == work[-1] == 1.0
        assert {e["action"] for e in trace["evaluations"]} == {"computed", "partial" if threshold < 1 else "skipped"}
        maps = host.diffusion_model.hidden_size * 2 * 2  # slope and offset, of image and text
        inputs = host.diffusion_model.hidden_size * 6  # what the signal compares with
        kept = 2 * host.blocks * 4 * (maps + inputs)  # beside it only what the run itself keeps of a latent
        assert kept <= trace["cache_bytes"] < 1.1 * kept


def test_fastcache_fits_what_entered_a_block_and_what_left_it(host: Any) -> None:
    """FLUX's blocks add into their input in place: what entered must have been copied before."""
    text, block, seen, streams = 8, host.diffusion_model.single_blocks[0], {}, []
    handles = [
        block.register_forward_pre_hook(lambda _, args: streams.append(args[0].clone())),
        block.register_forward_hook(lambda _, __, out: streams.append(out.clone())),
    ]
    method = host.core.methods()["fastcache"](threshold=10.0)
    watched = host.host.attach(host.model, method, None, lambda told: seen.setdefault(told.unit, told.feature.value))
    try:
        host.sample(watched, steps=STEPS, size=SIZE)
    finally:
        for handle in handles:
            handle.remove()
    slot = ("single_block", 0)
    for unit, tokens in ((slot, slice(text, None)), ((slot, "text"), slice(0, text))):
        entered, left = (stream[:, tokens] for stream in streams[:2])
        for channel in (0, 17):
            columns = torch.stack((entered[0, :, channel], torch.ones(entered.shape[1])), 1)
            expected = torch.linalg.lstsq(columns, left[0, :, channel : channel + 1]).solution[:, 0]
            assert torch.allclose(seen[unit][0, :, channel], expected, rtol=1e-3, atol=1e-3)
            assert abs(float(expected[0]) - 1) > 1e-3  # the block does something


@pytest.mark.claim("Methods", "DBCache: a head and a tail that leave no block stand down and say so")
@pytest.mark.parametrize(("head", "tail"), [(8, 8), (9, 0), (1, 8)])
def test_a_head_and_a_tail_that_leave_no_block_stand_down(host: Any, head: int, tail: int) -> None:
    options = {"steps": STEPS, "size": SIZE}
    params = {"threshold": 10.0, "warmup_steps": 1, "head": head, "tail": tail}
    made = host.sample(attached(host, "dbcache", params), **options)
    trace = host.trace()
    assert trace["state"] == "stood down" and trace["skipped"] == 0
    said = f"head {head} and tail {tail} leave none of the {host.blocks} blocks of FLUX.1 to skip; lower them"
    assert trace["notes"][0] == said
    assert torch.equal(made, host.sample(host.model, **options))


@pytest.mark.claim("Methods", "EasyCache and LazyCache decide as ComfyUI's own nodes")
@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_the_same_steps_as_comfyuis_own_node(host: Any, monkeypatch: Any, node: str, threshold: float) -> None:
    from comfy_extras import nodes_easycache as core

    patched = getattr(core, f"{node}Node").execute(host.model, threshold, 0.15, 0.95, False).args[0]
    calls: list[float] = []
    inner = host.diffusion_model.img_in.register_forward_hook(lambda *_: calls.append(1))
    copied = core.EasyCacheHolder.apply_cache_diff  # in float32 it writes into the sampler's own latent
    monkeypatch.setattr(core.EasyCacheHolder, "apply_cache_diff", lambda s, x, *a, **k: copied(s, x.clone(), *a, **k))
    steps: list[int] = []
    try:
        theirs = host.sample(patched, steps=24, seed=3)
        count = len(calls)
        calls.clear()
        ours = host.sample(attached(host, node.lower(), {"threshold": threshold}), steps=24, seed=3)
        steps = [e["step"] for e in host.trace()["evaluations"] if e["skip"]]
    finally:
        inner.remove()
    assert len(calls) == count < 24 and len(steps) == 24 - count
    assert torch.allclose(theirs, ours, atol=1e-4)
