"""A tiny U-Net of the SD1.5 class, trained in minutes on painted latents, so that there is one whose deep part says
something: the small models of the repository are all transformers.

It is the host's own class and noise schedule, 12 x 12 latents of 4 channels: a shape in its colour on its ground, or
the smooth pattern that stands for a photo. Everything follows from the seed; the weights stay in the cache folder.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench import ROOT
from bench.host.provision import cache_folder, say
from bench.lab.lab import Lab, module_at
from bench.lab.painter import Painter
from bench.lab.pairs import COUNT, FIRST_SEED, Pair
from bench.lab.store import digest
from bench.lab.studio import captions

SIZES = ("small", "medium", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
GROUNDS = ("grass", "gravel", "brick", "sky", "dusk")
PHOTOS = ("astronaut", "cat", "coffee", "rocket", "galaxy", "retina", "tissue")
SIDE, CHANNELS, SCALE = 12, 4, 0.18215
"""SCALE: SD1.5's, by which the host divides what the model has made."""
RANGE = 6.0
"""Of the model's latents, by which a PSNR has a peak of 1."""
WORDS = 8
"""Tokens of a caption; none of its captions is longer."""
ROUNDS, BATCH, RATE, DROPPED = 600, 16, 2e-3, 0.1
REACH = dict(zip(SIZES, (0.3, 0.5, 0.75), strict=True))


class UNetPainter(Painter):
    """Its pictures are its latents, since there is no decoder for them."""

    def __init__(self, lab: Lab, _side: int = SIDE, rounds: int = ROUNDS) -> None:
        model, _, _ = module_at(ROOT / "tests" / "host" / "tiny.py").load("sd15")
        identity = digest([Path(__file__).read_text("utf-8"), str(rounds), lab.about()["versions"]])
        super().__init__(lab, model, None, captions(WORDS), (1, CHANNELS, SIDE, SIDE), f"U-Net {identity}")
        file = cache_folder() / "unet" / f"{identity}.safetensors"
        unet = model.model.diffusion_model
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            train(unet, model.get_model_object("model_sampling").sigmas, rounds)
            save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, file)
        unet.load_state_dict(load_file(file))

    def picture(self, latent: Tensor) -> Tensor:
        return latent.movedim(1, -1) * SCALE / RANGE + 0.5


def known_caption(i: int) -> str:
    """Every third one a photo, the others shapes that walk through sizes, colours, forms, grounds."""
    if i % 3 == 2:
        return f"a photo of {PHOTOS[i // 3 % len(PHOTOS)]}"
    k = i - i // 3
    return f"a {SIZES[k % 3]} {COLOURS[k % 8]} {SHAPES[(k + k // 6) % 6]} on {GROUNDS[k % 5]}"


def cases(count: int, cfg: float) -> list[Pair]:
    """The first of its pairs: the other models' captions mean nothing to it."""
    return [Pair(known_caption(i), FIRST_SEED + i, cfg) for i in range(count)]


def paint(caption: str, generator: torch.Generator) -> Tensor:
    """c h w, about standard normal: the caption's picture, at a place of its own."""
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dy, dx = (0.6 * (torch.rand(2, generator=generator) - 0.5)).tolist()
    *words, last = caption.split()
    if "photo" in words:
        waves = [torch.sin(3 * a * (x - dx) + 3 * b * (y - dy) + c) for a, b, c, _ in _numbers(last).split(4)]
        return 0.7 * torch.stack(waves)
    _, size, colour, shape, _ = words
    u, v = (x - dx) / REACH[size], (y - dy) / REACH[size]
    r, angle = (u * u + v * v).sqrt(), torch.atan2(v, u)
    inside = {
        "circle": r < 1, "square": torch.maximum(u.abs(), v.abs()) < 0.85, "ring": (r - 0.75).abs() < 0.25,
        "triangle": (v < 0.8) & (v > 2 * u.abs() - 1), "star": r < 0.7 + 0.3 * torch.cos(5 * angle),
        "cross": (torch.minimum(u.abs(), v.abs()) < 0.3) & (torch.maximum(u.abs(), v.abs()) < 1),
    }[shape]  # fmt: skip
    ground = _numbers(last)[:CHANNELS, None, None] * (1 + 0.4 * y)
    return torch.where(inside, 1.5 * _numbers(colour)[:CHANNELS, None, None], 0.6 * ground)


def _numbers(word: str) -> Tensor:
    """16 numbers that stand for a word."""
    return torch.randn(4 * CHANNELS, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def train(unet: Any, sigmas: Tensor, rounds: int) -> None:
    """The noise predicted from x_0 + sigma · noise, each sigma of the schedule alike (Ho et al. 2020, eq. 14)."""
    encode, generator = captions(WORDS), torch.Generator().manual_seed(1)
    known = [known_caption(i) for i in range(COUNT)]
    contexts = {caption: encode(caption)[0][0] for caption in (*known, "")}
    with torch.inference_mode(False), torch.enable_grad():
        _begin(unet, generator)
        optimiser = torch.optim.Adam(unet.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 0.5 + 0.5 * math.cos(math.pi * i / rounds))
        levels = sigmas.detach().clone()
        for i in range(rounds):
            chosen = [known[k] for k in torch.randint(len(known), (BATCH,), generator=generator).tolist()]
            x = torch.stack([paint(caption, generator) for caption in chosen])
            dropped = (torch.rand(BATCH, generator=generator) < DROPPED).tolist()
            context = torch.cat([contexts["" if d else c].clone() for c, d in zip(chosen, dropped, strict=True)])
            t = torch.randint(len(levels), (BATCH,), generator=generator)
            noise, sigma = torch.randn(x.shape, generator=generator), levels[t].view(-1, 1, 1, 1)
            told = unet((x + sigma * noise) / (sigma**2 + 1).sqrt(), t.float(), context=context)
            loss = F.mse_loss(told, noise)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if (i + 1) % 100 == 0:
                say(f"U-Net: {i + 1} of {rounds} rounds, loss {loss.item():.3f}")
    unet.requires_grad_(False)


def _begin(unet: nn.Module, generator: torch.Generator) -> None:
    """The host leaves its layers as they are allocated."""
    unet.requires_grad_(True)
    for layer in unet.modules():
        own = dict(layer.named_parameters(recurse=False))
        for name, parameter in own.items():
            if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
                parameter.data.fill_(1.0 if name == "weight" else 0.0)
            elif parameter.dim() > 1:
                spread = (parameter[0].numel()) ** -0.5
                parameter.data = torch.randn(parameter.shape, generator=generator) * spread
            else:
                parameter.data.zero_()
