"""Public report 6: a second cache on the model, by the marks of today's packs, by its module, by what it does."""

from __future__ import annotations

import itertools
import types
from typing import Any

import pytest
import torch

STEPS = 12


class Repeating:
    """What every cache comes down to: each second call gives the last result again."""

    def __init__(self) -> None:
        self.calls, self.last = 0, None

    def __call__(self, run: Any) -> Any:
        self.calls += 1
        if self.calls % 2 == 0 and self.last is not None:
            return self.last.clone()
        self.last = run()
        return self.last

    def wrapper(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        return self(lambda: executor(*args, **kwargs))

    def function_wrapper(self, apply: Any, args: dict[str, Any]) -> Any:
        return self(lambda: apply(args["input"], args["timestep"], **args["c"]))


def keyed(kind: str, key: str) -> Any:
    """A wrapper under a key."""

    def put(model: Any) -> Any:
        model.add_wrapper_with_key(kind, key, Repeating().wrapper)
        return model

    return put


def optioned(key: str) -> Any:
    """Settings in transformer_options, and a function wrapper without a telling module."""

    def put(model: Any) -> Any:
        model.model_options.setdefault("transformer_options", {})[key] = {"enabled": True}
        model.set_model_unet_function_wrapper(Repeating().function_wrapper)
        return model

    return put


def from_module(module: str) -> Any:
    """A function wrapper that only its module's name tells."""

    def put(model: Any) -> Any:
        cache = Repeating()

        def wrapper(apply: Any, args: dict[str, Any]) -> Any:
            return cache.function_wrapper(apply, args)

        wrapper.__module__ = module
        model.set_model_unet_function_wrapper(wrapper)
        return model

    return put


MARKS: dict[str, tuple[Any, str]] = {
    "spectrum wrapper": (keyed("apply_model", "spectrum_minimax_h3"), "spectrum"),
    "spectrum option": (optioned("spectrum"), "spectrum"),
    "CacheDiT, Wan": (keyed("diffusion_model", "wan_cache"), "wan_cache"),
    "CacheDiT, LTX-2": (keyed("diffusion_model", "ltx2_cache"), "ltx2_cache"),
    "SeaCache": (optioned("seacache_options"), "seacache"),
    "MeanCache": (from_module("custom_nodes.ComfyUI-MeanCache-Z.nodes"), "meancache"),
    "HiCache": (keyed("apply_model", "hicache"), "hicache"),
    "FSampler": (keyed("predict_noise", "fsampler"), "fsampler"),
    "SADA": (optioned("sada_config"), "sada"),
    "DiCache": (keyed("diffusion_model", "dicache"), "dicache"),
    "DeepCache": (from_module("custom_nodes.deepcache_node"), "deepcache"),
}


@pytest.mark.parametrize(("mark", "order"), zip(MARKS, itertools.cycle(["ours first", "ours last"]), strict=False))
def test_report_06_double_cache_undetected(host: Any, caplog: pytest.LogCaptureFixture, mark: str, order: str) -> None:
    """Ours stands down, names the other, and the run is that of the other alone, to the bit."""
    put, name = MARKS[mark]
    alone = host.sample(put(host.model.clone()), steps=STEPS)
    caplog.clear()
    ours = host.foreign.attached
    model = put(ours(host, "Auto")) if order == "ours first" else ours(host, "Auto", put(host.model.clone()))
    out = host.sample(model, steps=STEPS)
    trace = host.trace()
    assert torch.equal(out, alone)
    assert (trace["state"], trace["skipped"]) == ("stood down", 0)
    assert name in trace["notes"][0] and "another cache" in trace["notes"][0]
    assert sum("another cache" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("method", "where"), [("Apply", "forward_orig"), ("Apply", "block"), ("Auto", "forward"), ("Auto", "_forward")]
)
def test_report_06_a_replaced_forward_is_known_by_its_module(host: Any, where: str, method: str) -> None:
    """Many caches leave no mark but the function that they put in the model's place."""
    model = host.diffusion_model
    target = model.double_blocks[1] if where == "block" else model
    name = "forward" if where == "block" else where
    original, cache = getattr(target, name), Repeating()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if where == "block":  # img, txt
            return original(*args, **kwargs)
        return cache(lambda: original(*args, **kwargs))

    forward.__module__ = "custom_nodes.ComfyUI-TeaCache.nodes"
    setattr(target, name, types.MethodType(forward, target))
    try:
        alone = host.sample(host.model, steps=STEPS)
        cache.calls = 0
        out = host.sample(host.foreign.attached(host, method), steps=STEPS)
    finally:
        delattr(target, name)
    assert torch.equal(out, alone)
    assert host.trace()["state"] == "stood down" and "teacache" in host.trace()["notes"][0].lower()


@pytest.mark.parametrize(("kind", "cfg"), [("apply_model", 1.0), ("diffusion_model", 3.0), ("predict_noise", 3.0)])
def test_report_06_an_unknown_cache_is_known_by_what_it_does(host: Any, kind: str, cfg: float) -> None:
    """Two calls with different inputs and one result to the bit: from there on it is left alone, with a sentence."""
    attached = host.foreign.attached(host, "Auto")
    model = keyed(kind, "unheard_of")(attached)
    host.sample(model, steps=STEPS, cfg=cfg)
    trace = host.trace()
    assert trace["state"] == "stood down"
    assert any("another cache" in note for note in trace["notes"])
    computed = [e["action"] == "computed" for e in trace["evaluations"]]
    assert all(computed[-STEPS // 2 :])


def test_report_06_no_false_alarm(host: Any) -> None:
    """Names that only look alike, and our own key, are no cache."""

    def straight(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    model = host.foreign.attached(host, "Auto")
    for key in ("spectral_statistics", "cachet_upscaler", "usada", "KJNodes"):
        model.add_wrapper_with_key("apply_model", key, straight)
    host.sample(model, steps=STEPS)
    assert (host.trace()["state"], host.trace()["notes"], host.trace()["skipped"]) == ("done", [], 6)
