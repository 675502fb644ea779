"""As a new user would: find the node, read its help in one's own language, move an old graph over, open a template."""

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
OLD = {
    "TeaCache": ["flux", 0.4, 0.0, 1.0, "cuda"],
    "ApplyFBCacheOnModel": ["diffusion_model", 0.12, 0.0, 1.0, -1],
    "MagCache": ["flux", 0.24, 0.1, 5, 0, -1],
    "CacheDiT_Model_Optimizer": [True, "Auto", 0, 0, True],
    "TaylorSeer": ["flux", 6, 2, 3, 50],
    "SpectrumApplyFlux": [0.5, 0.1, 4, 2.0, 0.75, 3, 10, False],
}


@pytest.mark.claim("Moving over", "in the real page: searching another pack's name lists SpectralCache Auto first")
@pytest.mark.parametrize("words", ["teacache", "fbcache", "加速"])
def test_auto_is_found_first(page: Any, until: Callable[..., Any], words: str, tmp_path: Path) -> None:
    page.evaluate("app.graph.clear()")
    field = page.locator("input:focus")

    def search() -> bool:
        """Opens the search, as a person does: again if the first double click went to something that was closing."""
        page.keyboard.press("Escape")
        page.mouse.dblclick(800, 650)
        page.wait_for_timeout(1500)
        return bool(field.is_visible())

    until("the search field", search)
    page.keyboard.insert_text(words)
    first = page.locator(RESULTS).first

    def title() -> str | None:
        """Of the first result; other nodes name Auto in their descriptions."""
        found = re.search("SpectralCache Auto|Cache Method|Cache Stats|FEB-Cache|FreqCa|SpectralCache Apply|EasyCache",
                          first.inner_text() if first.is_visible() else "")  # fmt: skip
        return found and found[0]

    until("Auto first", lambda: title() == "SpectralCache Auto")
    page.wait_for_timeout(500)  # the list is sorted again while words are typed
    assert title() == "SpectralCache Auto"
    page.screenshot(path=tmp_path / "found.png")


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
