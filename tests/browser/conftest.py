"""The pages of a real ComfyUI in a headless Chromium, driven by Playwright.

ComfyUI runs in a process of its own; this one only drives the browser and starts the server. Without a browser on the
machine these tests are skipped; where CI is set, as .ci/run does, that is an error. `dev.py test --frontend newest`
shows another frontend than the host's own. Playwright keeps an event loop running in this process: ask the server with
`server.queue` or from the page, not with `server.run`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server")
PATIENCE = 180
"""Seconds: only a machine that is much too busy needs them."""
READY = "Boolean(window.app?.graph && app.extensionManager?.setting && app.extensions?.length)"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(area, what): what this test shows")


def absent(what: str) -> Any:
    """Skips the test and says why; in CI nothing is skipped."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's browser: this machine's Chromium."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        absent(f"no browser is installed here ({', '.join(BROWSERS)}); on Debian: apt install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("Playwright is not installed: run the tests with `python dev.py test`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session", params=["canvas", "vue"])
def server(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ComfyUI whose frontend draws nodes on the canvas or as elements ("Nodes 2.0"), for a user of some time."""
    if not os.environ.get("COMFYUI_PATH"):
        absent("COMFYUI_PATH is not set: run the tests with `python dev.py test`")
    from bench.host.server import Server, base_directory

    base = base_directory(tmp_path_factory.mktemp("comfyui"))
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": request.param == "vue"}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), "utf-8")
    frontend = os.environ.get("SPECTRALCACHE_FRONTEND")
    arguments = ("--front-end-root", frontend) if frontend else ()
    with Server(base, arguments=arguments, ready_within=10 * PATIENCE) as running:
        yield running


def watched(page: Any) -> list[str]:
    """What the page's console complains of, as far as it is ours; the frontend asks hosts out of reach by itself."""
    complaints: list[str] = []

    def note(kind: str, text: str, address: str) -> None:
        ours = "spectralcache" in f"{text} {address}".lower() and "Content Security Policy" not in text
        # the frontend asks for the page of its language first, and for <NodeId>.md, which is the English one, next
        ours &= not address.endswith("/en.md")
        if kind in ("error", "warning") and ours:
            complaints.append(f"{kind}: {text[:300]} ({address})")

    page.on("console", lambda message: note(message.type, message.text, message.location.get("url", "")))
    page.on("pageerror", lambda error: note("error", f"{error} {error.stack}", ""))
    return complaints


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    """Playwright's page with the server's frontend, loaded, and no workflow that it still restores."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        shown = context.new_page()
        complaints = watched(shown)
        shown.set_default_timeout(PATIENCE * 1000)
        shown.goto(server.url)
        shown.wait_for_function(READY)
        shown.wait_for_timeout(2000)  # it restores the last workflow before it takes another
        yield shown
    assert not complaints, "the page's console complains of ours"


@pytest.fixture(scope="session")
def until() -> Callable[[str, Callable[[], Any]], Any]:
    """Waits for the first answer that is not empty: `until("what is awaited", look)`."""

    def wait(what: str, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"not seen within {PATIENCE} seconds: {what}")

    return wait
