"""What stands in for a skipped evaluation: functions of the computed history, with no state of their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .types import Feature, Predictor, Step


@dataclass(frozen=True, slots=True)
class Hold(Predictor):
    """The newest computed feature, unchanged (TeaCache, First-Block Cache, SpectralCache Algorithm 1 line 9)."""

    depth = 1
    ready = 1

    def predict(self, history: tuple[Feature, ...], now: Step) -> Tensor:
        return history[-1].value


def hold() -> Predictor:
    """Reuse the newest computed feature."""
    return Hold()
