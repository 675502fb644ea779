"""Guidance distilled into a number (Meng et al. 2023), as FLUX.1-dev is made from FLUX.1-pro.

The student begins as the teacher with an embedding of the guidance that adds nothing, and learns the teacher's guided
velocity u + g (c − u) for g drawn evenly from 1 to 5, so that one call does what took two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.train import flow
from bench.train.ahead import Ahead
from bench.train.conditioning import conditioning
from bench.train.flux import Flux
from bench.train.source import Batch, Source
from bench.train.text_to_picture import by_noise, show

LEAST, MOST = 1.0, 5.0


def from_teacher(student: Flux, weights: dict[str, Tensor]) -> None:
    """The teacher's weights; the guidance's last layer starts at zero."""
    missing, unexpected = student.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("guidance_in.") for name in missing)
    last = student.get_submodule("guidance_in.out_layer")
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


@dataclass(slots=True)
class Distilled:
    """A student learns the guided output of a teacher, with the guidance as a number."""

    name: str
    model: Flux
    teacher: Flux
    source: Source
    batches: Ahead[Batch]
    device: str = "cpu"

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self.batches(step).to(self.device)
        generator = torch.Generator().manual_seed(step)
        scale = LEAST + (MOST - LEAST) * torch.rand(len(batch.x), generator=generator).to(batch.x.device)
        noisy, _ = flow.noised(batch.x, batch.noise, batch.t)
        nothing = [part.to(batch.x.device) for part in conditioning([""] * len(batch.x))]
        with torch.no_grad():
            conditional = self.teacher(noisy, batch.t, batch.context, batch.pooled, spread=batch.spread).float()
            plain = self.teacher(noisy, batch.t, *nothing, spread=batch.spread).float()
            goal = plain + scale.reshape(-1, 1, 1, 1) * (conditional - plain)
        out = self.model(noisy, batch.t, batch.context, batch.pooled, scale, spread=batch.spread).float()
        errors = (out - goal).square().mean(dim=(1, 2, 3))
        return errors.mean(), by_noise(errors.detach(), batch.t)

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        show(self.model, weights, self.source, step, path, self.device)
