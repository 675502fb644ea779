"""The methods of Cache Method on the small FLUX: what must hold for each. Methods with nodes of their own go through
all tests of the invariants; for the others the same engine is at work, and this is what a method could still break.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

NEEDS_BLOCKS = ["first_block_cache", "dbcache", "adacache", "dicache", "fastercache", "profilingdit", "smoothcache"]
STEPS = 8


def attached(host: Any, name: str, params: Any, model: Any = None) -> Any:
    return host.host.attach(model or host.model, host.core.methods()[name](**params), None)


@pytest.fixture(scope="module")
def plain(host: Any) -> dict[tuple[str, float], torch.Tensor]:
    """Uncached pictures, made once."""
    with torch.inference_mode():
        return {
            (sampler, cfg): host.sample(host.model, sampler=sampler, cfg=cfg, steps=STEPS)
            for sampler in ("euler", "dpmpp_2m", "heun")
            for cfg in (1.0, 3.0)
        }


@pytest.mark.claim("Methods", "each published method: off and refusing are bit-identical, cached runs are not")
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_the_essentials(host: Any, plain: Any, further: str, sampler: str, cfg: float) -> None:
    name, method, options = further, host.core.methods()[further], {"sampler": sampler, "cfg": cfg, "steps": STEPS}
    exact = plain[sampler, cfg]
    if (sampler, cfg) == ("euler", 1.0):
        assert torch.equal(host.sample(attached(host, name, method.never), **options), exact)
    assert torch.equal(host.sample(attached(host, name, method.refusing), **options), exact)
    refused = host.trace()
    assert refused["state"] == "done" and refused["skipped"] + refused["partial"] == 0
    fast = attached(host, name, method.skipping)
    cached = host.sample(fast, **options)
    trace = host.trace()
    assert trace["state"] == "done" and trace["skipped"] + trace["partial"] >= 2, trace["notes"]
    assert {e["skip"] for e in trace["evaluations"] if e["step"] in (0, STEPS - 1)} == {False}
    assert torch.isfinite(cached).all() and not torch.equal(cached, exact)
    if (sampler, cfg) == ("euler", 3.0):
        assert torch.equal(host.sample(fast, **options), cached)  # nothing is left over from the first run
        assert torch.equal(host.sample(host.model, **options), exact)


@pytest.mark.claim("Methods", "a method that needs blocks stands down on a model whose blocks are not described")
@pytest.mark.parametrize("name", NEEDS_BLOCKS)
def test_without_blocks_a_method_stands_down_and_says_so(host: Any, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(host.host, "architecture_of", lambda model: None)
    exact = host.sample(host.model, steps=STEPS)
    method = host.core.methods()[name]
    assert torch.equal(host.sample(attached(host, name, method.skipping), steps=STEPS), exact)
    trace = host.trace()
    assert trace["state"] == "stood down" and f"{method.title} has no place to skip at" in trace["notes"][0]


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
