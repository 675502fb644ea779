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
from bench.train.ahead import Ahead
from bench.train.captions import Caption, draw
from bench.train.conditioning import conditioning
from bench.train.flux import Flux
from bench.train.latents import BLOCK, CHANNELS
from bench.train.pictures import sheet
from bench.train.qwen import QwenImage
from bench.train.source import Batch, Source

Transformer = Flux | QwenImage
SHOWN_STEPS, SHOWN_GUIDANCE, SHOWN_SEED = 16, 3.0, 7


@dataclass(slots=True)
class Text2Image:
    """A transformer learns from captions, a tenth of them left out, so that it can be guided."""

    name: str
    model: Transformer
    source: Source
    batches: Ahead[Batch]
    device: str = "cpu"

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self.batches(step).to(self.device)
        noisy, velocity = flow.noised(batch.x, batch.noise, batch.t)
        predicted = self.model(noisy, batch.t, batch.context, batch.pooled, spread=batch.spread)
        errors = (predicted.float() - velocity).square().mean(dim=(1, 2, 3))
        return errors.mean(), by_noise(errors.detach(), batch.t)

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        show(self.model, weights, self.source, step, path, self.device)


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


def show(model: Transformer, weights: dict[str, Tensor], source: Source, step: int, path: Path, device: str) -> None:
    """A sheet of captions, in the size of the step's stage, through the linear way back."""
    texts = [str(caption) for caption in shown_captions(source.painter.names)]
    stage, model = source.stage(step), deepcopy(model)
    model.load_state_dict(weights)
    latents = latents_of(model, texts, stage.side, stage.spread, SHOWN_GUIDANCE, device)
    sheet(list(source.space.decode(latents).permute(0, 2, 3, 1).numpy()), 8).save(path)


def by_noise(errors: Tensor, t: Tensor) -> dict[str, float]:
    """The loss at low, middle and high noise."""
    thirds = {"low": t < 0.4, "middle": (t >= 0.4) & (t < 0.75), "high": t >= 0.75}
    return {name: errors[where].mean().item() for name, where in thirds.items() if where.any()}


def shown_captions(names: Sequence[str]) -> list[Caption]:
    """32 captions, among them held-out ones, of names that come in first."""
    rng = np.random.default_rng(5)
    singles = [draw(rng, names[:120]) for _ in range(16)]
    return [*singles, *(draw(rng, names[:240], held_out=True) for _ in range(16))]
