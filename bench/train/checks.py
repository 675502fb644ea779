"""What a trained model can do, measured on captions that were never trained.

object   the right object is nearest among 50 names, by EfficientNet-Lite0's features: each name's own are the mean over
         painted pictures of it on several grounds, all centred by the mean over names
ground   the mean colour of the picture's frame is nearest to the colour that was asked for, among all ten

Painted pictures of the same captions are judged first: no model can be better than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.train import files
from bench.train.autoencoder import Decoding, quality
from bench.train.captions import COLOURS, Caption, draw
from bench.train.distil import Distilled
from bench.train.features import Judge
from bench.train.loop import Run
from bench.train.pictures import Painter
from bench.train.text_to_picture import Text2Image, latents_of

COUNT, AMONG, VIEWS, FRAME, AT_ONCE = 200, 50, 4, 6, 20
SETTINGS = ((28, 3.0), (10, 3.0), (5, 3.0), (28, 1.0))
"""Steps and guidance that are compared."""

Maker = Callable[[Sequence[Caption]], Tensor]


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of captions, 0 to 1."""

    object: float
    ground: float
    captions: int

    def row(self, name: str) -> str:
        error = math.sqrt(self.object * (1 - self.object) / self.captions)
        return f"{name:<28} object {self.object:6.1%} ± {error:.1%}   ground {self.ground:6.1%}   of {self.captions}"


class Bench:
    """Captions to judge by, and the names' features."""

    def __init__(self, painter: Painter, judge: Judge, known: Sequence[str], count: int, side: int) -> None:
        self.painter, self.judge, self.known, self.side = painter, judge, list(known), side
        rng = np.random.default_rng(2026)
        self.captions = held_out_singles(rng, self.known, count)
        self.crowds = [self._crowd(rng, caption.names[0]) for caption in self.captions]
        features = torch.stack([self._of_name(name, rng) for name in self.known])
        self.middle = features.mean(dim=0)
        self.names = F.normalize(features - self.middle, dim=1)

    def score(self, make: Maker) -> Score:
        """Judge b c h w pictures of all captions."""
        pictures = torch.cat([make(self.captions[i : i + AT_ONCE]) for i in range(0, len(self.captions), AT_ONCE)])
        found = F.normalize(self._features(pictures) - self.middle, dim=1) @ self.names.T
        right = [crowd[int(near[crowd].argmax())] == crowd[0] for near, crowd in zip(found, self.crowds, strict=True)]
        grounds = [nearest_colour(p) == c.ground[0] for p, c in zip(pictures, self.captions, strict=True)]
        return Score(sum(right) / len(right), sum(grounds) / len(grounds), len(right))

    def painted(self, captions: Sequence[Caption]) -> Tensor:
        """The captions as the painter makes them."""
        rng = np.random.default_rng(len(captions))
        pictures = [self.painter.paint(caption, rng, self.side, self.side) for caption in captions]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def _crowd(self, rng: np.random.Generator, name: str) -> list[int]:
        """The right name first, then others."""
        right = self.known.index(name)
        others = rng.permutation([index for index in range(len(self.known)) if index != right])
        return [right, *map(int, others[: AMONG - 1])]

    def _of_name(self, name: str, rng: np.random.Generator) -> Tensor:
        grounds = rng.choice(list(COLOURS), VIEWS, replace=False)
        return self._features(self.painted([Caption((name,), (str(ground),)) for ground in grounds])).mean(dim=0)

    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.judge.features(part.clamp(0, 1)) for part in pictures.split(AT_ONCE)])


def held_out_singles(rng: np.random.Generator, known: Sequence[str], count: int) -> list[Caption]:
    """Single objects on a colour that were never trained together."""
    found: list[Caption] = []
    while len(found) < count:
        caption = draw(rng, known, held_out=True)
        if len(caption.names) == 1 and caption.ground[0] in COLOURS:
            found.append(caption)
    return found


def nearest_colour(picture: Tensor) -> str:
    """The colour's name of the frame of c h w. The median: an object may reach over the frame."""
    inner = torch.ones(picture.shape[-2:], dtype=torch.bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = False
    frame = picture[:, inner].median(dim=1).values
    return min(COLOURS, key=lambda name: float((frame - torch.tensor(COLOURS[name])).square().sum()))


def report(run: Run, count: int = COUNT) -> str:
    """The checks of one model as text."""
    task, weights = run.task, run.average.weights
    if isinstance(task, Decoding):
        return f"{task.name}: {quality(task.source.space, weights, task.source.painter):.2f} dB on held-out pictures"
    assert isinstance(task, (Text2Image, Distilled))
    source = task.source
    stage = source.stage(run.step - 1)
    judge = Judge.from_file(next(files.folder_of(files.FEATURES).iterdir()))
    bench = Bench(source.painter, judge, source.painter.names[: stage.names], count, stage.side)
    task.model.load_state_dict(weights)
    lines = [f"{task.name}, step {run.step}, {stage.side} pixels", bench.score(bench.painted).row("painted")]

    def make(captions: Sequence[Caption], steps: int, guidance: float) -> Tensor:
        texts = [str(caption) for caption in captions]
        with torch.no_grad():
            latents = latents_of(task.model, texts, stage.side, stage.spread, guidance, run.device, steps)
        return source.space.decode(latents)

    for steps, guidance in SETTINGS:
        score = bench.score(partial(make, steps=steps, guidance=guidance))
        lines.append(score.row(f"{steps} steps, guidance {guidance:g}"))
    return "\n".join(lines)
