"""The pages of a real ComfyUI in a headless browser. Without a browser on the machine these tests are skipped.

ComfyUI runs in a process of its own; this one only drives the browser (`chromium`) and starts the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(area, what): what this test shows")


@pytest.fixture(scope="session")
def browser() -> str:
    pytest.importorskip("aiohttp")
    import chromium

    found = chromium.find()
    if found is None:
        pytest.skip(f"no browser is installed here ({', '.join(chromium.NAMES)})")
    return found


@pytest.fixture(scope="session", params=["canvas", "vue"])
def server(request: pytest.FixtureRequest, browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ComfyUI whose frontend draws nodes on the canvas or as elements ("Nodes 2.0"), for a user of some time."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set: run the tests with `python dev.py test`")
    from bench.host.server import Server, base_directory

    base = base_directory(tmp_path_factory.mktemp("comfyui"))
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": request.param == "vue"}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), "utf-8")
    with Server(base) as running:
        yield running
