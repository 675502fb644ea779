"""Published magnitude curves of MagCache (arXiv 2506.09045): how the norm of the trunk's residual moves with the noise.

A published list gives gamma_i = mean over tokens of |r_i| / |r_(i-1)| for the steps of one calibration run. A ratio
belongs to the length of its step, so what is kept is the cumulative curve L(sigma) = sum of log gamma, a straight line
between the calibration's noise levels; on any other schedule gamma = exp(L(sigma_i) - L(sigma_(i-1))).

Differs from the original: the authors' code takes the list entry whose number is nearest instead, whatever the lengths
of the steps. The calibration's noise levels are not published with the lists; they are those of the calibrating script:
sigma = e^mu / (e^mu + 1 / t - 1) with t = 1 - i / T and mu = 1.15 (1024² in FLUX, ComfyUI's default for both models).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType

from .profile import Profile
from .types import CacheError

MU = 1.15


@dataclass(frozen=True, slots=True)
class Curve:
    """One list as published, its leading 1 included: of the conditional branch where there are two. levels: the noise
    levels of the calibration, where they are known.
    """

    gammas: tuple[float, ...]
    source: str
    levels: tuple[float, ...] = ()

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels of the calibration."""
        if self.levels:
            return self.levels
        total = len(self.gammas)
        return tuple(math.exp(MU) / (math.exp(MU) + total / (total - i) - 1) for i in range(total))

    def ratios(self, sigmas: Sequence[float]) -> tuple[float, ...]:
        """gamma between each noise level and the one before it; 1 for the first."""
        knots = [*zip(self.sigmas, accumulate(math.log(gamma) for gamma in self.gammas), strict=True)]
        levels = [between(knots, sigma) for sigma in sigmas]
        return (1.0, *(math.exp(after - before) for before, after in pairwise(levels)))


def listed(text: str) -> Curve:
    """A curve from a list as people paste it: ratios of one calibration run, parted by commas or spaces."""
    try:
        gammas = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise CacheError(f"ratios is no list of numbers ({error}); write it like 1.0, 1.21, 1.12") from None
    if len(gammas) < 2 or not all(0 < gamma < math.inf for gamma in gammas):
        raise CacheError(
            f"ratios has {len(gammas)} numbers; give one above 0 for each step of a run, as 1.0, 1.21, 1.12"
        )
    return Curve(gammas, "given")


def of_profile(profile: Profile) -> Curve:
    """The curve of a user's own model: the positive prompt's, the mean over samples."""
    gammas = profile.tables["trunk.magnitude"][0].nanmean(0)[1:].tolist()
    if len(gammas) < 2 or not all(0 < gamma < math.inf for gamma in gammas):
        raise CacheError("the profile holds no ratio of the residual's norm at some steps; calibrate again")
    return Curve((1.0, *gammas), f"profile {profile.about['name']}", tuple(profile.tables["sigmas"].tolist()))


def between(knots: Sequence[tuple[float, float]], sigma: float) -> float:
    """A straight line through the two knots around sigma; below the last one, the last line goes on."""
    for (above, high), (below, low) in pairwise(knots):
        if sigma >= below or below == knots[-1][0]:
            return high + (low - high) * (above - min(sigma, knots[0][0])) / (above - below)
    raise AssertionError("a curve has at least two knots")


_NODES = "Zehong-Ma/ComfyUI-MagCache (Apache-2.0): nodes.py, SUPPORTED_MODELS_MAG_RATIOS"
_ROWS = {
    "FLUX.1": Curve(
        (1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562,
         1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359,
         0.89062),
        f"{_NODES}['flux'], 28 steps; the same in diffusers' FLUX_MAG_RATIOS",
    ),
    "FLUX.1 Kontext": Curve(
        (1.0, 1.21875, 1.0625, 1.03125, 1.03125, 1.0, 1.00781, 1.03906, 0.98047, 1.03125, 0.96875, 1.02344, 1.0,
         0.99219, 1.02344, 0.98047, 0.95703, 0.98828, 0.98047, 0.88672),
        f"{_NODES}['flux_kontext'], 20 steps",
    ),
    "Qwen-Image": Curve(
        (1.0, 1.6875, 1.25, 1.34375, 1.11719, 1.10938, 1.13281, 1.14062, 1.10156, 1.14844, 1.07812, 1.09375, 1.07812,
         1.07812, 1.10156, 1.07031, 1.07812, 1.03906, 1.08594, 1.07031, 1.07031, 1.05469, 1.0625, 1.03125, 1.03906,
         1.04688, 1.02344, 1.03906, 1.03125, 1.01562, 1.01562, 0.98828, 0.99219, 0.94922, 0.98047, 0.88672, 0.89062,
         0.78125, 0.74219, 0.54688),
        f"{_NODES}['qwen_image'], 40 steps, the conditional branch",
    ),
}  # fmt: skip

CURVES: Mapping[str, Curve] = MappingProxyType(_ROWS)
"""By the name of the model's calibration (`coefficients`)."""


def chosen(name: str, ratios: str, profile: Profile | None) -> Curve | str | None:
    """Which curve counts: a published one by its name, "custom" the given ratios, "auto" the profile's, None: the
    model's own.
    """
    if name == "custom":
        return listed(ratios)
    if name != "auto":
        return name
    return None if profile is None else of_profile(profile)
