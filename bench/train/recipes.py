"""Which models are trained, on what, how long. The goals may be raised; a run goes on from where it was."""

from __future__ import annotations

import numpy as np
import torch

from bench.provision import say
from bench.train.captions import draw
from bench.train.files import training_folder
from bench.train.flux import Flux, Shape
from bench.train.flux_task import Stage, Text2Image
from bench.train.latents import Space
from bench.train.loop import Run, Settings
from bench.train.pictures import Painter

STAGES = (Stage(1500, 96, 64, 240), Stage(3000, 128, 48, 400), Stage(12000, 192, 32, 400))


def space(painter: Painter) -> Space:
    """The latent space, fitted once."""
    path = training_folder() / "latents.safetensors"
    if not path.exists():
        say("Fitting the latent space")
        rng = np.random.default_rng(0)
        pictures = np.stack([painter.paint(draw(rng, painter.names[:400]), rng, 192, 192) for _ in range(600)])
        Space.fit(torch.from_numpy(pictures).permute(0, 3, 1, 2)).save(path)
    return Space.load(path)


def flux(device: str, muon: bool = True, name: str = "flux") -> Run:
    """The FLUX class with dropped captions, for real guidance."""
    torch.manual_seed(1)
    painter = Painter.from_packages()
    task = Text2Image(name, Flux(Shape()), painter, space(painter), STAGES, device=device)
    return Run(task, Settings(steps=STAGES[-1].until, muon=muon), training_folder() / name, device)
