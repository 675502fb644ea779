"""Which models are trained, on what, how long. The goals may be raised; a run goes on from where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.host.provision import SetupError, say
from bench.train.ahead import Ahead
from bench.train.autoencoder import Crops, Decoding, decoder
from bench.train.captions import draw
from bench.train.distil import Distilled, from_teacher
from bench.train.export import go_on
from bench.train.files import training_folder
from bench.train.flux import Flux, Shape
from bench.train.latents import Space
from bench.train.loop import Run, Settings
from bench.train.pictures import Painter, sheet
from bench.train.qwen import QwenImage
from bench.train.source import Source, Stage
from bench.train.text_to_picture import Text2Image

# A step of small pictures sees twice as many in two thirds of the time, and which word is which object is learned
# there as well: objects came out of the 2 600 small steps from 4 400 on that they had not in 1 600 large ones before.
# Each stay among the large ones, which is where the model is used, may be the last. The limits may be moved while a run
# is before them.
STAGES = (
    Stage(2000, 96, 64, 240), Stage(2800, 128, 48, 400), Stage(4400, 192, 32, 400), Stage(7000, 96, 64, 400),
    Stage(8200, 192, 32, 400), Stage(14000, 96, 64, 400), Stage(17000, 192, 32, 400),
)  # fmt: skip
SMALL_FIRST = (Stage(2000, 96, 64, 240), Stage(10200, 96, 64, 400), Stage(12400, 192, 32, 400))
"""What flux's run taught, for one that begins: objects are learned on small pictures, large ones only finish it."""
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
"""What is shipped; a machine that has trained nothing goes on from there."""
FULL = (Stage(800, 192, 32, 400),)
"""Of a student, which begins as its teacher."""
SHOWN_PICTURES, FITTED_PICTURES = 64, 600


def data() -> tuple[str, ...]:
    """Fetches everything, writes a sheet of painted captions, returns the names."""
    painter, rng = Painter.from_packages(), np.random.default_rng(1)
    shown = [painter.paint(draw(rng, painter.names[:400]), rng, 192, 192) for _ in range(SHOWN_PICTURES)]
    sheet(shown, 8).save(training_folder() / "data.png")
    space(painter)
    return painter.names


def space(painter: Painter) -> Space:
    """The latent space, fitted once."""
    path = training_folder() / "latents.safetensors"
    if not path.exists():
        say("Fitting the latent space")
        rng = np.random.default_rng(0)
        pictures = np.stack(
            [painter.paint(draw(rng, painter.names[:400]), rng, 192, 192) for _ in range(FITTED_PICTURES)]
        )
        Space.fit(torch.from_numpy(pictures).permute(0, 3, 1, 2)).save(path)
    return Space.load(path)


def averaged(name: str) -> dict[str, Tensor]:
    """The averaged weights of a model that another one builds on, trained here or shipped."""
    run = MODELS[name]("cpu", 0)
    if run.step == 0:
        raise SetupError(f"{name} has not been trained here; run python dev.py train {name} first.")
    return run.average.weights


def autoencoder(device: str, workers: int) -> Run:
    """The decoder of the latents."""
    torch.manual_seed(3)
    painter = Painter.from_packages()
    source = Crops(painter, space(painter))
    task = Decoding("autoencoder", decoder(), source, Ahead(source.batch, workers), device)
    return Run(task, Settings(steps=2500, muon=False, average=0.998), training_folder() / task.name, device)


def flux(device: str, workers: int) -> Run:
    """The FLUX class with dropped captions, for real guidance."""
    torch.manual_seed(1)
    return _text_to_picture("flux", Flux(Shape()), STAGES, 1, device, workers)


def flux_guided(device: str, workers: int) -> Run:
    """The student of flux that takes the guidance as a number."""
    torch.manual_seed(2)
    painter = Painter.from_packages()
    teacher, student = Flux(Shape()), Flux(Shape(guidance=True))
    weights = averaged("flux")
    teacher.load_state_dict(weights)
    from_teacher(student, weights)
    teacher = teacher.to(device).eval().requires_grad_(False)
    source = Source(painter, space(painter), FULL, seed=2, dropped=0.0)
    task = Distilled("flux-guided", student, teacher, source, Ahead(source.batch, workers), device)
    run = Run(task, Settings(steps=FULL[-1].until, rate=3e-4), training_folder() / task.name, device)
    go_on(run, WEIGHTS)
    return run


def qwen(device: str, workers: int) -> Run:
    """The Qwen-Image class, on small pictures first."""
    torch.manual_seed(4)
    return _text_to_picture("qwen", QwenImage(), SMALL_FIRST, 4, device, workers)


def _text_to_picture(
    name: str, model: Flux | QwenImage, stages: tuple[Stage, ...], seed: int, device: str, workers: int
) -> Run:
    painter = Painter.from_packages()
    source = Source(painter, space(painter), stages, seed)
    task = Text2Image(name, model, source, Ahead(source.batch, workers), device)
    run = Run(task, Settings(steps=stages[-1].until), training_folder() / name, device)
    go_on(run, WEIGHTS)
    return run


MODELS: Mapping[str, Callable[[str, int], Run]] = {
    "autoencoder": autoencoder, "flux": flux, "flux-guided": flux_guided, "qwen": qwen
}  # fmt: skip
