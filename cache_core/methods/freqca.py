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

from dataclasses import replace

from ..gates import Between, Every, Never, Within, all_of
from ..parameters import Parameter, published
from ..predictors import MOST_ORDER, Hold, Linear, Weighted, bands, hermite, newton, taylor
from ..signals import ModulatedL1
from ..spectrum import Transform
from ..types import MODEL, TRUNK, Gate, Method, Rule, Signal
from . import spectralcache as spectral


def _adaptive(parameter: Parameter) -> Parameter:
    tooltip = f"Only for the schedule adaptive. {parameter.tooltip}"
    return replace(parameter, tooltip=tooltip, folded=True, late=True)


PARAMETERS = (
    Parameter(
        "interval", 4, "Compute one step in this many. Higher: faster, further from the original picture. 2 to 4 suit "
        "20 to 30 steps; the paper's 6 and 9 are for 50 steps; 1 switches the node off.",
        low=1, high=100,
    ),
    Parameter(
        "warmup_steps", 3, "So many first steps are always computed. Higher: slower, composition closer to the "
        "original. The paper uses 3; 5 to 8 are safer at high guidance.",
        low=1, high=100,
    ),
    Parameter(
        "last_steps", 1, "So many last steps are always computed. Higher: slower, finer detail. 1 is typical, 2 "
        "protects texture.",
        low=1, high=100,
    ),
    Parameter(
        "transform", "dct", "How coarse and fine are told apart: dct (the paper's for FLUX), fft (the paper's for "
        "Qwen-Image), or none: everything is forecast alike with high_order, which is a little faster.",
        choices=("dct", "fft", "none"),
    ),
    Parameter(
        "cutoff", 0.1, "Where coarse ends, as a share of the finest detail. Higher: more is held and less forecast, "
        "which is steadier and less sharp. The paper uses 0.1; 0.05 to 0.3 are usable.",
        low=0.001, high=1,
    ),
    Parameter(
        "low_order", 0, "How coarse structure is forecast: 0 holds it (the paper's), 1 follows its slope, 2 its curve. "
        "Higher: bolder.",
        high=MOST_ORDER,
    ),
    Parameter(
        "high_order", 2, "How detail is forecast: 0 holds it, 1 follows its slope, 2 its curve (the paper's). Higher: "
        "bolder.",
        high=MOST_ORDER,
    ),
    Parameter(
        "predictor", "hermite", "What forecasts: hermite (the paper's, by step), newton (exact curve through the last "
        "computed steps, by noise level), taylor (TaylorSeer's, by step), linear (slope only, by noise level). Boldest "
        "at long intervals: newton.",
        choices=("hermite", "newton", "taylor", "linear"),
    ),
    *spectral.WINDOW,
    Parameter(
        "schedule", "interval", "interval: the fixed schedule above. adaptive: SpectralCache's rule decides when to "
        "compute, with the settings below; interval then does not count.",
        choices=("interval", "adaptive"), folded=True, late=True,
    ),
    Parameter(
        "feature", "absolute", "What is forecast: absolute, the transformer's result itself (the paper's), or "
        "residual, what it adds to its input. Residual follows the picture's own noise, which suits holding; with "
        "forecasts the two are alike.",
        choices=("absolute", "residual"), folded=True, late=True,
    ),
    Parameter(
        "roll_off", 0.0, "Softens the border between coarse and fine. 0 is the paper's hard border; 0.5 avoids "
        "ringing.",
        high=1, folded=True, late=True,
    ),
    Parameter(
        "damping", 1.0, "Only for the predictor linear: how much of the slope is followed. Lower: more cautious; 0 "
        "holds, 0.5 is safe.",
        high=1, folded=True, late=True,
    ),
    Parameter(
        "reference", False, "Use the released code's arithmetic of differences, for comparison with the paper. Off "
        "measures differences at the spacing the steps really have.",
        folded=True, late=True,
    ),
    *(_adaptive(p) for p in (spectral.THRESHOLD, spectral.MAX_CONSECUTIVE, *spectral.SHAPE)),
)  # fmt: skip


@published(
    "FreqCa", PARAMETERS, orders=spectral.ORDERS,
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3, "warmup_steps": 1}, own_node=True,
    advice="A fixed schedule whose speed is known before the run, at intervals of 2 to 4.",
)  # fmt: skip
def freqca(
    interval: int,
    warmup_steps: int,
    last_steps: int,
    transform: str,
    cutoff: float,
    low_order: int,
    high_order: int,
    predictor: str,
    start_percent: float,
    end_percent: float,
    schedule: str,
    feature: str,
    roll_off: float,
    damping: float,
    reference: bool,
    threshold: float,
    max_consecutive: int,
    tads_min: float,
    tads_max: float,
    band_split: float,
    gamma_low: float,
    gamma_high: float,
) -> Method:
    """N, warm-up, last steps, transform, cutoff, the orders of the two bands, and what extrapolates them.

    Without a transform `high_order` counts for everything; an order needs one feature of history more than its number.
    From `threshold` on the parameters are SpectralCache's and count only where `schedule` is adaptive. `interval` 1
    computes everything.
    """
    signal = Signal()
    gate: Gate = Never()
    ends = all_of(Within(start_percent, end_percent), Between(warmup_steps, last_steps))
    if schedule == "adaptive":
        signal = ModulatedL1(band_split)
        if threshold and max_consecutive:
            decide = spectral.decision(threshold, max_consecutive, tads_min, tads_max, gamma_low, gamma_high)
            gate = all_of(ends, decide)
    elif interval > 1:
        gate = all_of(ends, Every(interval, anchor=warmup_steps - 1))
    low, high = (_forecast(predictor, order, damping, reference, warmup_steps) for order in (low_order, high_order))
    apart: Transform = "fft" if transform == "fft" else "dct"
    stand_in = high if transform == "none" else bands(low, high, apart, cutoff, roll_off)
    rule = Rule((TRUNK, MODEL), signal, gate, stand_in, "absolute" if feature == "absolute" else "residual")
    return Method("FreqCa", (rule,), counted=spectral.COUNTED if schedule == "adaptive" else {})


def _forecast(predictor: str, order: int, damping: float, reference: bool, warmup: int) -> Weighted:
    """What extrapolates a band. The released code forms differences from step first_enhance - 1 on."""
    if predictor == "linear":
        return Linear(damping) if order else Hold()
    if predictor == "newton":
        return newton(order)
    if predictor == "taylor":
        return taylor(order, published=reference, since=warmup - 1)
    return hermite(order, published=reference, since=warmup - 1)
