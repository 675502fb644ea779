"""The live text on the Apply node as people see it: in the real frontend, while it samples and after."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache.json"
STEPS, LONG = 28, 3000  # the long run is interrupted
PATIENCE = 60  # seconds: only a machine that is much too busy needs them

READY = "Boolean(window.app?.graph && app.extensionManager?.setting && app.extensions?.length)"
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


async def until(what: str, look: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is not empty."""
    for _ in range(PATIENCE * 5):
        found = await look()
        if found:
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"not seen within {PATIENCE} seconds: {what}")


@pytest.mark.claim("Live text", "in the real page, on the canvas and as Nodes 2.0: while it samples and after it")
def test_the_text_is_on_the_apply_node(server: Any, browser: str, tmp_path: Path) -> None:
    import chromium

    async def watch() -> None:
        async with chromium.page(browser, server.url) as page:

            async def text(words: str) -> str | None:
                found = await page.run(TEXTS)
                assert [kind for kind, _ in found] in ([], ["SpectralCacheApply"])
                return next((value for _, value in found if re.fullmatch(words, value)), None)

            await until("the frontend", lambda: page.run(READY))
            await asyncio.sleep(2)  # it restores the last workflow before it takes another
            await page.run(f"app.loadGraphData({json.dumps(graph())})")
            await page.run(
                "app.canvas.ds.scale = 1.1, app.canvas.ds.offset = [-150, 80], app.canvas.setDirty(true, true)"
            )
            await page.run("void app.queuePrompt(0)")
            first = await until("a text while it samples", lambda: text(r"\d+/\d+ skipped.*"))
            assert int(first.split()[0].split("/")[1]) < LONG
            assert await until("the text on the screen", lambda: page.run(ON_SCREEN))
            await page.screenshot(tmp_path / "sampling.png")
            await page.run(COUNT)
            await page.run(f"app.loadGraphData({json.dumps(renumbered())})")  # the user looks at another workflow
            await page.run("heard = 0")
            await until("texts for a workflow out of view", lambda: page.run("heard >= 2"))
            assert await page.run(TEXTS) == []
            await page.run(f"app.loadGraphData({json.dumps(graph(STEPS))})")
            await until("the text again", lambda: text(r"\d+/\d+ skipped.*"))
            await page.run("void comfyAPI.api.api.interrupt(null)")
            await until("the end of the run", lambda: text("interrupted"))
            await page.run("void app.queuePrompt(0)")
            await until("the final figure", lambda: text(rf"\d+/{STEPS} skipped · \d\.\dx"))
            await until("the end", lambda: page.run(IDLE))
            await asyncio.sleep(1)
            assert await text(rf"\d+/{STEPS} skipped · \d\.\dx")
            await page.screenshot(tmp_path / "after.png")

    asyncio.run(watch())
