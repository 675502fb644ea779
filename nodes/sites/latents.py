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
from .common import as_tokens, latent_grid, restored, stored

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
        made, parts = [], zip(self._units, *map(self._apart, (self.x, self.scaled, self._drawn())), strict=True)
        for unit, x, scaled, drawn in parts:
            tokens = track.predict(self.call, unit, latent_grid(x))
            tokens = tokens if drawn is None else tokens + as_tokens(drawn)
            made.append(restored(kind, x, tokens, self.sigma, scaled))
        return self._together(made)

    def learned(self, computed: torch.Tensor) -> torch.Tensor:
        """Take a computed denoised latent into the histories; what the sampler is told, itself where nothing is paid
        back.
        """
        kind, told, repaired = self.track.rule.feature, [], False
        whole = self.x, computed, self.scaled, self._drawn()
        for unit, x, out, scaled, drawn in zip(self._units, *map(self._apart, whole), strict=True):
            tokens = stored(kind, x, out, self.sigma, scaled)
            kept = tokens if drawn is None else tokens - as_tokens(drawn)
            repair = self.track.store(self.call, kept, unit, latent_grid(x))
            told.append(out if repair is None else restored(kind, x, tokens + repair, self.sigma, scaled))
            repaired |= repair is not None
        return self._together(told) if repaired else computed

    def _drawn(self) -> torch.Tensor | None:
        """What of the derivative is noise that the sampler drew, b c ..., as far as the rule keeps it apart."""
        share = self.track.rule.drawn
        noise = self.track.session.drawn.within(self.x) if share else None
        return None if noise is None else share * noise

    @property
    def _packed(self) -> bool:
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        in_a_row = self.x.dim() == 3 and self.x.shape[1] == 1
        return self.track.rule.predictor.apart and len(sizes) > 1 and in_a_row and sum(sizes) == self.x.shape[-1]

    @property
    def _units(self) -> Sequence[Unit]:
        return range(len(self.shapes)) if self._packed else (WHOLE,)

    def _apart(self, x: torch.Tensor | None) -> list[torch.Tensor | None]:
        if x is None or not self._packed:
            return [x] * len(self._units)
        rows = x.split([math.prod(shape[1:]) for shape in self.shapes], dim=-1)
        return [row.reshape(x.shape[0], *shape[1:]) for row, shape in zip(rows, self.shapes, strict=True)]

    def _together(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self._packed:
            return parts[0]
        return torch.cat([part.flatten(1)[:, None] for part in parts], dim=-1)
