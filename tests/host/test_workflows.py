"""The graphs in `workflows/`, as the frontend saves them: they name only what host and pack have, and they run.

The server tells what it has (`/object_info`), as it tells the frontend. Where model files are needed to run, stand-ins
take their place: the small trained FLUX or the small random Qwen-Image, and prompt nodes instead of the text encoders.
"""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PACK = "spectralcache"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))

FRONTEND_ONLY = {"MarkdownNote", "Note"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MODEL_FILES = {"unet_name", "vae_name", "clip_name", "clip_name1", "clip_name2"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
TITLE = 30  # pixels of a node's title, above its position
LARGEST_THUMBNAIL = 150_000  # bytes
STEPS = 8

Node = dict[str, Any]
Info = Callable[[str], dict[str, Any]]

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def info(server: Any) -> Info:
    """What the host says of a node class, asked once. `example.png` comes with every ComfyUI."""
    Image.radial_gradient("L").convert("RGB").save(server.base / "input" / "example.png")
    known: dict[str, dict[str, Any]] = {}

    def ask(kind: str) -> dict[str, Any]:
        if kind not in known:
            known[kind] = server.object_info(kind)
        return known[kind]

    return ask


# --- reading a saved graph ------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def host_nodes(graph: dict[str, Any]) -> dict[int, Node]:
    """The nodes that the host knows of: all but notes."""
    return {node["id"]: node for node in graph["nodes"] if node["type"] not in FRONTEND_ONLY}


def specs(about: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """(type, options) of every input of a class, in the order in which the frontend makes widgets."""
    groups = (about["input"].get(group, {}) for group in ("required", "optional"))
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()}


def kind_of(spec: tuple[Any, dict[str, Any]]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def is_widget(spec: tuple[Any, dict[str, Any]]) -> bool:
    return kind_of(spec) in WIDGET_TYPES and not spec[1].get("forceInput")


def widgets(node: Node, about: dict[str, Any]) -> dict[str, Any]:
    """The node's widget values by name. Behind a seed stands what happens to it after a run, behind a picture its
    button.
    """
    values = iter(node.get("widgets_values") or [])
    named = {}
    for name, spec in specs(about).items():
        if is_widget(spec):
            named[name] = next(values)
            if spec[1].get("control_after_generate"):
                assert next(values) in AFTER_GENERATE
            if spec[1].get("image_upload"):
                assert next(values) == "image"
    assert not list(values), f"{node['type']} has more values than widgets"
    return named


def sources(graph: dict[str, Any], node: Node) -> dict[str, tuple[Node, int]]:
    """Where each linked input of a node comes from: the node and its output slot."""
    links = {link[0]: link for link in graph["links"]}
    nodes = {other["id"]: other for other in graph["nodes"]}
    linked = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot["link"] is not None}
    return {name: (nodes[link[1]], link[2]) for name, link in linked.items()}


def as_api(graph: dict[str, Any], info: Info) -> dict[str, dict[str, Any]]:
    """What the frontend sends to `/prompt`."""
    api = {}
    for key, node in host_nodes(graph).items():
        links = {name: [str(source["id"]), slot] for name, (source, slot) in sources(graph, node).items()}
        api[str(key)] = {"class_type": node["type"], "inputs": {**widgets(node, info(node["type"])), **links}}
    return api


# --- what they are made of ------------------------------------------------------------------------------------------


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS


@every_workflow
def test_host_and_pack_have_every_node_and_input(path: Path, info: Info) -> None:
    for node in host_nodes(read(path)).values():
        about = info(node["type"])
        known = {name: kind_of(spec) for name, spec in specs(about).items()}
        shown = {slot["name"]: slot["type"] for slot in node.get("inputs", [])}
        assert shown == {name: known.get(name) for name in shown}, node["type"]
        outputs = [slot["type"] for slot in node.get("outputs", [])]
        assert outputs == about["output"][: len(outputs)], node["type"]
        assert node["mode"] == 0, f"{node['type']} is muted or bypassed"


@every_workflow
def test_every_value_is_allowed(path: Path, info: Info) -> None:
    for node in host_nodes(read(path)).values():
        about = info(node["type"])
        for name, value in widgets(node, about).items():
            spec = specs(about)[name]
            where = f"{node['type']}.{name} = {value!r}"
            if name in MODEL_FILES:
                offered = {model["name"] for model in node["properties"]["models"]}
                assert value in offered, f"{where}: the graph does not say where to get it"
            elif kind_of(spec) == "COMBO":
                assert value in (spec[0] if isinstance(spec[0], list) else spec[1]["options"]), where
            elif kind_of(spec) in ("INT", "FLOAT"):
                assert isinstance(value, int if kind_of(spec) == "INT" else int | float), where
                assert spec[1]["min"] <= value <= spec[1]["max"], where
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind_of(spec)]), where


