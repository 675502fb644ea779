"""The last K computed features of one lane and unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .storage import SCALE
from .types import SIGMA_TOLERANCE, Feature


@dataclass(frozen=True, slots=True)
class History:
    """Immutable: `push` returns the next one. Sigmas fall strictly from the oldest entry to the newest."""

    depth: int
    entries: tuple[Feature, ...] = ()

    def before(self, sigma: float) -> tuple[Feature, ...]:
        """The entries that one at this sigma would follow. The newest goes if it lies there too (heun computes a sigma
        twice).
        """
        same = self.entries and sigma >= self.entries[-1].at.sigma * (1 - SIGMA_TOLERANCE)
        return self.entries[:-1] if same else self.entries

    def push(self, feature: Feature) -> History:
        """Add a computed feature; only the newest keeps what was learned with it, but for what it takes to read one."""
        before = self.before(feature.at.sigma)
        earlier = tuple(
            replace(entry, learned={name: tensor for name, tensor in entry.learned.items() if name == SCALE})
            if entry.learned
            else entry
            for entry in before
        )
        return replace(self, entries=(*earlier, feature)[-self.depth :])

    def __len__(self) -> int:
        return len(self.entries)
