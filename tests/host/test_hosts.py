"""What every ComfyUI that we support has to show, the oldest as the newest: `python dev.py test --host all`.

The pack loads as ComfyUI loads it, each of its Apply nodes samples a prompt, Cache Stats shows the run; switched off or
refusing it changes nothing, to the bit; what is skipped is what the trace says. What a host lacks is found by its
features, so that no test here asks for a version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

STEPS = 8
NODES = {
    "SpectralCacheAutoApply": "SpectralCache Auto",
    "SpectralCacheApply": "SpectralCache Apply",
    "SpectralCacheFreqCaApply": "FreqCa Apply",
    "SpectralCacheFEBApply": "FEB-Cache Apply",
    "SpectralCacheMethodApply": "Cache Method",
    "SpectralCacheStats": "Cache Stats",
    "SpectralCacheCompare": "Cache Compare",
    "SpectralCacheCalibrate": "Cache Calibrate",
}
KINDS = {
    "auto": "whole calls",
    "spectralcache": "the trunk",
    "freqca": "the trunk, in bands",
    "first_block_cache": "a range of blocks",
    "taylorseer": "every block's modules",
    "feb_cache": "attention and MLP",
}
"""A method of each kind, and what it skips."""

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module", autouse=True)
def small(host: Any) -> Iterator[None]:
    with torch.inference_mode(), host.untrained():
        yield


@pytest.mark.claim("Hosts", "the pack loads, with every node")
@pytest.mark.parametrize(("node", "title"), NODES.items())
def test_the_node_is_there(server: Any, node: str, title: str) -> None:
    info = server.object_info(node)
    assert (info["display_name"], info["category"]) == (title, "SpectralCache")


@pytest.mark.claim("Hosts", "a prompt with each Apply node, and its statistics")
@pytest.mark.parametrize("node", [name for name in NODES if name.endswith("Apply")])
def test_a_prompt(server: Any, graphs: Any, node: str) -> None:
    picture = graphs.Picture(prompt="a large fox on blue", steps=STEPS, width=64, height=64)
    graph = graphs.cached(picture, apply="SpectralCacheAutoApply")
    inputs = _first_block_cache(server) if node == "SpectralCacheMethodApply" else graphs.defaults(node)
    graph["apply"] = graphs.node(node, model=graphs.link("shift"), **inputs)
    outputs = server.run(graph)["outputs"]
    trace = json.loads(outputs["stats"]["trace"][0])
    assert outputs["save"]["images"]
    assert (trace["state"], trace["steps"], len(trace["evaluations"])) == ("done", STEPS, STEPS), trace["notes"]
    assert trace["run"]["node"] == "sampler"


def _first_block_cache(server: Any) -> dict[str, Any]:
    """Cache Method's inputs, with widgets that change with the method or, where the host has none, as JSON."""
    given = {**server.object_info("SpectralCacheMethodApply")["input"]["required"]}
    if "parameters" in given:
        return {"method": "first_block_cache", "parameters": '{"threshold": 1.0}'}
    options = {option["key"]: option["inputs"]["required"] for option in given["method"][1]["options"]}
    values = {f"method.{name}": spec[1]["default"] for name, spec in options["first_block_cache"].items()}
    return {"method": "first_block_cache", **values}


def settings(host: Any, method: str) -> tuple[Any, Any]:
    """A clone on which nothing is skipped, and one on which much is, as the method's file declares."""
    published = host.core.methods()[method]
    refusing, skipping = (
        host.host.attach(host.model, published(**params), None) for params in (published.refusing, published.skipping)
    )
    return refusing, skipping


@pytest.mark.claim("Hosts", "never skipping is bit-identical; a cached run is finite, repeats, and its trace is true")
@pytest.mark.parametrize("method", KINDS)
def test_what_is_skipped_is_what_the_trace_says(host: Any, method: str) -> None:
    refusing, skipping = settings(host, method)
    plain, blocks = host.counted(lambda: host.sample(host.model, steps=STEPS, cfg=3.0))
    assert torch.equal(host.sample(refusing, steps=STEPS, cfg=3.0), plain)
    assert (host.trace()["state"], host.trace()["computed"]) == ("done", STEPS), host.trace()["notes"]
    out, ran = host.counted(lambda: host.sample(skipping, steps=STEPS, cfg=3.0))
    trace = host.trace()
    again = host.sample(skipping, steps=STEPS, cfg=3.0)
    assert torch.isfinite(out).all() and torch.equal(again, out) and not torch.equal(out, plain)
    assert trace["state"] == "done" and trace["skipped"] >= 2, trace["notes"]
    if method in ("auto", "spectralcache", "freqca"):
        assert ran * STEPS == blocks * trace["computed"]
    assert ran < blocks or trace["site"] == "attention"
    assert torch.equal(host.sample(host.model, steps=STEPS, cfg=3.0), plain)


# hosts to come --------------------------------------------------------------------------------------------------------


@pytest.mark.claim(
    "Hosts", "a host to come whose blocks are called in another way: whole model calls instead, or uncached, and said"
)
@pytest.mark.parametrize("change", ["arguments renamed", "results renamed", "hooks gone", "an argument more"])
def test_blocks_of_a_host_to_come(host: Any, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """What reaches our block hooks is not what it was."""
    renamed = {"img": "image_tokens", "txt": "text_tokens", "vec": "modulation"}

    def of(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in values.items()}

    def translated(hook: Any) -> Any:
        back = {new: old for old, new in renamed.items()}

        def call(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            if change == "an argument more":
                return hook({**args, "novel": object()}, {**extra, "novel": object()})
            if change == "arguments renamed":
                original = lambda given: extra["original_block"](of(given, back))  # noqa: E731
                return hook(of(args, renamed), {**extra, "original_block": original})
            original = lambda given: of(extra["original_block"](given), renamed)  # noqa: E731
            return of(hook(args, {**extra, "original_block": original}), back)

        return call

    def forward(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = args[-1] if isinstance(args[-1], dict) else kwargs["transformer_options"]
        replace = options.get("patches_replace", {})
        hooks = {slot: translated(hook) for slot, hook in replace.get("dit", {}).items()}
        options["patches_replace"] = {**replace, "dit": {} if change == "hooks gone" else hooks}
        return executor(*args, **kwargs)

    def to_come(model: Any) -> Any:
        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "a host to come", forward)
        return clone

    plain = host.sample(host.model, steps=STEPS)
    refusing, skipping = settings(host, "spectralcache")
    assert torch.equal(host.sample(to_come(refusing), steps=STEPS), plain)
    out = host.sample(to_come(skipping), steps=STEPS)
    trace = host.trace()
    expected = ("trunk", 0) if change == "an argument more" else ("model", 1)
    assert torch.isfinite(out).all() and (trace["site"], len(trace["notes"]) - trace["notes"].count(FEW)) == expected
    assert trace["state"] == "done" and trace["skipped"] >= 2


FEW = f"only {STEPS} steps: few can be skipped, and each one shows"
