"""As a new user would: find the node, put it into a graph and run it, read its help in one's own language, move an old
graph over, open a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache Auto.json"
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
VIEW = "app.canvas.ds.scale = 1, app.canvas.ds.offset = [-200, 200], app.canvas.setDirty(true, true)"
OURS = "app.graph._nodes.find(node => node.type === 'SpectralCacheAutoApply')"
RESULTS = "[data-testid=result-item], [role=option], .p-autocomplete-option"
IDLE = "fetch('/prompt').then(answer => answer.json()).then(answer => answer.exec_info.queue_remaining === 0)"
FRAME = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
SLOT = """([kind, side, name]) => {
    const node = app.graph._nodes.find(node => node.type === kind);
    const i = node[`${side}s`].findIndex(slot => slot.name === name);
    const [x, y] = side === "input" ? node.getInputPos(i) : node.getOutputPos(i);
    const box = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds;
    return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale];
}"""
"""Where on the screen a node's slot is."""
OFFERED = {
    "smoothcache": "Cache Method",
    "taylorseer": "Cache Method",
    "deepcache": "Cache Method",
    "freqca": "FreqCa Apply",
    "feb cache": "FEB-Cache Apply",
}
OLD = {
    "TeaCache": ["flux", 0.4, 0.0, 1.0, "cuda"],
    "ApplyFBCacheOnModel": ["diffusion_model", 0.12, 0.0, 1.0, -1],
    "MagCache": ["flux", 0.24, 0.1, 5, 0, -1],
    "CacheDiT_Model_Optimizer": [True, "Auto", 0, 0, True],
    "TaylorSeer": ["flux", 6, 2, 3, 50],
    "SpectrumApplyFlux": [0.5, 0.1, 4, 2.0, 0.75, 3, 10, False],
}


def search(page: Any, until: Callable[..., Any], words: str) -> Any:
    """Opens the search, as a person does, and types; returns the results."""
    field = page.locator("input:focus")

    def opened() -> bool:
        """Again if the first double click went to something that was closing."""
        page.keyboard.press("Escape")
        page.mouse.dblclick(500, 330)
        page.wait_for_timeout(1500)
        return bool(field.is_visible())

    until("the search field", opened)
    page.keyboard.insert_text(words)
    until("results", page.locator(RESULTS).first.is_visible)
    page.wait_for_timeout(1000)  # the list is sorted again while words are typed
    return page.locator(RESULTS)


@pytest.mark.claim("Moving over", "in the real page: searching another pack's name lists SpectralCache Auto first")
@pytest.mark.parametrize("words", ["teacache", "fbcache", "加速"])
def test_auto_is_found_first(page: Any, until: Callable[..., Any], words: str, tmp_path: Path) -> None:
    found = search(page, until, words)
    page.screenshot(path=tmp_path / "found.png")
    assert found.first.inner_text().startswith("SpectralCache Auto")
    assert any(text.startswith("Cache Method") for text in found.all_inner_texts())


@pytest.mark.claim("Moving over", "in the real page: searching a method's name lists the node that offers it first")
def test_a_method_is_found_where_it_is_offered(page: Any, until: Callable[..., Any]) -> None:
    found = search(page, until, "smoothcache")
    for words, node in OFFERED.items():
        page.locator("input:focus").fill(words)
        page.wait_for_timeout(1000)
        assert found.first.inner_text().startswith(node), words


def without_a_cache() -> dict[str, Any]:
    """The stand-in graph as one has it before there is a cache: the loader goes straight to the sampler."""
    graph = json.loads(WORKFLOW.read_text("utf-8"))
    ours = {node["id"]: node for node in graph["nodes"] if re.match("SpectralCache(Auto|Stats)", node["type"])}
    gone = {*ours, *(link[3] for link in graph["links"] if link[1] in ours and link[5] == "STRING")}
    (loader,) = (node for node in graph["nodes"] if node["type"] == "UNETLoader")
    for link in graph["links"]:
        if link[1] in gone and link[3] not in gone:
            link[1:3] = [loader["id"], 0]
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] not in gone]
    graph["links"] = [link for link in graph["links"] if link[3] not in gone]
    for node in graph["nodes"]:
        for i, slot in enumerate(node.get("outputs", [])):
            slot["links"] = [link[0] for link in graph["links"] if link[1:3] == [node["id"], i]]
    return {**graph, "groups": []}


def drag(page: Any, start: tuple[str, str, str], end: tuple[str, str, str]) -> None:
    """From slot to slot, each (type of the node, input or output, name), with the mouse alone."""
    page.mouse.move(*page.evaluate(SLOT, start))
    page.mouse.down()
    page.mouse.move(*page.evaluate(SLOT, end), steps=20)
    page.mouse.up()
    page.evaluate(FRAME)


