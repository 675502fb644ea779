"""Text to picture: a transformer learns the flow from noise to the latents of painted captions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.train import flow
from bench.train.captions import Caption, draw
from bench.train.conditioning import conditioning
from bench.train.latents import BLOCK, CHANNELS, Space
from bench.train.pictures import Painter, sheet

DROPPED = 0.1
FULL_SIDE = 192
SHOWN_STEPS, SHOWN_GUIDANCE, SHOWN_SEED = 16, 3.0, 7
# Multiples of a side in sixths, height and width: about as many tokens as the square.
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


@dataclass(slots=True)
class Batch:
    """x: b c h w; the captions' conditioning, some of it dropped; and the stage it is for."""

    x: Tensor
    noise: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    stage: Stage


@dataclass(slots=True)
class Text2Image:
    """The task of training a FLUX class with dropped captions."""

    name: str
    model: nn.Module
    painter: Painter
    space: Space
    stages: Sequence[Stage]
    seed: int = 1
    device: str = "cpu"

    def stage(self, step: int) -> Stage:
        return next((stage for stage in self.stages if step < stage.until), self.stages[-1])

    def batch(self, step: int, dropped: float = DROPPED) -> Batch:
        """Everything random of a step, from the seed and the step alone."""
        stage, rng = self.stage(step), np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        height, width = sides(stage.side, rng)
        captions = [draw(rng, self.painter.names[: stage.names]) for _ in range(stage.batch)]
        pictures = np.stack([self.painter.paint(caption, rng, height, width) for caption in captions])
        x = self.space.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        texts = ["" if rng.random() < dropped else str(caption) for caption in captions]
        noise = torch.randn(x.shape, generator=generator)
        t = flow.times(len(x), x.shape[-1] * x.shape[-2] // 4, generator)
        parts = (part.to(self.device) for part in (x, noise, t, *conditioning(texts)))
        return Batch(*parts, stage)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self.batch(step)
        noisy, velocity = flow.noised(batch.x, batch.noise, batch.t)
        predicted = self.model(noisy, batch.t, batch.context, batch.pooled, spread=batch.stage.spread)
        errors = (predicted.float() - velocity).square().mean(dim=(1, 2, 3))
        return errors.mean(), by_noise(errors.detach(), batch.t)

    def show(self, weights: dict[str, Tensor], path: Path) -> None:
        captions = shown_captions(self.painter.names)
        model = deepcopy(self.model)
        model.load_state_dict(weights)
        stage = self.stage(int(path.stem.split("-")[-1]) - 1)
        latents = pictures_of(model, [str(c) for c in captions], stage.side, stage.spread, SHOWN_GUIDANCE, self.device)
        pictures = self.space.decode(latents).permute(0, 2, 3, 1).numpy()
        sheet(list(pictures), 8).save(path)


def pictures_of(
    model: nn.Module, texts: Sequence[str], side: int, spread: float, guidance: float, device: str,
    steps: int = SHOWN_STEPS, seed: int = SHOWN_SEED,
) -> Tensor:  # fmt: skip
    """Latents of these captions, squares of this side."""
    count, latent = len(texts), side // BLOCK
    noise = torch.randn(count, CHANNELS, latent, latent, generator=torch.Generator().manual_seed(seed)).to(device)

    def velocity(words: Sequence[str]) -> flow.Velocity:
        context, pooled = (part.to(device) for part in conditioning(words))
        return lambda x, t: model(x, t, context, pooled, spread=spread)

    model.eval()
    return flow.sample(flow.guided(velocity(texts), velocity([""] * count), guidance), noise, steps).cpu()


def sides(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """A square, or another aspect with about as many tokens; multiples of 16 pixels."""
    rows, columns = ASPECTS[int(rng.integers(len(ASPECTS)))]
    return round(side * rows / 6 / 16) * 16, round(side * columns / 6 / 16) * 16


def by_noise(errors: Tensor, t: Tensor) -> dict[str, float]:
    """The loss at low, middle and high noise."""
    thirds = {"low": t < 0.4, "middle": (t >= 0.4) & (t < 0.75), "high": t >= 0.75}
    return {name: errors[where].mean().item() for name, where in thirds.items() if where.any()}


def shown_captions(names: Sequence[str]) -> list[Caption]:
    """32 captions, among them held-out ones, of names that come in first."""
    rng = np.random.default_rng(5)
    singles = [draw(rng, names[:120]) for _ in range(16)]
    return [*singles, *(draw(rng, names[:240], held_out=True) for _ in range(16))]
