"""The strip on the nodes as people see it: in the real frontend, while it samples, after it, and after a reload."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WORKFLOWS = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows"
STEPS, SHORT, LONG = 28, 10, 3000  # the long run is interrupted
APPLY, AUTO, STATS = "SpectralCacheApply", "SpectralCacheAutoApply", "SpectralCacheStats"

STRIPS = """Object.fromEntries(app.graph._nodes.flatMap(node => (node.widgets ?? [])
    .filter(widget => widget.name === "spectralcache_strip").map(widget => [node.comfyClass, {
        cells: [...widget.element.querySelectorAll(".spectralcache-cell")].map(cell => cell.dataset.look ?? ""),
        lines: [...widget.element.querySelectorAll(".spectralcache-line")].map(line => line.textContent),
        shown: widget.element.isConnected && widget.element.getBoundingClientRect().width > 100,
    }])))"""
HEARD = """window.heard = 0, comfyAPI.api.api.addEventListener("spectralcache.run", () => { heard += 1; })"""
BINARY = """window.binary = 0, comfyAPI.api.api.socket.addEventListener("message", ({data}) => {
    if (data instanceof ArrayBuffer && new DataView(data).getUint32(0) === 3) binary += 1; })"""
IDLE = "fetch('/prompt').then(answer => answer.json()).then(answer => answer.exec_info.queue_remaining === 0)"
COST = """(node => {
    const message = first => ({node, run: "a test", state: "sampling", steps: 150, done: first + 1, first,
        skipped: 0, partial: 0, faster: 1, estimate: null, notes: [],
        evaluations: [["computed", first, 0, 0.5, "threshold", {distance: [0.7, 0.6]}]]});
    const start = performance.now();
    for (let i = 0; i < 150; i += 1) comfyAPI.api.api.dispatchCustomEvent("spectralcache.run", message(i));
    return (performance.now() - start) / 150;
})"""


def graph(name: str, steps: int = LONG, seed: int = 42) -> dict[str, Any]:
    """A stand-in workflow."""
    read = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    for node in read["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][0], node["widgets_values"][2] = seed, steps
    return read


def renumbered() -> dict[str, Any]:
    """The same nodes, unlinked, but under the Apply node's number stands another one."""
    other = graph("try SpectralCache")
    by_type = {node["type"]: node for node in other["nodes"]}
    apply, stats = by_type[APPLY], by_type[STATS]
    apply["id"], stats["id"] = stats["id"], apply["id"]
    for node in other["nodes"]:
        for slot in node.get("inputs") or []:
            slot["link"] = None
        for slot in node.get("outputs") or []:
            slot["links"] = None
    return {**other, "id": "5f0f8f4e-1b56-4c0c-9a5a-3b1d2c5e7a10", "links": []}


def load(page: Any, workflow: dict[str, Any]) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", workflow)
    page.evaluate("app.canvas.ds.scale = 0.7, app.canvas.ds.offset = [-300, 120], app.canvas.setDirty(true, true)")
    page.wait_for_timeout(500)


def strip(page: Any, kind: str) -> dict[str, Any]:
    return page.evaluate(STRIPS).get(kind) or {"cells": [], "lines": [""], "shown": False}


