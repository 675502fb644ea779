"""Cache Compare through the API of a real server: figures, pictures for the slider, refusals with the way out."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

STEPS, SIDE = 10, 96


def graph_of(graphs: Any, **apply: Any) -> dict[str, Any]:
    """One prompt with and without in one queue, as the shipped workflows do it."""
    picture = graphs.Picture("a large fox on blue", steps=STEPS, width=SIDE, height=SIDE, seed=31)
    graph = graphs.cached(picture, {"threshold": 2.0, **apply})
    plain = {"model": graphs.link("shift") if "shift" in graph else graphs.link("model")}
    graph["full"] = {**graph["sampler"], "inputs": {**graph["sampler"]["inputs"], **plain}}
    graph["decode_full"] = {**graph["decode"], "inputs": {**graph["decode"]["inputs"], "samples": graphs.link("full")}}
    graph["compare"] = graphs.node(
        "SpectralCacheCompare", full=graphs.link("decode_full"), cached=graphs.link("decode")
    )
    return graph


def test_the_contract(server: Any) -> None:
    info = server.object_info("SpectralCacheCompare")
    assert info["display_name"] == "Cache Compare" and info["output_node"]
    assert {name: spec[0] for name, spec in info["input"]["required"].items()} == {"full": "IMAGE", "cached": "IMAGE"}
    assert info["output"] == ["STRING", "IMAGE", "IMAGE"]
    assert info["output_name"] == ["report", "difference", "side_by_side"]


@pytest.mark.claim("Cache Compare", "one prompt with and without in one queue: figures, and the pictures of the slider")
def test_with_and_without_in_one_queue(server: Any, graphs: Any) -> None:
    graph = graph_of(graphs)
    graph["map"] = graphs.node("PreviewImage", images=["compare", 1])
    graph["both"] = graphs.node("PreviewImage", images=["compare", 2])
    outputs = server.run(graph)["outputs"]
    shown = outputs["compare"]
    assert shown["report"][0].startswith("PSNR ") and "largest difference" in shown["report"][0]
    assert "images" not in shown, "the page would draw them under the slider"

    def picture(of: dict[str, Any], name: str = "images") -> Image.Image:
        (reference,) = of[name]
        assert reference["type"] == "temp"
        return Image.open(io.BytesIO(server.image(reference)))

    full, cached, heat = (picture(shown, name) for name in ("full", "cached", "difference"))
    assert full.size == cached.size == heat.size == (SIDE, SIDE)
    assert full.tobytes() != cached.tobytes()
    assert picture(outputs["map"]).tobytes() == heat.tobytes()
    both = picture(outputs["both"])
    assert both.crop((0, 0, SIDE, SIDE)).tobytes() == full.tobytes()
    assert both.crop((both.width - SIDE, 0, both.width, SIDE)).tobytes() == cached.tobytes()


def test_nothing_skipped_is_exactly_the_same(server: Any, graphs: Any) -> None:
    shown = server.run(graph_of(graphs, threshold=0.0))["outputs"]["compare"]
    assert shown["report"][0] == "The pictures are exactly the same."


@pytest.mark.claim("Cache Compare", "sizes that differ are refused with the node's name, both sizes and the way out")
def test_sizes_that_differ_are_refused(server: Any, graphs: Any) -> None:
    graph = {
        "a": graphs.node("EmptyImage", width=64, height=48, batch_size=1, color=0),
        "b": graphs.node("EmptyImage", width=32, height=48, batch_size=1, color=0),
        "compare": graphs.node("SpectralCacheCompare", full=graphs.link("a"), cached=graphs.link("b")),
    }
    with pytest.raises(Exception, match=r"Cache Compare: full is 64 x 48 and cached is 32 x 48 pixels; .* scale one"):
        server.run(graph)


@pytest.mark.claim("Cache Compare", "a batch against one picture, and picture by picture")
def test_batches(server: Any, graphs: Any) -> None:
    graph = {
        "a": graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=0),
        "b": graphs.node("EmptyImage", width=32, height=32, batch_size=3, color=255),
        "compare": graphs.node("SpectralCacheCompare", full=graphs.link("a"), cached=graphs.link("b")),
    }
    shown = server.run(graph)["outputs"]["compare"]
    assert [len(shown[name]) for name in ("full", "cached", "difference")] == [3, 3, 3]
    assert shown["report"][0].count("Picture ") == 3
    graph["a"]["inputs"]["batch_size"] = 2
    with pytest.raises(Exception, match=r"Cache Compare: full holds 2 pictures and cached 3; use the same batch size"):
        server.run(graph)
