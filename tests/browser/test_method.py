"""Cache Method in the real page: each method brings its own inputs, in the page's language too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache.json"
VIEW = "app.canvas.ds.scale = 1, app.canvas.ds.offset = [-100, 200], app.canvas.setDirty(true, true)"
METHOD = "SpectralCacheMethodApply"
OURS = f"app.graph._nodes.find(node => node.type === '{METHOD}')"
OWN = f"({OURS}).widgets.filter(widget => widget.name.startsWith('method.'))"
CHOOSE = f"""name => {{ const choice = ({OURS}).widgets[0]; choice.value = name; choice.callback?.(name); }}"""
VALUES = ["dbcache", 0.1, 4, 2, 5, 3, 0.5, "taylor"]


def graph() -> dict[str, Any]:
    """The stand-in graph with Cache Method in place of SpectralCache Apply."""
    read = json.loads(WORKFLOW.read_text("utf-8"))
    node = next(node for node in read["nodes"] if node["type"] == "SpectralCacheApply")
    node |= {"type": METHOD, "widgets_values": VALUES, "properties": {"Node name for S&R": METHOD}}
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] == "model"]
    return read


@pytest.mark.claim("Languages", "in the real page: Cache Method's inputs, folded as others, and its help in Chinese")
@pytest.mark.parametrize("language", ["zh"])
def test_a_method_brings_its_inputs(
    page: Any, until: Callable[..., Any], drawn: Callable[[str], int], language: str, tmp_path: Path
) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", graph())
    page.evaluate(VIEW)
    loaded = page.evaluate(f"({OURS}).widgets.slice(0, 9).map(widget => widget.value)")
    assert loaded == [*VALUES, "off"]  # saved before there was a gain
    plain = f"1 + {OWN}.filter(widget => !widget.options.advanced).length"
    every = f"2 + {OWN}.length"  # the method's name and the gain
    assert page.evaluate(plain) < page.evaluate(every)
    until("a loaded graph, folded", lambda: drawn(METHOD) == page.evaluate(plain))
    assert page.evaluate(f"{OWN}[0].label") == "阈值"
    page.locator(f"[data-node-id='{page.evaluate(f'({OURS}).id')}']").get_by_text("显示高级输入").or_(
        page.locator(".spectralcache-fold")
    ).filter(visible=True).click()
    until("all its inputs", lambda: drawn(METHOD) == page.evaluate(every))
    page.evaluate(f"({OURS}).showAdvanced = false")
    page.evaluate(CHOOSE, "teacache")
    until("another method's, folded", lambda: drawn(METHOD) == page.evaluate(plain) == 2)
    page.evaluate(f"app.canvas.selectNode({OURS})")
    page.locator("[data-testid=info-button]").first.click()
    help_page = page.get_by_text("各种方法及其输入").first
    until("the help page", help_page.is_visible)
    picture = "document.querySelector('img[src*=\"docs/images/method\"]')?.naturalWidth > 0"
    until("its picture", lambda: page.evaluate(picture))
    page.screenshot(path=tmp_path / "help.png")
