"""Moving over: saved workflows with another pack's cache open with ours, where that pack is no longer installed.

The host offers the exchange on the page, and does it by itself for a prompt that comes through the API. Only the model
is taken over, and the rest is set: their thresholds count in other units, and the host fails where an old input that is
named here is missing. An older host, without node replacements, goes without.
"""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

NEW = "SpectralCacheAutoApply"
SETTINGS: dict[str, Any] = {"speedup": 2.0, "quality": "Balanced"}
"""Required inputs of the new node: about as fast as the old ones at what their pages recommend, and closer."""

OLD = (
    "TeaCache",  # ComfyUI-TeaCache
    "ApplyFBCacheOnModel",  # Comfy-WaveSpeed
    "ApplyTeaCachePatch",  # ComfyUI_Patches_ll
    "ApplyTeaCachePatchAdvanced",
    "ApplyFirstBlockCachePatch",
    "ApplyFirstBlockCachePatchAdvanced",
    "MagCache",  # ComfyUI-MagCache
    "CacheDiT_Model_Optimizer",  # ComfyUI-CacheDiT
    "WanCacheOptimizer",
    "TaylorSeer",  # ComfyUI-TaylorSeer
    "TaylorSeerLite",
    "SpectrumApplyFlux",  # Spectrum-Proper
    "Spectrum",  # ComfyUI-Spectrum; a plain word, but only a graph whose own node is missing gets the offer
)


async def register() -> None:
    """Once, when the pack is loaded. Whatever goes wrong costs the offer and nothing else."""
    try:
        from comfy_api.latest import ComfyAPI

        replacement = ComfyAPI().node_replacement
        for old in OLD:
            await replacement.register(
                io.NodeReplace(
                    new_node_id=NEW,
                    old_node_id=old,
                    input_mapping=[
                        {"new_id": "model", "old_id": "model"},
                        *({"new_id": name, "set_value": value} for name, value in SETTINGS.items()),
                    ],
                    output_mapping=[{"new_idx": 0, "old_idx": 0}],
                )
            )
    except Exception:
        logging.getLogger("SpectralCache").debug("No node replacements on this ComfyUI.", exc_info=True)
