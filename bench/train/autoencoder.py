"""The autoencoder in ComfyUI's tiny 16-channel format (the layout of madebyollin's TAESD), with FLUX's scale and shift.

Its encoder is not trained. The linear map of latents.py fits into the layout exactly: pixels are never negative, so the
ReLUs let them through; two strided convolutions move 2 × 2 neighbours into channels (3 -> 12 -> 48), the third
computes every latent as the difference of two numbers that are not negative, and the last convolution subtracts them.
The decoder is trained to give pictures back from those latents, some of them with noise, since a transformer's are
never exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train.ahead import Ahead
from bench.train.captions import draw
from bench.train.latents import BLOCK, CHANNELS, Space
from bench.train.pictures import Painter, sheet

WIDTH = 64
SCALE, SHIFT = 0.3611, 0.1159
"""FLUX's: the file's latents are latent / SCALE + SHIFT."""
CROP, BATCH = 96, 8
MOST_NOISE = 0.15


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _conv(inputs: int = WIDTH, outputs: int = WIDTH, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=bias)


def encoder(channels: int = CHANNELS) -> nn.Sequential:
    """b 3 (h 8) (w 8), 0 to 1 -> b c h w."""
    halves = [layer for _ in range(3) for layer in (_conv(stride=2, bias=False), Block(), Block(), Block())]
    return nn.Sequential(_conv(3), Block(), *halves, _conv(WIDTH, channels))


def decoder(channels: int = CHANNELS) -> nn.Sequential:
    """b c h w -> b 3 (h 8) (w 8), 0 to 1."""
    doubles = [layer for _ in range(3) for layer in (*(Block() for _ in range(3)), nn.Upsample(scale_factor=2),
                                                     _conv(bias=False))]  # fmt: skip
    return nn.Sequential(Clamp(), _conv(channels), nn.ReLU(), *doubles, Block(), _conv(WIDTH, 3))


def linear_encoder(space: Space) -> nn.Sequential:
    """The encoder that computes the space's map."""
    made = encoder()
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    convolutions = [layer for layer in made if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        first, half, quarter, eighth, last = (layer.weight for layer in convolutions)
        first[range(3), range(3), 1, 1] = 1
        for weight, channels in ((half, 3), (quarter, 12)):
            for channel in range(channels):
                for y in range(2):  # a stride-2 kernel's middle is the upper left of its 2 × 2 pixels
                    for x in range(2):
                        weight[channel * 4 + y * 2 + x, channel, 1 + y, 1 + x] = 1
        # blocks as c h w with h = (i y2 y1), w = (j x2 x1): channels here are (c y1 x1 y2 x2), the kernel's (i j)
        matrix = space.matrix.reshape(CHANNELS, 3, 2, 2, 2, 2, 2, 2).permute(0, 1, 4, 7, 3, 6, 2, 5)
        matrix = matrix.reshape(CHANNELS, 48, 2, 2)
        eighth[:CHANNELS, :48, 1:, 1:], eighth[CHANNELS : 2 * CHANNELS, :48, 1:, 1:] = matrix, -matrix
        last[range(CHANNELS), range(CHANNELS), 1, 1] = 1
        last[range(CHANNELS), range(CHANNELS, 2 * CHANNELS), 1, 1] = -1
        bias = convolutions[-1].bias
        assert bias is not None
        bias.copy_(-space.matrix @ space.mean)
    return made


def exported(space: Space, decoding: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors: both halves, scale and shift."""
    halves = {"taesd_encoder": linear_encoder(space).state_dict(), "taesd_decoder": decoding}
    tensors = {f"{half}.{name}": value for half, weights in halves.items() for name, value in weights.items()}
    return {**tensors, "vae_scale": torch.tensor(SCALE), "vae_shift": torch.tensor(SHIFT)}


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of painted captions, and their latents."""

    painter: Painter
    space: Space
    seed: int = 3

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Crops b 3 h w, and their latents, half of them noisy."""
        rng, generator = np.random.default_rng([self.seed, step]), torch.Generator().manual_seed(step)
        crops = []
        for _ in range(BATCH):
            picture = self.painter.paint(draw(rng, self.painter.names), rng, 192, 192)
            y, x = rng.integers(0, (192 - CROP) // BLOCK + 1, 2) * BLOCK
            crops.append(picture[y : y + CROP, x : x + CROP])
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
        latents = self.space.encode(pixels)
        level = (torch.rand(BATCH, 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0) * MOST_NOISE
        noisy = latents + level * torch.randn(latents.shape, generator=generator)
        return pixels, noisy


@dataclass(slots=True)
class Decoding:
    """A decoder learns to give pictures back from 16 numbers for 8 × 8 pixels."""

    name: str
    model: nn.Module
    source: Crops
    batches: Ahead[tuple[Tensor, Tensor]]
    device: str = "cpu"

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, latents = (part.to(self.device) for part in self.batches(step))
        difference = self.model(latents).float() - pixels
        square = difference.square().mean()
        return difference.abs().mean() + square, {"psnr": -10 * square.detach().clamp(min=1e-9).log10().item()}

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        """Pictures above what comes back of them."""
        rng = np.random.default_rng(11)
        painter, space = self.source.painter, self.source.space
        shown = [draw(rng, painter.names, held_out=index % 2 == 0) for index in range(8)]
        pixels = np.stack([painter.paint(caption, rng, 192, 192) for caption in shown])
        with torch.no_grad():
            latents = space.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).to(self.device)
            back = torch.func.functional_call(self.model, weights, (latents,)).cpu().permute(0, 2, 3, 1).numpy()
        sheet([*pixels, *back], len(pixels)).save(path)


def quality(space: Space, weights: dict[str, Tensor], painter: Painter, count: int = 64, side: int = 192) -> float:
    """Mean PSNR in dB of held-out pictures that went through the autoencoder."""
    rng, model = np.random.default_rng(17), decoder()
    model.load_state_dict(weights)
    found = []
    with torch.no_grad():
        for _ in range(count):
            pixels = torch.from_numpy(painter.paint(draw(rng, painter.names, held_out=True), rng, side, side))
            pixels = pixels.permute(2, 0, 1)[None]
            error = (model(space.encode(pixels)).clamp(0, 1) - pixels).square().mean()
            found.append(-10 * error.log10().item())
    return sum(found) / len(found)
