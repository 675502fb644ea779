"""What a step is trained on: painted captions as latents, with noise. Everything comes from the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.train import flow
from bench.train.captions import draw
from bench.train.conditioning import conditioning
from bench.train.latents import Space
from bench.train.pictures import Painter

FULL_SIDE = 192
# Height and width in sixths of a side: about as many tokens as the square.
ASPECTS = ((6, 6), (6, 6), (6, 6), (5, 7), (7, 5), (8, 4), (4, 8))


@dataclass(frozen=True, slots=True)
class Stage:
    """Until which step: pictures of which side, how many in a batch, of the first so many names."""

    until: int
    side: int
    batch: int
    names: int

    @property
    def spread(self) -> float:
        """Small pictures are laid over the positions of full ones, so that places keep their meaning."""
        return FULL_SIDE / self.side


@dataclass(frozen=True, slots=True)
class Batch:
    """x, noise: b c h w; t: b; the captions' conditioning, b m d and b d, some of it dropped; spread of positions."""

    x: Tensor
    noise: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    spread: float

    def to(self, device: str) -> Batch:
        parts = (part.to(device) for part in (self.x, self.noise, self.t, self.context, self.pooled))
        x, noise, t, context, pooled = parts
        return Batch(x, noise, t, context, pooled, self.spread)


@dataclass(frozen=True, slots=True)
class Source:
    """Batches of a curriculum. dropped: the share of captions that are left out, for guidance."""

    painter: Painter
    space: Space
    stages: Sequence[Stage]
    seed: int = 1
    dropped: float = 0.1

    def stage(self, step: int) -> Stage:
        """The step's; beyond the last one's end still the last one."""
        return next((stage for stage in self.stages if step < stage.until), self.stages[-1])

    def batch(self, step: int) -> Batch:
        """Everything random of a step, from the seed and the step alone."""
        stage, rng = self.stage(step), np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        height, width = sides(stage.side, rng)
        captions = [draw(rng, self.painter.names[: stage.names]) for _ in range(stage.batch)]
        pictures = np.stack([self.painter.paint(caption, rng, height, width) for caption in captions])
        x = self.space.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        texts = ["" if rng.random() < self.dropped else str(caption) for caption in captions]
        noise = torch.randn(x.shape, generator=generator)
        t = flow.times(len(x), x.shape[-1] * x.shape[-2] // 4, generator)
        return Batch(x, noise, t, *conditioning(texts), stage.spread)


def sides(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """A square, or another aspect with about as many tokens; multiples of 16 pixels."""
    rows, columns = ASPECTS[int(rng.integers(len(ASPECTS)))]
    return round(side * rows / 6 / 16) * 16, round(side * columns / 6 / 16) * 16
