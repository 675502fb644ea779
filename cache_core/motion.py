"""What a run does between our evaluations, measured: whether the sampler moves as it is told, whether the model answers
anew each time.

A deterministic sampler goes from one latent to the next along what it has been told: x_(k+1) is a combination of the
latents x_j that it has shown and the answers D_j that it was given, of the newest REACH evaluations (multistep methods
of any order up to that, stages of a step, exponential integrators). What is left beside all of them is noise of the
sampler's own if it is white: neighbouring elements differ by twice their variance.

    x_(k+1) - x_k  ~  span { x_k - D_k,  x_k,  x_(j+1) - x_j,  D_(j+1) - D_j  |  j < k }        least squares

A sampler that makes its noise anew throws the latent away: no share of the x_j is in x_(k+1), move after move (LCM;
from pure noise others do it in their first step, which may have three stages). One that follows what it is told keeps
sigma_(k+1) / sigma_k of it.

A sample of the latent is enough. Its inner products go into an evaluation's one read and the small system is solved on
the host; nothing waits for them.

A model that gives the same D, or the same d, for two different inputs to the last bits has not been run: some other
cache stands in for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .types import Figures

PRODUCTS, REPEATED = "products", "repeated"
REACH, LOOKED_AT, LONGEST = 4, 4096, 1024
"""Evaluations whose latents and answers may be in a move; elements that are compared, and of one line at most."""
MOVES = 4
"""Moves that tell whether latents are thrown away."""
AT_ONCE = MOVES + 1
"""Up to this evaluation a sampler that may throw its latents away is compared with where it was told to go as soon as
it shows itself; else when the next evaluation is computed, so that a skip has nothing to do but keep what it was.
"""
NOISE, WHITE = 1e-2, 1.4
"""The least share of a move that counts as not told, and the least roughness that counts as noise."""
SAME, APART = 1e-5, 1e-3
"""Two answers closer than this (relative) are one; noise levels must differ by so much to tell."""
HIGHER = 1.5
"""A level that is so many times the one before it is another pass over the schedule; churn rises by less."""
RANK = 1e-6
"""Directions of the span that are shorter (relative, squared) are rounding."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the sampler has shown and was told then, of the elements that are compared: l w."""

    x: Tensor
    denoised: Tensor
    sigma: Tensor


