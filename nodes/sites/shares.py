"""What each module of a described model is of the whole work, counted in multiplications of its linear layers and of
attention; what runs once a call (modulation, embeddings) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...cache_core.types import ATTENTION, CROSS, JOINT, MLP, Architecture, Fused, Part, Slot, Split, Unit

KEYS_AND_VALUES = 2
"""Layers that each token of the stream looked at goes through."""


def lengths(image: int, text: int) -> Mapping[str, int]:
    """Tokens of each stream."""
    return {"img": image, "txt": text, JOINT: image + text, CROSS: image}


def shares(
    architecture: Architecture, model: Any, slots: tuple[Slot, ...], kind: str, image: int, text: int
) -> Mapping[Unit, float]:
    """The share of every unit (layer, stream) of one kind in all attention and MLP modules, at these token counts."""
    work: dict[tuple[str, Unit], float] = {}
    for each in (ATTENTION.kind, MLP.kind):
        for layer, slot in enumerate(slots):
            for part in architecture.parts(model, slot, each):
                for stream, amount in _work(part, each, image, text):
                    work[each, (layer, stream)] = amount
    total = sum(work.values())
    return {unit: amount / total for (each, unit), amount in work.items() if each == kind}


def _work(part: Part, kind: str, image: int, text: int) -> Iterator[tuple[str, float]]:
    """Multiplications of one module, by stream."""
    tokens = lengths(image, text)
    if isinstance(part, Fused):
        rows, size, width = 3 * part.width, part.enter.in_features, part.width
        hidden = part.leave.in_features - width
        attention = kind == ATTENTION.kind
        linear = rows * size + width * size if attention else (part.enter.out_features - rows) * size + hidden * size
        yield JOINT, tokens[JOINT] * linear + (2 * tokens[JOINT] ** 2 * width if attention else 0)
        return
    for index, stream in enumerate(part.streams):
        if isinstance(part, Split):
            own, keyed, looked_at = _linear(part.enters[index]) + _linear(part.leaves[index]), 0.0, tokens[JOINT]
        else:
            keyed, looked_at = sum(map(_linear, part.keyed)), tokens[part.over]
            own = (_linear(part.module) - keyed) / len(part.streams)
            keyed /= max(len(part.keyed) // KEYS_AND_VALUES, 1)
        yield stream, tokens[stream] * own + looked_at * (keyed + 2 * tokens[stream] * part.width)


def _linear(module: Any) -> float:
    """Weights of the linear layers in a module."""
    return sum(each.in_features * each.out_features for each in module.modules() if isinstance(each, torch.nn.Linear))
