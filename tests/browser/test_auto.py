"""SpectralCache Auto in the real page: turning the number means the number."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache Auto.json"
PATIENCE = 60  # seconds

READY = "Boolean(window.app?.graph && app.extensionManager?.setting && app.extensions?.length)"
OURS = "app.graph._nodes.find(node => node.type === 'SpectralCacheAutoApply')"
VALUES = f"({OURS})?.widgets.slice(0, 2).map(widget => widget.value)"
VIEW = "app.canvas.ds.scale = 1, app.canvas.ds.offset = [-100, 200], app.canvas.setDirty(true, true)"
MORE = f"""(() => {{
    const centre = box => [box.x + box.width / 2, box.y + box.height / 2];
    const field = [...document.querySelectorAll("input")].find(input => Number(input.value) === 2);
    for (let around = field?.parentElement; around; around = around.parentElement) {{
        const buttons = around.querySelectorAll("button");
        if (buttons.length) return centre(buttons[buttons.length - 1].getBoundingClientRect());
    }}
    const node = {OURS}, box = app.canvas.canvas.getBoundingClientRect(), [dx, dy] = app.canvas.ds.offset;
    const right = node.pos[0] + node.size[0] - 22, middle = node.pos[1] + node.widgets[0].last_y + 10;
    return [box.x + right + dx, box.y + middle + dy];
}})()"""
"""Where a user clicks for a larger speedup: the last button beside the field, or the arrow on the canvas."""


@pytest.mark.claim("Auto", "in the real page: turning speedup sets quality to Custom, loading a graph does not")
def test_turning_the_number_sets_custom_and_loading_a_graph_does_not(server: Any, browser: str) -> None:
    import chromium

    async def until(page: Any, script: str, wanted: Any) -> None:
        for _ in range(PATIENCE * 5):
            found = await page.run(script)
            if found == wanted:
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"{script}: {found}, not {wanted}")

    async def load(page: Any, values: list[Any]) -> None:
        graph = json.loads(WORKFLOW.read_text("utf-8"))
        for node in graph["nodes"]:
            if node["type"] == "SpectralCacheAutoApply":
                node["widgets_values"][:2] = values
        await page.run(f"app.loadGraphData({json.dumps(graph)})")
        await page.run(VIEW)
        await asyncio.sleep(2)
        await until(page, VALUES, values)

    async def watch() -> None:
        async with chromium.page(browser, server.url) as page:
            await until(page, READY, True)
            await asyncio.sleep(2)  # it restores the last workflow before it takes another
            await load(page, [3.3, "Fast"])
            await load(page, [2, "Balanced"])
            x, y = await page.run(MORE)
            for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
                button = "none" if kind == "mouseMoved" else "left"
                await page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
                await asyncio.sleep(0.2)
            await until(page, VALUES, [2.1, "Custom"])

    asyncio.run(watch())
