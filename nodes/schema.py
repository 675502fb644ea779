"""What all our nodes share in their definitions."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

CATEGORY = "SpectralCache"
ALIASES = [
    "teacache",
    "first block cache",
    "fbcache",
    "wavespeed",
    "magcache",
    "easycache",
    "lazycache",
    "cachedit",
    "cache-dit",
    "cache",
    "speed up",
    "faster",
    "accelerate",
    "加速",
    "缓存",
    "高速化",
    "キャッシュ",
]
"""What people look for when they want any cache. A method that is wanted for itself, such as taylorseer, is found at
the node that offers it.
"""
PROFILE = "SPECTRALCACHE_PROFILE"
"""What Cache Calibrate learned of a model, as a type of ComfyUI's."""
ADVANCED = {"advanced": True}
"""For `extra_dict`, which hosts older than the `advanced` argument also take."""


def schema(**fields: Any) -> io.Schema:
    """An `io.Schema` with the fields this host knows; newer fields are dropped on older hosts."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in fields.items() if name in known})
