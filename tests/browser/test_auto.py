"""SpectralCache Auto in the real page: turning the number means the number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache Auto.json"

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
def test_turning_the_number_sets_custom_and_loading_a_graph_does_not(page: Any, until: Callable[..., Any]) -> None:
    def load(values: list[Any]) -> None:
        graph = json.loads(WORKFLOW.read_text("utf-8"))
        for node in graph["nodes"]:
            if node["type"] == "SpectralCacheAutoApply":
                node["widgets_values"][:2] = values
        page.evaluate("graph => app.loadGraphData(graph)", graph)
        page.evaluate(VIEW)
        page.wait_for_timeout(2000)
        until(f"the values {values}", lambda: page.evaluate(VALUES) == values)

    load([3.3, "Fast"])
    load([2, "Balanced"])
    page.mouse.click(*page.evaluate(MORE), delay=200)
    until("Custom beside the number", lambda: page.evaluate(VALUES) == [2.1, "Custom"])