@pytest.mark.claim("First graph", "in the real page: found by the search, placed, wired with the mouse, run")
def test_found_placed_wired_and_run(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", without_a_cache())
    page.evaluate("app.canvas.ds.scale = 0.75, app.canvas.ds.offset = [150, 250], app.canvas.setDirty(true, true)")
    search(page, until, "teacache").first.click()
    page.mouse.move(530, 240, steps=10)  # the node hangs on the pointer by its title until a click puts it down
    page.mouse.click(530, 240)
    until("our node", lambda: page.evaluate(f"Boolean({OURS}) && !({OURS}).flags.ghost"))
    page.screenshot(path=tmp_path / "placed.png")
    ours = "SpectralCacheAutoApply"
    drag(page, ("UNETLoader", "output", "MODEL"), (ours, "input", "model"))
    drag(page, (ours, "output", "MODEL"), ("KSampler", "input", "model"))
    sampler = "app.graph._nodes.find(node => node.type === 'KSampler')"
    wired = f"[({OURS}).getInputNode(0)?.type, ({sampler}).getInputNode(0)?.type]"
    assert page.evaluate(wired) == ["UNETLoader", ours]
    strip = f"({OURS}).widgets.at(-1).element"
    until("the plan", lambda: "12 of 28 steps computed" in page.evaluate(f"{strip}.textContent"))
    page.evaluate(f"""new MutationObserver(() => (window.seen ??= []).push({strip}.textContent))
        .observe({strip}, {{childList: true, subtree: true, characterData: true}})""")
    page.get_by_role("button", name="Run", exact=True).first.click()
    until("the result", lambda: "16/28 skipped" in page.evaluate(f"{strip}.textContent") and page.evaluate(IDLE))
    page.screenshot(path=tmp_path / "run.png")
    counts = {found[0] for text in page.evaluate("window.seen") if (found := re.search(r"\d+/\d+ skipped", text))}
    assert len(counts) > 2, "the strip fills while it samples"


def old_graph(kinds: list[str]) -> dict[str, Any]:
    """The stand-in graph with another pack's node in Auto's place; with several, one behind the other."""
    graph = json.loads(WORKFLOW.read_text("utf-8"))
    node = next(node for node in graph["nodes"] if node["type"] == "SpectralCacheAutoApply")
    (kind,) = kinds
    node |= {"type": kind, "widgets_values": OLD[kind], "properties": {"Node name for S&R": kind}}
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] == "model"]
    return graph


@pytest.mark.claim(
    "Moving over", "in the real page: a graph with another pack's node is replaced by one click, and runs"
)
@pytest.mark.parametrize("kind", OLD)
def test_an_old_graph_is_moved_over(page: Any, until: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", old_graph([kind]))
    page.evaluate(VIEW)
    if not (replace := page.get_by_role("button", name="Replace Node")).first.is_visible():
        page.get_by_role("button", name="View details").first.click()
    page.screenshot(path=tmp_path / "offered.png")
    replace.first.click()
    until("our node", lambda: page.evaluate(f"Boolean({OURS})"))
    values = page.evaluate(f"({OURS}).widgets.slice(0, 2).map(widget => widget.value)")
    assert values == [2, "Balanced"]
    links = page.evaluate(f"[({OURS}).inputs[0].link !== null, ({OURS}).outputs[0].links.length]")
    assert links == [True, 2]
    strip = f"({OURS}).widgets.at(-1).element"
    until("the strip on the new node", lambda: page.evaluate(f"{strip}.isConnected"))
    page.screenshot(path=tmp_path / "replaced.png")
    if kind == "TeaCache":
        page.evaluate("void app.queuePrompt(0)")
        until("the run", lambda: " skipped" in page.evaluate(f"{strip}.textContent") and page.evaluate(IDLE))


@pytest.mark.claim("Languages", "in the real page: a node's names, strip and help in Chinese and in Japanese")
@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("zh", ["SpectralCache 自动加速", "下次运行：28 步中计算 12 步", "什么都没跳过，为什么？"]),
        ("ja", ["SpectralCache 自動", "次の実行：28 ステップ中 12 を計算", "何もスキップされない。なぜ？"]),
    ],
)
def test_another_language(
    page: Any, until: Callable[..., Any], language: str, words: list[str], tmp_path: Path
) -> None:
    title, plan, heading = words
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate(VIEW)
    assert page.evaluate(f"({OURS}).constructor.title") == title
    strip = f"({OURS}).widgets.at(-1).element"
    until("the plan", lambda: plan in page.evaluate(f"{strip}.textContent"))
    page.evaluate(f"app.canvas.selectNode({OURS})")
    page.locator("[data-testid=info-button]").first.click()
    help_page = page.get_by_text(heading).first
    until("the help page", help_page.is_visible)
    until(
        "its picture",
        lambda: page.evaluate("document.querySelector('img[src*=\"docs/images/auto\"]')?.naturalWidth > 0"),
    )
    page.screenshot(path=tmp_path / "help.png")


@pytest.mark.claim("Graphs", "in the real page: every template opens without a complaint of ours")
def test_every_template_opens(page: Any, tmp_path: Path) -> None:
    ours = "app.graph._nodes.filter(node => /^SpectralCache/.test(node.type)"
    for name in TEMPLATES:
        page.evaluate(
            "name => fetch(`/api/workflow_templates/spectralcache/${name}.json`).then(answer => answer.json())"
            ".then(graph => app.loadGraphData(graph))",
            name,
        )
        page.evaluate(FRAME)
        assert page.evaluate(f"{ours} && node.constructor.nodeData).length") >= 2, name
        assert page.evaluate(f"{ours} && node.has_errors).length") == 0, name
        page.screenshot(path=tmp_path / f"{name}.png")