@pytest.mark.claim(
    "Live view", "in the real page, on the canvas and as Nodes 2.0: while it samples, when cancelled, after it"
)
def test_the_strip_fills_and_stays(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    load(page, graph("try SpectralCache"))
    assert strip(page, APPLY)["lines"][0] == "not run yet"
    page.evaluate(BINARY)
    page.evaluate("void app.queuePrompt(0)")
    first = until(
        "the strip while it samples", lambda: re.match(r"(\d+)/(\d+) skipped", strip(page, APPLY)["lines"][0])
    )
    assert int(first[2]) < LONG
    filling = strip(page, APPLY)
    assert filling["shown"] and 0 < sum(map(bool, filling["cells"])) < len(filling["cells"])
    assert strip(page, STATS)["lines"][0], "Cache Stats shows the run of its Apply node"
    page.screenshot(path=tmp_path / "sampling.png")
    page.evaluate(HEARD)
    load(page, renumbered())  # the user looks at another workflow
    page.evaluate("heard = 0")
    until("messages for a workflow out of view", lambda: page.evaluate("heard >= 2"))
    assert {tuple(shown["lines"]) for shown in page.evaluate(STRIPS).values()} == {("not run yet",)}
    load(page, graph("try SpectralCache", STEPS))
    until("the strip again", lambda: re.match(r"\d+/\d+ skipped", strip(page, APPLY)["lines"][0]))
    page.evaluate("void comfyAPI.api.api.interrupt(null)")
    until("the end of the run", lambda: strip(page, APPLY)["lines"][0].endswith("interrupted"))
    page.evaluate("void app.queuePrompt(0)")
    final = rf"\d+/{STEPS} skipped · \d\.\dx"
    until("the final figure", lambda: re.fullmatch(final, strip(page, APPLY)["lines"][0]))
    until("the end", lambda: page.evaluate(IDLE))
    page.wait_for_timeout(1000)
    for kind in (APPLY, STATS):
        done = strip(page, kind)
        assert re.fullmatch(final, done["lines"][0]), kind
        assert len(done["cells"]) == STEPS and done["cells"][0] == done["cells"][-1] == "forced"
        assert done["cells"].count("skipped") == int(done["lines"][0].split("/")[0])
    assert page.evaluate("binary") == 0
    page.screenshot(path=tmp_path / "after.png")


@pytest.mark.claim(
    "Live view", "in the real page: a cell says sigma, scores, limits and the reason, by mouse and by keyboard"
)
def test_a_cell_says_why(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    load(page, graph("try SpectralCache", STEPS, seed=7))
    page.evaluate("void app.queuePrompt(0)")
    until("the end of the run", lambda: len(strip(page, STATS)["cells"]) == STEPS and page.evaluate(IDLE))
    cells = page.locator(".spectralcache-strip").first.locator(".spectralcache-cell")
    tip = page.locator(".spectralcache-tip")
    cells.nth(0).hover()
    assert tip.is_visible() and "step 1" in tip.inner_text() and "first step" in tip.inner_text()
    skipped = strip(page, APPLY)["cells"].index("skipped")
    cells.nth(skipped).hover(force=True)
    said = tip.inner_text()
    assert f"step {skipped + 1}: skipped" in said and "sigma 0." in said and ", limit " in said
    assert "below every limit" in said
    page.screenshot(path=tmp_path / "cell.png")
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    page.locator(".spectralcache-cells").first.focus()
    page.keyboard.press("End")
    assert f"step {STEPS}" in tip.inner_text() and "last step" in tip.inner_text()
    page.keyboard.press("ArrowLeft")
    assert f"step {STEPS - 1}" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    box = tip.bounding_box()
    assert box is None or box["x"] >= 0


@pytest.mark.claim(
    "Live view", "in the real page: the last run is there after a reload and in a saved workflow, which stays unchanged"
)
def test_the_last_run_is_kept(page: Any, until: Callable[..., Any], reload: Callable[[], None]) -> None:
    load(page, graph("try SpectralCache", STEPS, seed=8))
    values = "app.graph._nodes.map(node => [node.type, JSON.stringify(node.serialize().widgets_values)])"
    before = page.evaluate(values)
    page.evaluate("void app.queuePrompt(0)")
    until("the end of the run", lambda: len(strip(page, STATS)["cells"]) == STEPS and page.evaluate(IDLE))
    last = strip(page, APPLY)
    assert page.evaluate(values) == before, "a run is no change of any value"
    saved = page.evaluate("app.rootGraph.serialize()")
    reload()
    until("the strip after a reload", lambda: strip(page, APPLY)["cells"] == last["cells"])
    assert strip(page, APPLY)["lines"] == last["lines"]
    page.evaluate("localStorage.removeItem('spectralcache')")  # as in another browser
    load(page, {**saved, "config": {}})
    assert strip(page, APPLY)["cells"] == []
    load(page, saved)
    until("the strip of a saved workflow", lambda: strip(page, APPLY)["cells"] == last["cells"])


def test_a_run_of_messages_is_drawn_as_it_comes(page: Any) -> None:
    load(page, graph("try SpectralCache", STEPS))
    node = page.evaluate(f"app.graph._nodes.find(node => node.comfyClass === '{APPLY}').id")
    print(
        f"{page.evaluate(f'({COST})({node})'):.3f} ms an evaluation on the page"
    )  # measured, not judged: machines differ
    cells = strip(page, APPLY)["cells"]
    assert len(cells) == 150 and cells[0] == cells[-1] == "forced" and set(cells[1:-1]) == {"computed"}


SECOND = """() => {
    const of = type => app.graph._nodes.find(node => node.type === type);
    const apply = of("SpectralCacheApply"), sampler = of("KSampler"), loader = of("UNETLoader");
    const add = type => { const made = LiteGraph.createNode(type); app.graph.add(made); return made; };
    const [auto, other, stats] = ["SpectralCacheAutoApply", "KSampler", "SpectralCacheStats"].map(add);
    [auto, other, stats].forEach((node, i) => { node.pos = [380 + 500 * i, -600]; });
    for (const name of ["steps", "cfg", "sampler_name", "scheduler"]) {
        const named = node => node.widgets.find(widget => widget.name === name);
        named(other).value = named(sampler).value;
    }
    loader.connect(0, auto, 0);
    auto.connect(0, other, 0);
    for (const slot of [1, 2, 3]) sampler.getInputNode(slot).connect(0, other, slot);
    auto.connect(0, stats, 0);
    other.connect(0, stats, 1);
    of("EmptySD3LatentImage").widgets.find(widget => widget.name === "batch_size").value = 2;
    app.graph.convertToSubgraph(new Set([auto]));
}"""
EVERY = """[app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap(graph => graph.nodes).flatMap(node =>
    (node.widgets ?? []).filter(widget => widget.name === "spectralcache_strip").map(widget => [node.comfyClass,
        widget.element.querySelectorAll("[data-look]").length, widget.element.textContent]))"""


@pytest.mark.claim("Live view", "in the real page: several nodes at once, one in a subgraph, with a batch")
def test_several_nodes_each_have_their_own_run(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    load(page, graph("try SpectralCache", SHORT))
    page.evaluate(SECOND)
    page.evaluate("void app.queuePrompt(0)")
    until("two runs", lambda: [cells for _, cells, _ in page.evaluate(EVERY)] == 4 * [SHORT] and page.evaluate(IDLE))
    shown = page.evaluate(EVERY)
    assert sorted(kind for kind, _, _ in shown) == sorted([APPLY, AUTO, STATS, STATS])
    figures = [re.search(r"\d+/\d+ skipped|nothing skipped", text)[0] for _, _, text in shown]  # type: ignore[index]
    assert len(set(figures)) == 2, figures
    page.screenshot(path=tmp_path / "several.png")


PLACES = """kind => {
    const strip = app.graph._nodes.find(node => node.type === kind).widgets
        .find(widget => widget.name === "spectralcache_strip").element;
    const box = element => (({x, y, width, height}) => [x, y, width, height])(element.getBoundingClientRect());
    const shown = [...strip.querySelectorAll(".spectralcache-line, .spectralcache-fold, [data-look]")]
        .filter(element => element.checkVisibility());
    return {row: box(strip.querySelector(".spectralcache-cells")),
        parts: shown.map(element => [element.dataset.look ?? element.className, box(element)])};
}"""


def brightness(colour: tuple[int, ...]) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [part / 255 for part in colour[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def contrasts(screenshot: Image.Image, row: list[float], parts: list[tuple[str, list[float]]]) -> dict[str, float]:
    """How far each part of a strip stands out from what is drawn behind it, at its best pixel."""
    panel = screenshot.getpixel((round(row[0]) + 2, round(row[1] + row[3] / 2)))
    found: dict[str, float] = {}
    for name, (x, y, width, height) in parts:
        colours = screenshot.crop((round(x), round(y), round(x + width), round(y + height))).getcolors(1 << 20)
        ground = max(colours)[1] if "-" in name else panel  # of a line of text, most is ground
        found[name] = min(found.get(name, 99.0), max(contrast(colour, ground) for _, colour in colours))
    return found


@pytest.mark.claim("Live view", "in the real page: dark and light theme, words and cells stand out")
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_strip_can_be_read(page: Any, until: Callable[..., Any], theme: str, tmp_path: Path) -> None:
    page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
    load(page, graph("try SpectralCache Auto", SHORT))
    page.evaluate("void app.queuePrompt(0)")
    until("the end of the run", lambda: len(strip(page, STATS)["cells"]) == SHORT and page.evaluate(IDLE))
    page.screenshot(path=tmp_path / f"{theme}.png")
    page.evaluate("app.canvas.ds.scale = 2, app.canvas.ds.offset = [-300, 120], app.canvas.setDirty(true, true)")
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)
    seen = Image.open(io.BytesIO(page.screenshot(path=tmp_path / f"{theme}, close.png"))).convert("RGB")
    found = contrasts(seen, **page.evaluate(PLACES, AUTO))
    assert {"skipped", "computed", "forced", "spectralcache-line"} <= found.keys()
    assert not {name: value for name, value in found.items() if value < (4.5 if "-" in name else 3)}, found
