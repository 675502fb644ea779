"""FreqCa (arXiv 2510.08669): one feature for the whole trunk, low frequencies held, high frequencies extrapolated.

The cumulative residual feature is the residual stream behind the last block (sec. 3; on FLUX the image tokens before
the final layer, which runs with the fresh timestep). Steps 0 .. warmup - 1 are computed, then one in `interval`.
Between them

    F^ = low(F_a) + high(P),   P = F_a + 2s²x·v + (2s⁴x² - s²)·a,   s = 0.71, x = steps since the anchor a

with v, a the first and second backward difference of the last three computed features, and low / high a radial split of
the token grid at `cutoff` of the largest radius: `predictors.bands(low=hold, high=hermite)`.

Differs from the released code: the split is 2-D on the real token grid, of any shape, references left out (released:
1-D along flattened tokens for FFT, square grids only for DCT); differences use the spacing that the anchors really
have; the last step is computed. `reference` brings back the released divisor of the second difference, the newest
spacing alone. `schedule` adaptive lets SpectralCache's gate decide when.
"""

from __future__ import annotations

from typing import Literal

from ..gates import all_of, between, every, never, within
from ..parameters import check
from ..predictors import MOST_ORDER, Weighted, bands, hermite, linear, newton, taylor
from ..signals import modulated_l1
from ..types import TRUNK, Method, Rule, Signal
from . import spectralcache as spectral

CHOICES = {
    "transform": ("dct", "fft", "none"),
    "predictor": ("hermite", "newton", "taylor", "linear"),
    "schedule": ("interval", "adaptive"),
    "feature": ("absolute", "residual"),
}
RANGES = {
    "interval": (1, 100),
    "warmup_steps": (1, 100),
    "last_steps": (1, 100),
    "cutoff": (0.001, 1.0),
    "low_order": (0, MOST_ORDER),
    "high_order": (0, MOST_ORDER),
    "roll_off": (0.0, 1.0),
    "damping": (0.0, 1.0),
    **spectral.RANGES,
}
"""Smallest and largest value of every parameter; an order needs one feature of history more than its number."""


def freqca(
    interval: int = 4,
    warmup_steps: int = 3,
    last_steps: int = 1,
    transform: Literal["dct", "fft", "none"] = "dct",
    cutoff: float = 0.1,
    low_order: int = 0,
    high_order: int = 2,
    predictor: Literal["hermite", "newton", "taylor", "linear"] = "hermite",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    schedule: Literal["interval", "adaptive"] = "interval",
    feature: Literal["absolute", "residual"] = "absolute",
    roll_off: float = 0.0,
    damping: float = 1.0,
    reference: bool = False,
    threshold: float = 0.6,
    max_consecutive: int = 2,
    tads_min: float = 0.5,
    tads_max: float = 1.5,
    band_split: float = 0.5,
    gamma_low: float = 0.8,
    gamma_high: float = 1.5,
) -> Method:
    """N, warm-up, last steps, transform, cutoff, the orders of the two bands, and what extrapolates them.

    Without a transform `high_order` counts for everything. From `threshold` on the parameters are SpectralCache's and
    count only where `schedule` is adaptive. Raises `CacheError` on values that no run could use. `interval` 1 computes
    everything.
    """
    params = dict(locals())
    check(params, RANGES, spectral.ORDERED, CHOICES)
    signal, gate = Signal(), never()
    ends = all_of(within(start_percent, end_percent), between(warmup_steps, last_steps))
    if schedule == "adaptive":
        signal = modulated_l1(band_split)
        if threshold and max_consecutive:
            gate = all_of(
                ends, spectral.decision(threshold, max_consecutive, tads_min, tads_max, gamma_low, gamma_high)
            )
    elif interval > 1:
        gate = all_of(ends, every(interval, anchor=warmup_steps - 1))
    low, high = (_forecast(predictor, order, damping, reference, warmup_steps) for order in (low_order, high_order))
    stand_in = high if transform == "none" else bands(low, high, transform, cutoff, roll_off)
    return Method("FreqCa", (Rule(TRUNK, signal, gate, stand_in),), feature=feature, params=params)


def _forecast(predictor: str, order: int, damping: float, reference: bool, warmup: int) -> Weighted:
    """What extrapolates a band. The released code forms differences from step first_enhance - 1 on."""
    if predictor == "linear":
        return linear(damping) if order else newton(0)
    if predictor == "newton":
        return newton(order)
    if predictor == "taylor":
        return taylor(order, published=reference, since=warmup - 1)
    return hermite(order, published=reference, since=warmup - 1)
