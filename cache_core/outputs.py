"""What acts on the guided result of every evaluation of a run that skips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .types import Output, Step

LEAST_SIGNAL = 0.02
"""Below so much signal the predicted noise is nearly the latent itself, and is left as it is."""


def noise_scale(t: float, high: float, low: float, bend: float = 0.4) -> float:
    """FEB-Cache's b(t) (arXiv 2503.07120, eq. 3), t from 1 (noise) to 0: from 1 to `high` at t = `bend`, on to `low`.

    t >= bend:  high + (1 - high) · exp(-5 (1 - t) / (1 - bend))
    t <  bend:  low + (high - low) · exp(5 (t - bend) / (1 - bend))
    """
    if t >= bend:
        return high + (1 - high) * math.exp(-5 * (1 - t) / (1 - bend))
    return low + (high - low) * math.exp(5 * (t - bend) / (1 - bend))


@dataclass(frozen=True, slots=True)
class NoiseGain(Output):
    """The predicted noise times gain(step): eps' = b·eps, so denoised' = b·denoised + (1 - b)·x / alpha, with alpha the
    signal's scale (1 - sigma in a flow model, 1 in the others).
    """

    gain: Callable[[Step], float]

    def adjust(self, now: Step, x: Tensor, denoised: Tensor) -> Tensor:
        b, alpha = self.gain(now), now.signal
        if b == 1 or alpha < LEAST_SIGNAL:
            return denoised.clone()
        return b * denoised + ((1 - b) / alpha) * x


@dataclass(frozen=True, slots=True)
class ChannelGain(Output):
    """Each channel of the denoised latent drawn to or from its mean over positions (Q&C, arXiv 2503.02508): x' = mu +
    K·(x - mu), with K = gain(step), c. A latent of other channels is left as it is.
    """

    gain: Callable[[Step], Tensor]

    def adjust(self, now: Step, x: Tensor, denoised: Tensor) -> Tensor:
        k = self.gain(now)
        if k.shape[0] != denoised.shape[1]:
            return denoised.clone()
        k = k.to(denoised, non_blocking=True).view(1, -1, *(1 for _ in denoised.shape[2:]))
        mean = denoised.mean(tuple(range(2, denoised.ndim)), keepdim=True)
        return mean + k * (denoised - mean)
