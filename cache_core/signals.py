"""What changed since an earlier evaluation: small scalars, computed on the device and not read here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .types import CacheError, Figures, Past, Probe, Signal


def _band_sums(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Sum of absolute values over the first `width` channels and over the others: b n d -> two float32 scalars."""
    return (
        values[..., :width].abs().sum(dtype=torch.float32),
        values[..., width:].abs().sum(dtype=torch.float32),
    )


def _ratio(change: Tensor, before: Tensor) -> Tensor:
    """change / before, with 0 / 0 = 0 (a band without channels); NaN stays NaN, so that it computes."""
    return torch.where(change == 0, change, change / before)


@dataclass(frozen=True, slots=True)
class ModulatedL1(Signal):
    """Relative L1 change of the first block's modulated input, as a whole and in two channel bands.

    d = ||M_t - M_{t-1}||_1 / ||M_{t-1}||_1 over all image tokens (TeaCache 2411.19108; SpectralCache 2603.05315 sec.
    4.5, Algorithm 1 line 2), reference tokens included, since Kontext's polynomial was fitted so; low, high: the same
    over the first floor(r·D) channels and over the others of the target's tokens (sec. 4.4). Sums run over the rows and
    tokens of one lane. `split` is r, in (0, 1). Figures: "d", "low", "high".
    """

    split: float = 0.5
    needs = frozenset({"modulated"})
    reference = "previous"

    def look(self, probe: Probe) -> Past:
        modulated = probe.modulated
        if modulated is None:
            raise CacheError("ModulatedL1 needs the modulated input; the architecture file did not provide it")
        target = modulated if probe.targets is None else modulated[:, : probe.targets]
        low, high = _band_sums(target, self._width(target))
        past = {"target": target, "low": low, "high": high}
        if probe.targets is not None and probe.targets < modulated.shape[1]:
            references = modulated[:, probe.targets :]
            past |= {"references": references, "rest": references.abs().sum(dtype=torch.float32)}
        return past

    def score(self, now: Past, before: Past) -> Figures:
        change = now["target"].float() - before["target"].float()
        low, high = _band_sums(change, self._width(change))
        whole, whole_before = low + high, before["low"] + before["high"]
        if "references" in before:
            whole = whole + (now["references"].float() - before["references"].float()).abs().sum()
            whole_before = whole_before + before["rest"]
        return {
            "d": _ratio(whole, whole_before),
            "low": _ratio(low, before["low"]),
            "high": _ratio(high, before["high"]),
        }

    def _width(self, values: Tensor) -> int:
        """Channels in the low band: floor(r·D), at least one and not all (none where there is only one channel)."""
        return min(max(int(values.shape[-1] * self.split), 1), values.shape[-1] - 1)
