"""What a run does between our evaluations, measured: whether the sampler moves as it is told, whether the model answers
anew each time.

From a latent x0, told D0 at sigma0, every deterministic sampler goes first to

    x0 + (sigma1 - sigma0) · d0,    d0 = (x0 - D0) / sigma0

or to another place along d0 (a first step, or a first stage, has nothing else to go by). What is left beside d0 is
noise of the sampler's own if it is white: neighbouring elements differ by twice their variance. Later moves follow what
was told before, too, which can be as rough on a small picture; they count only where the sampler is said to add noise,
since some begin late. A sampler that makes its noise anew throws the latent away: it goes all of sigma0 along d0, and
does so in its second move too (LCM; from pure noise others do it once).

A model that gives the same D, or the same d, for two different inputs to the last bits has not been run: some other
cache stands in for it. The figures go into the evaluation's one read; nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .types import Figures

STRAYED, ROUGH, GONE, REPEATED = "strayed", "rough", "gone", "repeated"
NOISE, WHITE = 1e-2, 1.4
"""The least share of a move that counts as not told, and the least roughness that counts as noise."""
SAME, APART = 1e-5, 1e-3
"""Two answers closer than this (relative) are one; noise levels must differ by so much to tell."""


class Motion:
    """Latents and answers of a run. `keep` makes what outlives an evaluation; `moves`: whether latents can be compared
    (not where something else is mixed into them, as under a mask); suspect: whether the sampler is said to add noise;
    once: whether the first move is enough.
    """

    def __init__(
        self, keep: Callable[[Tensor], Tensor], moves: bool, prefix: str = "", suspect: bool = False, once: bool = False
    ) -> None:
        self.keep, self.moves, self.prefix, self.suspect, self.once = keep, moves, prefix, suspect, once
        self.measured, self.stochastic, self.gone, self.repeats = False, False, 0.0, False
        self._seen = 0
        self._went: list[float] = []
        self._told: tuple[Tensor, Tensor, Tensor] | None = None
        self._answer: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._figures: Figures = {}

    def arrive(self, x: Tensor, sigma: Tensor) -> None:
        """The sampler shows this latent, which is compared with where it was told to go."""
        told_last, self._told, self._seen = self._told, None, self._seen + 1
        if told_last is None or x.shape != told_last[0].shape:
            return
        before, told, level = told_last
        slope, move = (before - told).float() / level, (x - before).float()
        power, reach = slope.square().sum(), (move * slope).sum()
        beside = move - slope * (reach / power)
        left = beside.square()
        self._figures[STRAYED] = self.keep(left.sum() / move.square().sum())
        self._figures[ROUGH] = self.keep((beside[..., 1:] - beside[..., :-1]).square().mean() / left.mean())
        if len(self._went) < self._enough:
            self._figures[GONE] = self.keep(-reach / (power * level))

    def leave(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
        """The sampler is told this."""
        thrown = self.stochastic and len(self._went) < self._enough
        if self.moves and (self._seen == 1 or thrown or (self.suspect and not self.stochastic)):
            self._told = (self.keep(x), self.keep(denoised), self.keep(sigma))

    def computed(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
        """A computed answer, compared with the computed one before it."""
        prints = torch.stack([denoised.float().sum(), denoised.float().square().sum()])
        slope = (x - denoised) / sigma
        before = self._answer
        self._answer = (self.keep(slope), self.keep(prints), self.keep(x.float().sum()), self.keep(sigma))
        if before is None or before[0].shape != slope.shape:
            return
        moved = ((sigma - before[3]).abs() > APART * sigma) & (x.float().sum() != before[2])
        close = (slope - before[0]).abs().max() <= SAME * slope.abs().max()
        same = (close | (prints == before[1]).all()) & moved & (slope.abs().max() > 0)
        self._figures[REPEATED] = self.keep(same.float())

    @property
    def _enough(self) -> int:
        """Moves that tell whether latents are thrown away."""
        return 1 if self.once else 2

    def look_away(self) -> None:
        """Latents cannot be compared after all."""
        self.moves, self._told = False, None

    def figures(self) -> Figures:
        """What waits to be read."""
        return {self.prefix + name: figure for name, figure in self._figures.items()}

    def read(self, reading: dict[str, float]) -> None:
        """Take our own figures out of a reading."""
        moved, reaching = self.prefix + STRAYED in reading, self.prefix + GONE in reading
        strayed, rough, gone = (reading.pop(self.prefix + name, 0.0) for name in (STRAYED, ROUGH, GONE))
        noisy = strayed > NOISE and rough > WHITE
        if moved and (self.suspect or not self.measured):
            self.stochastic |= noisy
        self.measured |= moved
        if reaching:
            self._went.append(gone if noisy else 0.0)
            self.gone = min(self._went) if len(self._went) == self._enough else 0.0
        self.repeats |= reading.pop(self.prefix + REPEATED, 0.0) > 0
        self._figures = {}

    def tensors(self) -> Iterator[Tensor]:
        yield from self._told or ()
        yield from self._answer or ()

    def clear(self) -> None:
        self._told, self._answer, self._figures = None, None, {}
