"""What a cache does to a run, learned from the same run without it, and taken back at every step of later ones.

Both runs start from the same noise; eps is the predicted noise, x the denoised latent, ^ marks the run with the cache.

noise     b = ||eps|| / ||eps^||, mean over samples: FEB-Cache's gain (arXiv 2503.07120) as measured, for any method
channels  K = cov(x, x^) / var(x^) of each channel over samples and positions: the variance compensation of Q&C (arXiv
          2503.02508), whose closed form has two more terms that grow without bound where x is near 0; they are left out

Gains belong to one method with one set of settings, and to noise levels: between those of the two runs they follow a
straight line.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .generators import misfit
from .outputs import ChannelGain, NoiseGain
from .profile import Profile
from .types import CacheError, Method, Output, Schedule, Step

Kind = Literal["noise", "channels"]
LEAST, MOST = 0.9, 1.1
"""Gains are near 1; one beyond these would repair more than a cache has done."""
TINY = torch.finfo(torch.float32).tiny


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


class Learner:
    """Sums over samples, each seen step by step in full and then with the cache. Of a sample the denoised latents of
    the full run are held until the next one, where they are.
    """

    def __init__(self) -> None:
        self._full: dict[int, tuple[Tensor, Tensor]] = {}
        self._ratios: dict[int, list[Tensor]] = {}
        self._sums: dict[int, Tensor] = {}  # 5 c: places, and sums of x, x^, x·x^, x^²

    def full(self, step: int, noise: Tensor, denoised: Tensor) -> None:
        """noise: its norm, or anything that all evaluations of a step scale alike; denoised: b c ..."""
        self._full[step] = noise, denoised

    def cached(self, step: int, noise: Tensor, denoised: Tensor) -> None:
        """The same of the run with the cache; steps that the full run lacks are left out."""
        if step not in self._full:
            return
        norm, exact = self._full[step]
        self._ratios.setdefault(step, []).append(norm.float() / noise.float().clamp(min=TINY))
        x, off = (latent.double().transpose(0, 1).flatten(1) for latent in (exact, denoised))  # c (b ...)
        sums = torch.stack([torch.ones_like(x), x, off, x * off, off.square()]).sum(2)
        self._sums[step] = self._sums[step] + sums if step in self._sums else sums

    def noise(self, total: int) -> Tensor:
        """b of each step, 1 where nothing was seen: t"""
        found = torch.ones(total)
        for step, ratios in self._ratios.items():
            found[step] = torch.stack(ratios).mean().clamp(LEAST, MOST)
        return found

    def channels(self, total: int) -> Tensor:
        """K of each step and channel, 1 where nothing was seen: t c"""
        found = torch.ones(total, len(next(iter(self._sums.values()))[0]) if self._sums else 1)
        for step, (places, x, off, both, square) in self._sums.items():
            variance = square - off * off / places
            gain = (both - x * off / places) / variance.clamp(min=TINY)
            found[step] = torch.where(variance > ROUNDED * square, gain, 1.0).clamp(LEAST, MOST)
        return found


ROUNDED = 1e-12
"""Of a channel's mean square, what a variance of nothing comes to by rounding."""


def corrected(method: Method, gains: Gains, kind: Kind) -> Method:
    """The method with its gains taken back: once it has skipped something, and never where it skips nothing."""
    if method.output is not None:
        raise CacheError(f"{method.name} acts on the result already; switch that off to add a gain")
    output: Output = NoiseGain(gains.noise_at) if kind == "noise" else ChannelGain(gains.channels_at)
    return replace(method, output=output, params={**method.params, "gain": kind})


# by a profile ---------------------------------------------------------------------------------------------------------


def settings(method: Method) -> str:
    """What a gain belongs to: the method and its parameters, as JSON."""
    return json.dumps([method.name, dict(method.params)], sort_keys=True)


def by_profile(method: Method, profile: Profile, kind: Kind) -> Method:
    """The method with the gains of a profile, in runs of the profile's noise levels. Raises `CacheError` where they are
    another method's, or of other settings.
    """
    if profile.about.get("gained") != settings(method):
        raise CacheError(f"its gain belongs to {profile.about['gained']}, this is {settings(method)}")
    noise, channels = (profile.tables[f"gain.{name}"].nan_to_num(1.0).clamp(LEAST, MOST) for name in TABLES)
    made = corrected(method, Gains(tuple(profile.tables["sigmas"].tolist()), tuple(noise.tolist()), channels), kind)
    assert made.output is not None
    return replace(made, output=Fitting(made.output, profile), remark=partial(_remark, profile, method.remark))


TABLES = ("noise", "channels")


@dataclass(frozen=True, slots=True)
class Fitting(Output):
    """Another one in runs of the profile's noise levels, nothing in others."""

    output: Output
    profile: Profile

    def adjust(self, now: Step, x: Tensor, denoised: Tensor) -> Tensor:
        if now.schedule is None or misfit(self.profile, now.schedule):
            return denoised.clone()
        return self.output.adjust(now, x, denoised)


def _remark(profile: Profile, own: Callable[[Schedule], str] | None, schedule: Schedule) -> str:
    return "; ".join(filter(None, (own and own(schedule), misfit(profile, schedule))))
