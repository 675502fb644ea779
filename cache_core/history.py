"""The last K computed features of one lane, with their coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .types import Feature

SIGMA_TOLERANCE = 1e-4
"""Two noise levels closer than this (relative) are the same: sigmas pass through the samplers in float32."""


@dataclass(frozen=True, slots=True)
class History:
    """Immutable: `push` returns the next one. Sigmas fall strictly from the oldest entry to the newest."""

    depth: int
    entries: tuple[Feature, ...] = ()

    def before(self, sigma: float) -> tuple[Feature, ...]:
        """The entries that one at this sigma would follow. The newest goes if it lies there too (heun computes a sigma
        twice).
        """
        same = self.entries and sigma >= self.entries[-1].sigma * (1 - SIGMA_TOLERANCE)
        return self.entries[:-1] if same else self.entries

    def push(self, feature: Feature) -> History:
        """Add a computed feature; only the newest keeps what was learned with it."""
        earlier = tuple(replace(entry, learned={}) if entry.learned else entry for entry in self.before(feature.sigma))
        return replace(self, entries=(*earlier, feature)[-self.depth :])

    def __len__(self) -> int:
        return len(self.entries)