class Motion:
    """Latents and answers of a run. `keep` makes what outlives an evaluation; `moves`: whether latents can be compared
    (not where something else is mixed into them, as under a mask); once: whether the first move is enough.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor], moves: bool, prefix: str = "", once: bool = False) -> None:
        self.keep, self.moves, self.prefix, self.once = keep, moves, prefix, once
        self.stochastic, self.gone, self.repeats = False, 0.0, False
        self._seen = 0
        self._went: list[float] = []
        self._told: deque[Told] = deque(maxlen=REACH)
        self._shown: tuple[Tensor, Tensor] | None = None
        self._answer: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._figures: Figures = {}

    @property
    def _watching(self) -> bool:
        """Whether there is something left to learn of the moves."""
        if self.once or self.stochastic:
            return self.moves and len(self._went) < self._enough
        return self.moves

    def arrive(self, x: Tensor, sigma: Tensor) -> None:
        """The sampler shows this latent, which is compared with where it was told to go."""
        self._shown, self._seen = None, self._seen + 1
        if not self._watching:
            self._told.clear()
            return
        self._shown = self.keep(_sample(x)), self.keep(sigma)
        if self._told and self._told[-1].x.shape != self._shown[0].shape:
            self._told.clear()
        if self._at_once:
            self._compare()

    def leave(self, denoised: Tensor, computed: bool = True) -> None:
        """The sampler is told this, of what it has shown."""
        if self._shown is None:
            return
        if computed and PRODUCTS not in self._figures:
            self._compare()
        shown, sigma = self._shown
        self._told.append(Told(shown, self.keep(_sample(denoised)), sigma))

    @property
    def _at_once(self) -> bool:
        """Whether the newest move cannot wait: nothing is known yet, or latents may be thrown away."""
        return self._seen <= AT_ONCE and (not self._went or min(self._went) > 0)

    def interrupt(self) -> None:
        """The sampler has looked at something else in between, so that the next move is not from here."""
        self._told.clear()
        self._shown = None

    def _compare(self) -> None:
        """Inner products of the newest move with all that it may follow, and of their differences along a line."""
        if not self._told or self._shown is None:
            return
        (x, sigma), before = self._shown, tuple(self._told)
        shown = torch.stack([*(told.x for told in before), x]).float()
        answers = torch.stack([told.denoised for told in before]).float()
        moves, turns = shown[1:] - shown[:-1], answers[1:] - answers[:-1]
        newest = shown[-2]
        vectors = torch.cat([moves[-1:], (newest - answers[-1])[None], newest[None], moves[:-1], turns])  # v l w
        along = vectors[..., 1:] - vectors[..., :-1]
        products = [(each[:, None] * each[None]).sum((-2, -1)).flatten() for each in (vectors, along)]
        levels = torch.stack([before[-1].sigma, sigma]).to(products[0])
        self._figures[PRODUCTS] = self.keep(torch.cat([*products, levels]))

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
        return 1 if self.once else MOVES

    def doubtful(self, most: float) -> bool:
        """Whether more than this was gone in every move until now, and too few have been seen."""
        return 0 < len(self._went) < self._enough and min(self._went) > most

    def look_away(self) -> None:
        """Latents cannot be compared after all."""
        self.moves = False
        self.interrupt()

    def figures(self) -> Figures:
        """What waits to be read: each of any length."""
        return {self.prefix + name: figure for name, figure in self._figures.items()}

    def read(self, reading: Mapping[str, Sequence[float]]) -> None:
        """Take our own figures out of a reading."""
        products = reading.get(self.prefix + PRODUCTS)
        if products is not None and self.moves:
            self._judge(products)
        self.repeats |= any(reading.get(self.prefix + REPEATED, ()))
        self._figures = {name: figure for name, figure in self._figures.items() if self.prefix + name not in reading}

    def _judge(self, figures: Sequence[float]) -> None:
        """One move: what is left beside all that was told, how rough that is, and how much of the latent is gone."""
        *products, before, now = figures
        if now > before * HIGHER:
            return
        count = math.isqrt(len(products) // 2)
        plain, rough = np.array(products, dtype=np.float64).reshape(2, count, count)
        scale = np.sqrt(plain.diagonal()).clip(min=np.finfo(np.float32).tiny)
        if not np.isfinite(scale).all():
            return
        span = plain[1:, 1:] / (scale[1:, None] * scale[None, 1:])
        follow = np.linalg.pinv(span, rcond=RANK, hermitian=True) @ (plain[1:, 0] / scale[1:]) / scale[1:]
        beside = np.concatenate([[1.0], -follow])
        left, differences = (float(beside @ each @ beside) for each in (plain, rough))
        noisy = left > NOISE * float(plain[0, 0]) > 0 and differences > WHITE * left
        self.stochastic |= noisy
        if len(self._went) < self._enough:
            kept = 1 + float(follow[0] + follow[1])
            self._went.append(1 - kept * before / max(now, LEAST) if noisy else 0.0)
            self.gone = min(self._went) if len(self._went) == self._enough else 0.0

    def tensors(self) -> Iterator[Tensor]:
        for told in self._told:
            yield from (told.x, told.denoised, told.sigma)
        yield from self._shown or ()
        yield from self._answer or ()

    def clear(self) -> None:
        self.interrupt()
        self._answer, self._figures = None, {}


LEAST = 1e-6
"""The least noise level that is divided by."""


def _sample(x: Tensor) -> Tensor:
    """Some lines of a latent, as they are: l w."""
    lines = x.reshape(-1, x.shape[-1])[:, :LONGEST]
    return lines[:: max(1, lines.numel() // LOOKED_AT)]
