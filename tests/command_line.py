"""What the tests of dev.py share."""

from __future__ import annotations

import pytest

from bench.host import setup as setup_host


def seal(tmp_path, monkeypatch):
    """No test sees this machine's settings or cache, or gets as far as the network."""
    for name in ("COMFYUI_CARRIED", "COMFYUI_PATH", "COMFYUI_PYTHON", "SPECTRALCACHE_COMFYUI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(setup_host, "run_pip", lambda *_: pytest.fail("pip was started"))


def refusal(error):
    """The message of a refusal, which is one sentence."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message
