"""One path of noise, whatever steps are taken on it, so that runs with many steps and with few aim at one picture.

Lévy's construction of a Brownian path on [low, high]: a straight line to a random end, and on each of `LEVELS` levels a
random height for the middle of every interval there, halved from level to level. Each height has a seed of its own, so
that a point of the path is the same whenever and in whatever order it is asked for.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 18


@dataclass(frozen=True, slots=True)
class Path:
    """A noise sampler for the host: the path's change between two noise levels, scaled to variance 1."""

    shape: tuple[int, ...]
    low: float
    high: float
    seed: int

    def __call__(self, sigma: Tensor, after: Tensor) -> Tensor:
        here, there = ((float(level) - self.low) / (self.high - self.low) for level in (sigma, after))
        if here == there:  # some samplers ask for nothing, and multiply it by nothing
            return torch.zeros(self.shape)
        return (self.at(there) - self.at(here)) / math.sqrt(abs(there - here))

    def at(self, time: float) -> Tensor:
        """The path at a time, 0 to 1 between the levels."""
        time = min(max(time, 0.0), 1.0)
        value = self._normal(0, 0) * time
        for level in range(1, LEVELS):
            intervals = 2 ** (level - 1)
            interval = min(int(time * intervals), intervals - 1)
            height = 1 - abs(2 * (time * intervals - interval) - 1)  # of the tent over this interval
            value = value + self._normal(level, interval) * (height * 2.0 ** (-(level + 1) / 2))
        return value

    def _normal(self, level: int, interval: int) -> Tensor:
        name = f"{self.seed} {level} {interval}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:6], "big")
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
