"""The noise that a sampler draws, which a forecast must not take for what the model has said.

A deterministic sampler goes from x_a to x_b along the derivative d = (x - D) / sigma. One that draws noise ends up
beside that path, and the derivative there holds the noise again, over sigma: as far as the model takes the noise out,
D stays and d moves with x:

    E = x_b - (x_a + (sigma_b - sigma_a)·d_a)        N_b = N_a + E / sigma_b

So a rule keeps d - share·N, which turns as slowly as in a run without noise, forecasts that, and adds share·N of the
evaluation at hand: noise that was drawn since the last computed one is in the forecast, noise that was drawn before is
not in its slope. The model takes out nine tenths of the noise early in a run and three later (small FLUX); what it
leaves in becomes detail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Drawn:
    """The latents of a run, from the evaluation on in which its sampler was first seen to draw noise. keep: makes what
    outlives an evaluation.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        self.keep = keep
        self.total: Tensor | None = None
        """N at the evaluation at hand, b c ...; None before there is any."""
        self._told: tuple[Tensor, Tensor, Tensor] | None = None

    def arrive(self, x: Tensor, sigma: Tensor) -> None:
        """The sampler shows this latent at a noise level (0-dim)."""
        if self._told is None or self._told[0].shape != x.shape:
            return
        before, denoised, level = self._told
        led_to = denoised + (before - denoised) * (sigma / level)
        beside = (x - led_to) / sigma
        self.total = self.keep(beside if self.total is None else self.total + beside)

    def leave(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
        """The sampler is told this, of what it has shown."""
        if self.total is None or self.total.shape == x.shape:
            self._told = self.keep(x), self.keep(denoised), self.keep(sigma)

    def within(self, x: Tensor) -> Tensor | None:
        """N for the rows of a call, which are this latent once or several times; None where there is none for them."""
        total = self.total
        if total is None or total.shape[1:] != x.shape[1:] or x.shape[0] % total.shape[0]:
            return None
        return torch.cat([total] * (x.shape[0] // total.shape[0]))

    def tensors(self) -> Iterator[Tensor]:
        yield from self._told or ()
        if self.total is not None:
            yield self.total

    def clear(self) -> None:
        self.total, self._told = None, None
