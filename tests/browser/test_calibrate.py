"""Cache Calibrate in the real page: a graph learns of its model, goes by it, and a later one loads what was stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try SpectralCache Auto.json"
STEPS = 8
FIND = "const find = type => app.graph._nodes.find(node => node.type === type);"
LEARN = f"""steps => {{
    {FIND}
    const auto = find("SpectralCacheAutoApply"), sampler = find("KSampler");
    const learn = LiteGraph.createNode("SpectralCacheCalibrate");
    learn.pos = [auto.pos[0] - 100, auto.pos[1] + 500];
    app.graph.add(learn);
    const slot = (node, name) => node.inputs.findIndex(input => input.name === name);
    const same = (node, name) => {{ // what this input of the node is connected to
        const at = slot(node, name), link = node.getInputLink(at);
        app.graph.getNodeById(link.origin_id).connect(link.origin_slot, learn, slot(learn, name));
    }};
    same(auto, "model");
    for (const name of ["positive", "negative", "latent_image"]) same(sampler, name);
    const set = (name, value) => {{ learn.widgets.find(widget => widget.name === name).value = value; }};
    set("steps", steps);
    set("samples", 1);
    set("record", "whole run");
    set("name", "learned in the page");
    sampler.widgets.find(widget => widget.name === "steps").value = steps;
    set("cfg", sampler.widgets.find(widget => widget.name === "cfg").value);
    learn.connect(0, auto, slot(auto, "profile"));
    return learn.widgets.map(widget => widget.name);
}}"""
LOAD = f"""async () => {{
    {FIND}
    app.graph.remove(find("SpectralCacheCalibrate"));
    await app.refreshComboInNodes();
    const auto = find("SpectralCacheAutoApply"), loader = LiteGraph.createNode("SpectralCacheProfileLoader");
    loader.pos = [auto.pos[0] - 100, auto.pos[1] + 500];
    app.graph.add(loader);
    loader.connect(0, auto, auto.inputs.findIndex(input => input.name === "profile"));
    const {{value, options}} = loader.widgets.find(widget => widget.name === "name");
    return [value, [...options.values]];
}}"""
TRACES = """fetch("/history").then(answer => answer.json()).then(history => Object.values(history)
    .filter(entry => entry.status.completed)
    .map(entry => Object.values(entry.outputs).find(output => output.trace)?.trace[0]))"""


@pytest.mark.claim("Profiles", "in the real page: learned, gone by in the same graph, and loaded in a later one")
def test_what_was_learned_is_gone_by_and_loaded(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    def ran(times: int) -> dict[str, Any]:
        """Queue the graph; the trace of the run."""
        page.evaluate("app.queuePrompt(0)")
        until("the run's end", lambda: len(page.evaluate(TRACES)) == times)
        return dict(json.loads(page.evaluate(TRACES)[-1]))

    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    widgets = page.evaluate(LEARN, STEPS)
    assert "seed" in widgets and "control_after_generate" not in widgets  # it would learn anew at every run
    page.evaluate("app.canvas.ds.scale = 0.6, app.canvas.ds.offset = [200, 100], app.canvas.setDirty(true, true)")
    learned = ran(1)
    assert learned["state"] == "done" and "learned in the page" in learned["profile"], learned["notes"]
    page.screenshot(path=tmp_path / "learned.png")
    value, options = page.evaluate(LOAD)
    assert value in options and value.startswith("learned in the page")
    page.evaluate("app.graph._nodes.find(node => node.type === 'KSampler').widgets[0].value += 1")
    loaded = ran(2)
    assert loaded["state"] == "done" and loaded["profile"] == learned["profile"], loaded["notes"]
    page.screenshot(path=tmp_path / "loaded.png")
