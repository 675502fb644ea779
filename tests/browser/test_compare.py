"""Cache Compare in the real page: run, move the edge, look at the heat map."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = Path(__file__).parents[1] / "packs" / "stand_in" / "workflows" / "try Cache Compare.json"
VIEW = "app.canvas.ds.scale = 0.75, app.canvas.ds.offset = [-1150, 150], app.canvas.setDirty(true, true)"


@pytest.mark.claim("Cache Compare", "in the real page: the edge follows the mouse and the keys, the heat map opens")
def test_the_slider(page: Any, until: Callable[..., Any], tmp_path: Path) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", json.loads(WORKFLOW.read_text("utf-8")))
    page.evaluate(VIEW)
    slider = page.locator(".spectralcache-compare")
    assert slider.locator(".spectralcache-empty").inner_text() == "Run the graph to compare the two pictures."
    page.screenshot(path=tmp_path / "empty.png")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route(re.compile(r"/view\?"), hold)
    page.evaluate("void app.queuePrompt(0)")
    report = slider.locator(".spectralcache-report")
    until("the figures", lambda: "PSNR" in report.inner_text() or "exactly the same" in report.inner_text())
    frame, view = slider.locator(".spectralcache-frame"), slider.locator(".spectralcache-view")
    until("the requests for them", lambda: page.evaluate("true") and len(held) >= 3)
    assert not frame.is_visible(), "no frame of the wrong shape before the pictures are there"
    for route in held:
        route.continue_()
    page.unroute_all()
    until("the pictures", frame.is_visible)
    box = frame.bounding_box()
    assert abs(box["width"] - box["height"]) < 2, "in their own proportions"
    for share in (0.25, 0.75):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert abs(int(view.get_attribute("aria-valuenow")) - 100 * share) <= 1
        assert f"{100 - 100 * share:.0f}" in slider.locator("img[alt=full]").evaluate("image => image.style.clipPath")
    page.screenshot(path=tmp_path / "edge.png")
    view.focus()
    page.keyboard.press("Home")
    assert view.get_attribute("aria-valuenow") == "0"
    page.keyboard.press("ArrowRight")
    assert view.get_attribute("aria-valuenow") == "2"
    heat = slider.locator("img[alt='heat map']")
    assert not heat.is_visible()
    slider.get_by_text("heat map", exact=True).click()
    assert heat.is_visible() and not slider.locator(".spectralcache-edge").is_visible()
    assert heat.evaluate("image => image.naturalWidth") == 192
    page.screenshot(path=tmp_path / "heat map.png")