@every_workflow
def test_links_are_consistent(path: Path, info: Info) -> None:
    graph = read(path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    assert max(nodes) <= graph["last_node_id"]
    assert max(link[0] for link in graph["links"]) <= graph["last_link_id"]
    for key, origin, output, target, position, kind in graph["links"]:
        start, end = nodes[origin]["outputs"][output], nodes[target]["inputs"][position]
        assert key in start["links"]
        assert end["link"] == key
        assert kind == start["type"]
        assert end["type"] in (kind, "*")
    ends = [slot["link"] for node in nodes.values() for slot in node.get("inputs", []) if slot["link"] is not None]
    starts = [key for node in nodes.values() for slot in node.get("outputs", []) for key in slot["links"] or []]
    assert sorted(ends) == sorted(starts) == sorted(link[0] for link in graph["links"])
    for node in host_nodes(graph).values():
        for name in info(node["type"])["input"]["required"]:
            assert is_widget(specs(info(node["type"]))[name]) or name in sources(graph, node), (node["type"], name)


@every_workflow
def test_the_pack_is_wired_up(path: Path, info: Info) -> None:
    """An Apply node between loader and sampler; Cache Stats behind that sampler, on the same model."""
    graph = read(path)
    nodes = host_nodes(graph).values()
    ours = [node for node in nodes if info(node["type"])["python_module"] == f"custom_nodes.{PACK}"]
    applied = [node for node in ours if "MODEL" in info(node["type"])["output"]]
    statistics = [node for node in ours if node["type"] == "SpectralCacheStats"]
    assert applied
    assert statistics
    for node in applied:
        loader, _ = sources(graph, node)["model"]
        assert "MODEL" in info(loader["type"])["output"]
        assert any(sources(graph, other).get("model", (None,))[0] is node for other in samplers(graph, info))
    for node in statistics:
        model, sampler = (sources(graph, node)[name][0] for name in ("model", "after"))
        assert model in applied
        assert sampler in samplers(graph, info)
        assert sources(graph, sampler)["model"][0] is model


def samplers(graph: dict[str, Any], info: Info) -> list[Node]:
    """The nodes that take a model and make a latent."""
    nodes = host_nodes(graph).values()
    return [n for n in nodes if "model" in specs(info(n["type"])) and "LATENT" in info(n["type"])["output"]]


@every_workflow
def test_nothing_overlaps(path: Path) -> None:
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in read(path)["nodes"]]
    for i, (x, y, width, height, name) in enumerate(boxes):
        for left, top, w, h, other in boxes[i + 1 :]:
            beside = left >= x + width or x >= left + w
            assert beside or top - TITLE >= y + height or y - TITLE >= top + h, f"{name} and {other} overlap"


# --- how they are shown ---------------------------------------------------------------------------------------------


@every_workflow
def test_the_template_browser_shows_it(path: Path, server: Any) -> None:
    assert path.stem in json.loads(get(server, "/api/workflow_templates"))[PACK]
    assert json.loads(get(server, f"/api/workflow_templates/{PACK}/{path.name}")) == read(path)
    thumbnail = get(server, f"/api/workflow_templates/{PACK}/{path.stem}.jpg")
    assert len(thumbnail) < LARGEST_THUMBNAIL
    with Image.open(io.BytesIO(thumbnail)) as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_help_page_explains_every_input_and_output(page: Path, server: Any, info: Info) -> None:
    text = get(server, f"/extensions/{PACK}/docs/{page.name}").decode()
    about = info(page.stem)
    assert text.startswith(f"# {about['display_name']}\n")
    named = [name for name in about["output_name"] if name != "MODEL"]
    for name in (*specs(about), *named):
        assert f"| **{name}** |" in text, name


