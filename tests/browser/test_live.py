"""The live text on the Apply node as people see it: in the real frontend, while it samples and after."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache.json"
STEPS, LONG = 28, 3000  # the long run is interrupted

TEXTS = """app.graph._nodes.flatMap(node => (node.widgets ?? [])
    .filter(widget => widget.type === "progressText").map(widget => [node.comfyClass, String(widget.value)]))"""
ON_SCREEN = """[...document.querySelectorAll("*")].flatMap(element => [element.value, element.childElementCount ? ""
    : element.textContent]).filter(text => / skipped/.test(text ?? ""))"""
COUNT = """window.heard = 0, comfyAPI.api.api.socket.addEventListener("message", ({data}) => {
    if (data instanceof ArrayBuffer && new DataView(data).getUint32(0) === 3) heard += 1; })"""
IDLE = "fetch('/prompt').then(answer => answer.json()).then(answer => answer.exec_info.queue_remaining === 0)"


def graph(steps: int = LONG) -> dict[str, Any]:
    """The stand-in workflow."""
    read = json.loads(WORKFLOW.read_text("utf-8"))
    for node in read["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][2] = steps
    return read


def renumbered() -> dict[str, Any]:
    """The same nodes, unlinked, but under the Apply node's number stands another one."""
    other = graph()
    by_type = {node["type"]: node for node in other["nodes"]}
    apply, sampler = by_type["SpectralCacheApply"], by_type["KSampler"]
    apply["id"], sampler["id"] = sampler["id"], apply["id"]
    for node in other["nodes"]:
        for slot in node.get("inputs") or []:
            slot["link"] = None
        for slot in node.get("outputs") or []:
            slot["links"] = None
    return {**other, "id": "5f0f8f4e-1b56-4c0c-9a5a-3b1d2c5e7a10", "links": []}


@pytest.mark.claim("Live text", "in the real page, on the canvas and as Nodes 2.0: while it samples and after it")
def test_the_text_is_on_the_apply_node(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    def load(workflow: dict[str, Any]) -> None:
        page.evaluate("graph => app.loadGraphData(graph)", workflow)

    def text(words: str) -> str | None:
        found = page.evaluate(TEXTS)
        assert [kind for kind, _ in found] in ([], ["SpectralCacheApply"])
        return next((value for _, value in found if re.fullmatch(words, value)), None)

    load(graph())
    page.evaluate("app.canvas.ds.scale = 1.1, app.canvas.ds.offset = [-150, 80], app.canvas.setDirty(true, true)")
    page.evaluate("void app.queuePrompt(0)")
    first = until("a text while it samples", lambda: text(r"\d+/\d+ skipped.*"))
    assert int(first.split()[0].split("/")[1]) < LONG
    assert until("the text on the screen", lambda: page.evaluate(ON_SCREEN))
    page.screenshot(path=tmp_path / "sampling.png")
    page.evaluate(COUNT)
    load(renumbered())  # the user looks at another workflow
    page.evaluate("heard = 0")
    until("texts for a workflow out of view", lambda: page.evaluate("heard >= 2"))
    assert page.evaluate(TEXTS) == []
    load(graph(STEPS))
    until("the text again", lambda: text(r"\d+/\d+ skipped.*"))
    page.evaluate("void comfyAPI.api.api.interrupt(null)")
    until("the end of the run", lambda: text("interrupted"))
    page.evaluate("void app.queuePrompt(0)")
    until("the final figure", lambda: text(rf"\d+/{STEPS} skipped · \d\.\dx"))
    until("the end", lambda: page.evaluate(IDLE))
    page.wait_for_timeout(1000)
    if os.environ.get("SPECTRALCACHE_FRONTEND"):  # 1.58 takes all texts away when a run ends, 1.47 leaves them
        assert page.evaluate(TEXTS) == [] or text(rf"\d+/{STEPS} skipped · \d\.\dx")
    else:
        assert text(rf"\d+/{STEPS} skipped · \d\.\dx")
    page.screenshot(path=tmp_path / "after.png")
