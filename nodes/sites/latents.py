"""What a rule stores where whole calls are skipped, and what stands in for it: of one latent, or of each of several
that the host has packed into one row (b 1 n: audio with video).

Packed ones lie on grids of their own and change at their own pace, and a short one does not count among the numbers of
a long one. So each is a unit: with its own history, bands, repair, and estimate, of which the worst decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...cache_core.track import Call, Track
from ...cache_core.types import WHOLE, Unit
from .common import latent_grid, restored, stored

Shapes = Sequence[Sequence[int]]
"""b c ... of each latent that is packed, or nothing."""


@dataclass(frozen=True, slots=True)
class Latents:
    """One call of x (b c ...) at sigma (b), of which a rule skips the whole; scaled: the model's input."""

    track: Track
    call: Call
    x: torch.Tensor
    sigma: torch.Tensor
    scaled: torch.Tensor
    shapes: Shapes = ()

    def forecast(self) -> torch.Tensor:
        """The denoised latent that stands in."""
        kind, track = self.track.rule.feature, self.track
        made = [
            restored(kind, x, track.predict(self.call, unit, latent_grid(x)), self.sigma, scaled)
            for unit, x, scaled in zip(self._units, self._apart(self.x), self._apart(self.scaled), strict=True)
        ]
        return self._together(made)

    def learned(self, computed: torch.Tensor) -> torch.Tensor:
        """Take a computed denoised latent into the histories; what the sampler is told, itself where nothing is paid
        back.
        """
        kind, told, repaired = self.track.rule.feature, [], False
        parts = zip(self._units, *(self._apart(each) for each in (self.x, computed, self.scaled)), strict=True)
        for unit, x, out, scaled in parts:
            tokens = stored(kind, x, out, self.sigma, scaled)
            repair = self.track.store(self.call, tokens, unit, latent_grid(x))
            told.append(out if repair is None else restored(kind, x, tokens + repair, self.sigma, scaled))
            repaired |= repair is not None
        return self._together(told) if repaired else computed

    @property
    def _packed(self) -> bool:
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        in_a_row = self.x.dim() == 3 and self.x.shape[1] == 1
        return self.track.rule.predictor.apart and len(sizes) > 1 and in_a_row and sum(sizes) == self.x.shape[-1]

    @property
    def _units(self) -> Sequence[Unit]:
        return range(len(self.shapes)) if self._packed else (WHOLE,)

    def _apart(self, x: torch.Tensor) -> list[torch.Tensor]:
        if not self._packed:
            return [x]
        rows = x.split([math.prod(shape[1:]) for shape in self.shapes], dim=-1)
        return [row.reshape(x.shape[0], *shape[1:]) for row, shape in zip(rows, self.shapes, strict=True)]

    def _together(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self._packed:
            return parts[0]
        return torch.cat([part.flatten(1)[:, None] for part in parts], dim=-1)
