"""Cache Method as users meet it: its schema, and a prompt through the API of a real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

NODE = "SpectralCacheMethodApply"


def graph(graphs: Any, **inputs: Any) -> Any:
    made = graphs.cached(graphs.Picture(prompt="a large fox on blue", steps=10, width=96, height=96))
    made["apply"] = graphs.node(NODE, model=graphs.link("shift"), **inputs)
    return made


def test_every_method_file_is_an_option_with_its_own_inputs(server: Any, host: Any) -> None:
    info = server.object_info(NODE)
    kind, spec = info["input"]["required"]["method"]
    options = {option["key"]: option["inputs"] for option in spec["options"]}
    known = host.core.methods()
    assert kind == "COMFY_DYNAMICCOMBO_V3" and set(options) == set(known) and next(iter(options)) == "teacache"
    for name, inputs in options.items():
        given = {**inputs.get("required", {}), **inputs.get("optional", {})}
        assert {key: value[1]["default"] for key, value in given.items()} == known[name].defaults
        assert all(len(value[1]["tooltip"]) > 30 for value in given.values())
        assert f"{name}: {known[name].advice}" in spec["tooltip"]
    assert info["display_name"] == "Cache Method" and info["output"] == ["MODEL"]
    assert info["input"]["optional"]["profile"][0] == "SPECTRALCACHE_PROFILE"
    words = set(info["search_aliases"])
    assert {"teacache", "fbcache", "first block cache", "magcache", "cache-dit", "dicache", "加速"} <= words


@pytest.mark.claim("Methods", "Cache Method: a prompt names the method and its settings, and bad ones are refused")
def test_a_prompt(server: Any, graphs: Any) -> None:
    settings = {"method": "first_block_cache", "method.threshold": 10.0, "method.max_consecutive": 2,
                "method.start_percent": 0.0, "method.end_percent": 1.0}  # fmt: skip
    trace = json.loads(server.run(graph(graphs, **settings))["outputs"]["stats"]["trace"][0])
    assert trace["method"] == "First-Block Cache" and trace["params"]["threshold"] == 10.0
    assert trace["state"] == "done" and [e["step"] for e in trace["evaluations"] if e["skip"]] == [1, 2, 4, 5, 7, 8]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "teacache", "method.threshold": 11.0, "method.start_percent": 0.0, "method.end_percent": 1.0},
         ["Cache Method", "threshold is 11.0", "from 0 to 10"]),
        ({"method": "teacache", "method.threshold": 0.4, "method.start_percent": 0.9, "method.end_percent": 0.1},
         ["Cache Method", "start_percent", "0.9", "0.1"]),
        ({"method": "teacache", "method.threshold": 0.4, "method.start_percent": 0.0, "method.end_percent": 1.0,
          "gain": "noise"}, ["Cache Method", "gain is noise", "no profile is connected", "record gain"]),
        ({"method": "teacache", "method.threshold": 0.4, "method.start_percent": 0.0, "method.end_percent": 1.0,
          "gain": "step"}, ["Cache Method", "gain is 'step'", "off or noise or channels"]),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_anything_runs(server: Any, graphs: Any, settings: Any, words: Any) -> None:
    with pytest.raises(Exception) as refusal:
        server.queue(graph(graphs, **settings))
    assert all(word in str(refusal.value) for word in ("refused", *words)), refusal.value


def test_an_unknown_method_is_named(host: Any) -> None:
    node = host.method_node
    with pytest.raises(host.types.CacheError, match=r"Cache Method: method is 'nonsense'; use teacache or"):
        node.SpectralCacheMethodApply.execute(host.model, {"method": "nonsense"})
    assert "use teacache or" in node.SpectralCacheMethodApply.validate_inputs(method=None)


def test_an_optional_input_that_a_graph_lacks_keeps_its_default(host: Any, monkeypatch: Any) -> None:
    """The host's nesting of dynamic inputs makes None of it: Auto's `site` was None."""
    node = host.method_node
    built = node._chosen({"method": "auto", "speedup": 3.0, "quality": "Custom", "site": None}, "")
    assert built[0](**built[1]).params["site"] == host.core.methods()["auto"].defaults["site"]


def test_without_dynamic_inputs_there_is_a_list_and_json(host: Any, monkeypatch: Any) -> None:
    """ComfyUI before DynamicCombo."""
    node = host.method_node
    monkeypatch.setattr(node, "DYNAMIC", False)
    inputs = {i.id: i for i in node.SpectralCacheMethodApply.define_schema().inputs}
    assert list(inputs) == ["model", "method", "parameters", "profile", "gain"]
    assert "newer ones do" in inputs["parameters"].tooltip
    published, params = node._chosen("magcache", '{"threshold": 0.2}')
    assert published(**params).params["threshold"] == 0.2
    for bad, words in (("{", "no JSON"), ("[1]", "no JSON object")):
        assert words in node.SpectralCacheMethodApply.validate_inputs(method="magcache", parameters=bad)
