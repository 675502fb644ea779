"""SpectralCache Auto in the real page: one dial, and what it means for this graph before the run."""

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


PLAN = f"({OURS})?.widgets.at(-1).element.querySelector('.next')?.textContent"
FAINT = f"""(node => {{
    const row = node.widgets.at(-1).element.closest(".lg-node-widgets")?.querySelector(".lg-node-widget");
    if (row) return getComputedStyle(row).opacity < 0.6;
    const alphas = [], fake = new Proxy({{}}, {{get: (kept, name) => kept[name] ?? (() => ({{width: 9}})),
        set: (kept, name, value) => (name === "globalAlpha" && alphas.push(value), kept[name] = value, true)}});
    fake.globalAlpha = 1;
    node.widgets[0].drawWidget(fake, {{width: 200}});
    return Math.min(...alphas) < 0.6;
}})({OURS})"""
"""Whether speedup is drawn as not counting, as an element or on the canvas."""


def set_to(page: Any, kind: str, name: str, value: Any) -> None:
    """As a user sets it: the widget's callback is called too."""
    page.evaluate(
        """([kind, name, value]) => { const node = app.graph._nodes.find(node => node.type === kind);
        const widget = node.widgets.find(widget => widget.name === name);
        widget.value = value; widget.callback?.(value, app.canvas, node); }""",
        [kind, name, value],
    )


@pytest.mark.claim("Auto", "in the real page: what a word means for this graph's steps is on the node before the run")
def test_the_plan_is_on_the_node_before_the_run(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    def planned(words: str) -> None:
        until(words, lambda: page.evaluate(PLAN) == words)

    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate(VIEW)
    planned("next run: 12 of 28 steps computed")
    set_to(page, "SpectralCacheAutoApply", "quality", "Draft")
    planned("next run: 8 of 28 steps computed")
    set_to(page, "SpectralCacheAutoApply", "speedup", 4.0)
    planned("next run: 7 of 28 steps computed")
    set_to(page, "SpectralCacheAutoApply", "speedup", 1.0)
    planned("next run: all 28 steps computed")
    set_to(page, "KSampler", "steps", 50)
    set_to(page, "SpectralCacheAutoApply", "quality", "Fast")
    planned("next run: 13 of 50 steps computed")
    page.screenshot(path=tmp_path / "plan.png")
    page.evaluate("app.graph.remove(app.graph._nodes.find(node => node.type === 'KSampler'))")
    page.evaluate(f"({OURS}).onConnectionsChange?.()")
    planned("connect a sampler to see the plan")


@pytest.mark.claim("Auto", "in the real page: with a word chosen, speedup is drawn as not counting")
def test_speedup_is_faint_with_a_word(page: Any, until: Callable[..., Any]) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate(VIEW)
    until("faint", lambda: page.evaluate(FAINT))
    set_to(page, "SpectralCacheAutoApply", "quality", "Custom")
    until("not faint", lambda: not page.evaluate(FAINT))


@pytest.mark.claim("Auto", "in the real page: advanced inputs are folded, and a click shows them")
def test_advanced_inputs_are_folded(page: Any, until: Callable[..., Any], drawn: Callable[[str], int]) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate(VIEW)
    until("two inputs", lambda: drawn("SpectralCacheAutoApply") == 2)
    # the model loader has advanced inputs too, and its button may be drawn first
    ours = page.locator(f"[data-node-id='{page.evaluate(f'({OURS}).id')}']")
    as_element = ours.get_by_text("Show advanced inputs")
    on_canvas = page.locator(".spectralcache-fold:visible")
    button = on_canvas.or_(as_element).filter(visible=True)
    button.click()
    until("every input", lambda: drawn("SpectralCacheAutoApply") >= 7)
    ours.get_by_text("Hide advanced").or_(on_canvas).filter(visible=True).click()
    until("two inputs again", lambda: drawn("SpectralCacheAutoApply") == 2)
