"""Text to picture: a transformer learns the flow from noise to the latents of painted captions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.train import flow
from bench.train.captions import Caption, draw
from bench.train.conditioning import conditioning
from bench.train.flux import Flux
from bench.train.latents import BLOCK, CHANNELS, Space
from bench.train.pictures import Painter, sheet
from bench.train.qwen import QwenImage

Transformer = Flux | QwenImage
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
    model: Transformer
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
        context, pooled = conditioning(texts)
        x, noise, t, context, pooled = (part.to(self.device) for part in (x, noise, t, context, pooled))
        return Batch(x, noise, t, context, pooled, stage)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self.batch(step)
        noisy, velocity = flow.noised(batch.x, batch.noise, batch.t)
        predicted = self.model(noisy, batch.t, batch.context, batch.pooled, spread=batch.stage.spread)
        errors = (predicted.float() - velocity).square().mean(dim=(1, 2, 3))
        return errors.mean(), by_noise(errors.detach(), batch.t)

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        show(self.model, weights, self, step, path)


def latents_of(
    model: Transformer, texts: Sequence[str], side: int, spread: float, guidance: float, device: str,
    steps: int = SHOWN_STEPS, seed: int = SHOWN_SEED,
) -> Tensor:  # fmt: skip
    """Latents of these captions, squares of this side: with real guidance, or with the number if the model takes it."""
    count, latent = len(texts), side // BLOCK
    noise = torch.randn(count, CHANNELS, latent, latent, generator=torch.Generator().manual_seed(seed)).to(device)
    number = torch.full((count,), guidance, device=device)

    def velocity(words: Sequence[str]) -> flow.Velocity:
        context, pooled = (part.to(device) for part in conditioning(words))
        return lambda x, t: model(x, t, context, pooled, number, spread=spread)

    conditional = velocity(texts)
    if not model.shape.guidance:
        conditional = flow.guided(conditional, velocity([""] * count), guidance)
    return flow.sample(conditional, noise, steps).cpu()


def show(model: Transformer, weights: dict[str, Tensor], source: Text2Image, step: int, path: Path) -> None:
    """A sheet of captions, in the size of the step's stage, through the linear way back."""
    texts = [str(caption) for caption in shown_captions(source.painter.names)]
    stage, model = source.stage(step), deepcopy(model)
    model.load_state_dict(weights)
    latents = latents_of(model, texts, stage.side, stage.spread, SHOWN_GUIDANCE, source.device)
    sheet(list(source.space.decode(latents).permute(0, 2, 3, 1).numpy()), 8).save(path)


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
