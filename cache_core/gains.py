"""What a cache does to a run, learned from the same run without it, and taken back at every step of later ones.

Both runs start from the same noise; eps is the predicted noise, x the denoised latent, ^ marks the run with the cache.

noise     b = ||eps|| / ||eps^||, mean over samples: FEB-Cache's gain (arXiv 2503.07120) as measured, for any method
channels  K = cov(x, x^) / var(x^) of each channel over samples and positions: the variance compensation of Q&C (arXiv
          2503.02508), whose closed form has two more terms that grow without bound where x is near 0; they are left out

Gains belong to noise levels: between those of the two runs they follow a straight line, so that a run of other steps
can use them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .outputs import ChannelGain, NoiseGain
from .types import CacheError, Method, Step

Runs = Sequence[Sequence[Tensor]]
"""For each sample a tensor a step, b c ..."""
LEAST, MOST = 0.9, 1.1
"""Gains are near 1; one beyond these would repair more than a cache has done."""


@dataclass(frozen=True, slots=True)
class Gains:
    """sigmas: of the runs' steps, falling; noise: b at each; channels: K, t c."""

    sigmas: tuple[float, ...]
    noise: tuple[float, ...]
    channels: Tensor = field(repr=False, compare=False)

    def noise_at(self, step: Step) -> float:
        low, high, share = self._between(step)
        return self.noise[low] + share * (self.noise[high] - self.noise[low])

    def channels_at(self, step: Step) -> Tensor:
        """c"""
        low, high, share = self._between(step)
        return self.channels[low].lerp(self.channels[high], share)

    def _between(self, step: Step) -> tuple[int, int, float]:
        """The two neighbours of a noise level, and how far it is from the first to the second."""
        high = bisect_left(self.sigmas, -step.sigma, key=lambda sigma: -sigma)
        if high == 0 or high == len(self.sigmas):
            end = min(high, len(self.sigmas) - 1)
            return end, end, 0.0
        above, below = self.sigmas[high - 1], self.sigmas[high]
        return high - 1, high, (above - step.sigma) / (above - below)


def noise_gains(full: Runs, cached: Runs) -> tuple[float, ...]:
    """b of each step, from the predicted noise of both runs (or anything that all steps scale alike)."""
    norms = [[[float(eps.float().norm()) for eps in run] for run in runs] for runs in (full, cached)]
    ratios = torch.tensor(norms[0]) / torch.tensor(norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
    return tuple(ratios.mean(0).clamp(LEAST, MOST).tolist())


def channel_gains(full: Runs, cached: Runs) -> Tensor:
    """K of each step and channel, from the denoised latents of both runs: t c."""
    return torch.stack(
        [_channel_gain(*(torch.cat([_by_channel(run[step]) for run in runs], 1) for runs in (full, cached)))
         for step in range(len(full[0]))]
    )  # fmt: skip


def corrected(method: Method, gains: Gains, kind: Literal["noise", "channels"]) -> Method:
    """The method with its gains taken back: once it has skipped something, and never where it skips nothing."""
    if method.output is not None:
        raise CacheError(f"{method.name} acts on the result already; switch that off to add a gain")
    output = NoiseGain(gains.noise_at) if kind == "noise" else ChannelGain(gains.channels_at)
    return replace(method, output=output, params={**method.params, "gain": kind})


def _by_channel(latent: Tensor) -> Tensor:
    """b c ... -> c (b ...)"""
    return latent.float().transpose(0, 1).flatten(1)


def _channel_gain(full: Tensor, cached: Tensor) -> Tensor:
    """c n, c n -> c"""
    full, cached = (each - each.mean(1, keepdim=True) for each in (full, cached))
    variance = cached.square().sum(1)
    gain = (full * cached).sum(1) / variance.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(variance > 0, gain, 1.0).clamp(LEAST, MOST)
