"""How a computed feature is held until it is used: on its device, in main memory, or in eight bits.

fp8: E4M3 with one scale a token, max|F| / 448; about 3 % of error per value, half or a quarter of the memory.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .types import Feature, Store

SCALE = "fp8 scale"
"""The name under which an entry keeps its scales beside what was learned with it."""
LARGEST = 448.0
"""Of E4M3."""


def packed(feature: Feature, store: Store) -> Feature:
    """The feature as it is held: b t d."""
    value = feature.value
    if store == "ram":
        return replace(feature, value=value.to("cpu"))
    if store == "fp8" and value.is_floating_point():
        scale = value.abs().amax(dim=-1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        eight = (value.float() / scale).to(torch.float8_e4m3fn)
        return replace(feature, value=eight, learned={**feature.learned, SCALE: scale})
    return feature


def unpacked(feature: Feature, store: Store, dtype: torch.dtype, device: torch.device) -> Feature:
    """The feature as it was, to rounding."""
    if store == "ram":
        return replace(feature, value=feature.value.to(device))
    if store == "fp8" and SCALE in feature.learned:
        return replace(feature, value=(feature.value.float() * feature.learned[SCALE]).to(dtype))
    return feature


def bytes_of(store: Store, dtype: torch.dtype, width: int) -> float:
    """Bytes a channel of a token takes on the device."""
    return {"device": float(dtype.itemsize), "ram": 0.0, "fp8": 1.0 + 4.0 / width}[store]
