"""The pages of a real ComfyUI in a headless Chromium, driven by Playwright.

ComfyUI runs in a process of its own; this one only drives the browser and starts the server. Without a browser on the
machine these tests are skipped; where CI is set, as .ci/run does, that is an error. `dev.py test --frontend newest`
shows another frontend than the host's own. Playwright keeps an event loop running in this process: ask the server with
`server.queue` or from the page, not with `server.run`.

To load the page costs seconds, so one server serves all tests, and one page a renderer: between two tests it is tidied
up (`Window.tidy`), and after a failed one another is opened.
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
VIEWPORT = {"width": 1400, "height": 900}
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
"""The model is small: threads would only wait for each other, and for the browser."""
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.ColorPalette": "dark",
}
"""Those of a user of some time."""
READY = """Boolean(window.app?.graph && app.extensions?.length && app.extensionManager?.workflow?.activeWorkflow)
    && app.extensionManager.spinner === false"""
"""It restores the last workflow before it takes another, and shows a spinner meanwhile."""
IDLE = "fetch('/prompt').then(answer => answer.json()).then(answer => answer.exec_info.queue_remaining === 0)"
TIDY = """async kept => {
    const post = (address, body) => fetch(address, {method: "POST", body: JSON.stringify(body),
        headers: {"Content-Type": "application/json"}});
    await post("/queue", {clear: true});
    await post("/interrupt", {});
    await post("/history", {clear: true});
    await post("/free", {free_memory: true}); // what the host has computed already it would not compute again
    const {setting, workflow} = app.extensionManager;
    for (const [name, value] of Object.entries(kept)) if (setting.get(name) !== value) await setting.set(name, value);
    const others = [...workflow.openWorkflows];
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], version: 0.4});
    for (const other of others) await workflow.closeWorkflow(other);
    localStorage.removeItem("spectralcache");
}"""
DRAWN = """kind => {
    const node = app.graph._nodes.find(node => node.type === kind);
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    if (element) return element.querySelectorAll("[data-testid=node-widget]").length - 1;
    return LiteGraph.vueNodesMode ? -1 : node.widgets.filter(widget => !widget.hidden).length - 1;
}"""
OPEN = "[...document.querySelectorAll('[role=dialog], .p-dialog')].some(found => found.checkVisibility())"


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


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ComfyUI with the pack and the small models."""
    if not os.environ.get("COMFYUI_PATH"):
        absent("COMFYUI_PATH is not set: run the tests with `python dev.py test`")
    from bench.host.server import Server, base_directory

    base = base_directory(tmp_path_factory.mktemp("comfyui"))
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), "utf-8")
    frontend = os.environ.get("SPECTRALCACHE_FRONTEND")
    arguments = ("--front-end-root", frontend) if frontend else ()
    environment = {**os.environ, **ONE_THREAD}
    with Server(base, arguments=arguments, environment=environment, ready_within=10 * PATIENCE) as running:
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


class Window:
    """A page that draws nodes in one way, in a browser profile of its own, for test after test."""

    def __init__(self, browser: Any, server: Any, renderer: str) -> None:
        self.browser = browser
        self.server = server
        self.settings = {**SETTINGS, "Comfy.VueNodes.Enabled": renderer == "vue"}
        self.context: Any = None
        self.page: Any = None
        self.complaints: list[str] = []

    def show(self, language: str) -> Any:
        """Playwright's page, loaded, in this language and without a workflow."""
        if self.context is None:
            self.server.set(self.settings)
            self.context = self.browser.new_context(viewport=VIEWPORT, reduced_motion="reduce")
            self.page = self.context.new_page()
            self.page.set_default_timeout(PATIENCE * 1000)
            self.complaints = watched(self.page)
            self.page.goto(self.server.url)
            self.settle()
        if self.page.evaluate("app.extensionManager.setting.get('Comfy.Locale')") != language:
            self.page.evaluate("name => app.extensionManager.setting.set('Comfy.Locale', name)", language)
            self.reload()
        return self.page

    def reload(self) -> None:
        self.page.reload()
        self.settle()

    def settle(self) -> None:
        """Waits for the page twice, since it seems ready for a moment before it restores what was open."""
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(500)
        self.page.wait_for_function(READY)

    def tidy(self) -> None:
        """Nothing of the last test is left: no run, no result, no workflow, no dialog, no setting but the language."""
        self.page.mouse.move(700, 450)  # over nothing that opens by itself
        self.page.keyboard.press("Escape")
        kept = {name: value for name, value in self.settings.items() if name != "Comfy.Locale"}
        self.page.evaluate(TIDY, kept)
        self.page.wait_for_function(IDLE)
        if self.page.evaluate(OPEN):
            self.close()

    def close(self) -> None:
        if self.context is not None:
            self.context.close()
        self.context = None


@pytest.fixture(scope="session", params=["canvas", "vue"])
def window(request: pytest.FixtureRequest, browser: Any, server: Any) -> Iterator[Window]:
    """The page whose frontend draws nodes on the canvas or as elements ("Nodes 2.0")."""
    opened = Window(browser, server, request.param)
    yield opened
    opened.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, window: Window, tmp_path: Path) -> Iterator[Any]:
    """Playwright's page; in the language that the test's parameter `language` says."""
    shown = window.show(request.node.callspec.params.get("language", "en"))
    window.complaints.clear()
    failed = request.session.testsfailed
    yield shown
    if request.session.testsfailed > failed:
        shown.screenshot(path=tmp_path / "failed.png")
        window.close()
    else:
        window.tidy()
    assert not window.complaints, "the page's console complains of ours"


@pytest.fixture
def reload(window: Window, page: Any) -> Callable[[], None]:
    """Loads the page again, as a user does."""
    return window.reload


@pytest.fixture
def drawn(page: Any) -> Callable[[str], int]:
    """How many inputs with a field of their own the page draws on the first node of a type, the strip left out."""
    return lambda kind: page.evaluate(DRAWN, kind)


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
