"""Rectified flow (Liu et al. 2022), with times as Stable Diffusion 3 and FLUX draw them (Esser et al. 2024, 3.1).

x_t = (1 − t) x + t ε, and the model learns the velocity ε − x. t = sigmoid(N(μ, 1)), where μ grows with the number of
image tokens as FLUX's own schedule shifts it, so that training and sampling look at the same noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
BASE_TOKENS, BASE_SHIFT, MOST_TOKENS, MOST_SHIFT = 256, 0.5, 4096, 1.15


def shift(tokens: int) -> float:
    """FLUX's μ at this number of image tokens."""
    return BASE_SHIFT + (MOST_SHIFT - BASE_SHIFT) * (tokens - BASE_TOKENS) / (MOST_TOKENS - BASE_TOKENS)


def times(count: int, tokens: int, generator: torch.Generator) -> Tensor:
    """b in (0, 1): one normal draw per stratum, so that every batch has high and low noise."""
    quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal = math.sqrt(2) * torch.erfinv((2 * quantile - 1).clamp(-0.999999, 0.999999))
    return torch.sigmoid(shift(tokens) + normal)[torch.randperm(count, generator=generator)]


def noised(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latent and the velocity to learn."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return (1 - t) * x + t * noise, noise - x


def sigmas(steps: int, tokens: int) -> Tensor:
    """steps + 1 noise levels from 1 to 0, shifted."""
    even, factor = torch.linspace(1, 0, steps + 1), math.exp(shift(tokens))
    return factor * even / (1 - even + factor * even)


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2022)."""
    if scale == 1:
        return conditional

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        plain = unconditional(x, t)
        return plain + scale * (conditional(x, t) - plain)

    return velocity


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Euler from noise b c h w to a latent."""
    x = noise
    levels = sigmas(steps, noise.shape[-1] * noise.shape[-2] // 4)
    for now, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        x = x + (after - now) * velocity(x, torch.full((len(x),), now, device=x.device))
    return x
