"""The last K computed features of one lane, with their coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .types import Feature, Step

SIGMA_TOLERANCE = 1e-4
"""Two noise levels closer than this (relative) are the same: sigmas pass through the samplers in float32."""


@dataclass(frozen=True, slots=True)
class History:
    """Immutable: `push` returns the next one. Sigmas fall strictly from the oldest entry to the newest."""

    depth: int
    entries: tuple[Feature, ...] = ()

    def push(self, step: Step, value: Tensor) -> History:
        """Add a computed feature. One at the newest entry's sigma replaces it (heun computes a sigma twice)."""
        kept = self.entries
        if kept and step.sigma >= kept[-1].sigma * (1 - SIGMA_TOLERANCE):
            kept = kept[:-1]
        return replace(self, entries=(*kept, Feature(step.position, step.sigma, value))[-self.depth :])

    def __len__(self) -> int:
        return len(self.entries)