def get(server: Any, address: str) -> bytes:
    """As the frontend fetches it; no proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.url + address) as answer:
        return answer.read()


# --- that they run --------------------------------------------------------------------------------------------------


def with_stand_ins(api: dict[str, dict[str, Any]], graphs: ModuleType) -> dict[str, dict[str, Any]]:
    """The graph with small stand-ins for its model, its autoencoder and its text encoders; small and short."""
    side, caption = graphs.TRAINED_SIZE, "a large fox on blue"
    changes: dict[str, dict[str, Any]] = {
        "UNETLoader": {"unet_name": graphs.MODEL_FILE},
        "VAELoader": {"vae_name": graphs.VAE_FILE},
        "EmptySD3LatentImage": {"width": side, "height": side},
        "KSampler": {"steps": STEPS},
    }
    trained = any(node["inputs"].get("unet_name") == "flux1-dev.safetensors" for node in api.values())
    if not trained:  # untrained, or untrained for references: too much changes from step to step
        changes["SpectralCacheApply"] = {"threshold": 10.0, "gamma_low": 1000.0, "gamma_high": 1000.0}
    stood_in = {}
    for key, node in api.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "UNETLoader" and "qwen" in inputs["unet_name"]:
            family = "qwen_image_2511" if "2511" in inputs["unet_name"] else "qwen_image"
            stood_in[key] = graphs.node("SpectralCacheStandInQwen", family=family)
        elif kind == "CLIPTextEncode":
            stood_in[key] = graphs.node("SpectralCacheStandInPrompt", text=caption)
        elif kind == "TextEncodeQwenImageEditPlus":
            picture = {"vae": inputs["vae"], "image": inputs["image1"]}
            stood_in[key] = graphs.node("SpectralCacheStandInEditPrompt", text=caption, **picture)
        elif kind == "FluxKontextImageScale":
            scaled = {"upscale_method": "area", "width": side, "height": side, "crop": "center"}
            stood_in[key] = graphs.node("ImageScale", image=inputs["image"], **scaled)
        elif kind not in ("CLIPLoader", "DualCLIPLoader"):
            stood_in[key] = {"class_type": kind, "inputs": {**inputs, **changes.get(kind, {})}}
    return stood_in


@every_workflow
def test_it_runs(path: Path, server: Any, info: Info, graphs: ModuleType) -> None:
    graph = with_stand_ins(as_api(read(path), info), graphs)
    entry = server.run(graph)
    assert entry["status"]["status_str"] == "success"
    for key in of_type(graph, "SaveImage"):
        with Image.open(io.BytesIO(server.image(entry["outputs"][key]["images"][0]))) as picture:
            assert picture.size == (graphs.TRAINED_SIZE, graphs.TRAINED_SIZE)
            assert len(picture.getcolors(graphs.TRAINED_SIZE**2)) > 100, "a picture, not a plain colour"
    for key in of_type(graph, "SpectralCacheStats"):
        trace = json.loads(entry["outputs"][key]["trace"][0])
        site = {"auto": "model", "feb": "attention"}.get(path.stem.rpartition("_")[2], "trunk")
        assert (trace["state"], trace["site"]) == ("done", site)
        assert trace["model"] == ("Qwen-Image" if path.stem.startswith("qwen") else "FLUX.1")
        assert len(trace["evaluations"]) == STEPS
        assert trace["skipped"] > 0


def of_type(graph: dict[str, dict[str, Any]], kind: str) -> Iterator[str]:
    found = [key for key, node in graph.items() if node["class_type"] == kind]
    assert found, f"no {kind}"
    yield from found
