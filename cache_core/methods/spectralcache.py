"""SpectralCache (arXiv 2603.05315v1, Algorithm 1): TeaCache's accumulated distance, with three more ways to say no.

On every evaluation, with M the first block's modulated input (sec. 4.5, line numbers of Algorithm 1):

    d       = ||M_t - M_{t-1}||_1 / ||M_{t-1}||_1                     line 2     signals.modulated_l1
    A      <- A + P(d)                                                line 3     gates.accumulate
    tau_eff = tau · s(t)                                    TADS      lines 4-5  gates.Bell
    skip only if c < C_max                                  CEB       line 6     gates.at_most
    and A < tau_eff                                                   line 8     gates.accumulate
    and delta_low <= tau_eff·gamma_low, delta_high <= ...   FDC       lines 7-8  gates.below
    skip:    H_L = H_0 + R,  c <- c + 1,  A is kept                   line 9     predictors.hold
    compute: R = H_L - H_0,  c <- 0,      A <- 0                      line 10    the engine; gate.settle

First and last step are always computed: the engine sees to that for every method.

Components off, for the paper's Table 3: TADS s_min = s_max = 1; CEB a large C_max; FDC large gammas. All off: TeaCache.

Differs from the original: where the paper is silent, M_{t-1} is the previous evaluation of the same conditioning
(computed or skipped); a negative P(d) counts 0 (abs where published so); `threshold` is in FLUX units on every model,
times the model's `unit`. With the paper's defaults FDC rejects next to nothing, since raw deltas meet rescaled
thresholds: the report counts it.
"""

from __future__ import annotations

from ..gates import Bell, accumulate, all_of, at_most, below, never, within
from ..parameters import check
from ..predictors import hold
from ..signals import modulated_l1
from ..types import TRUNK, Gate, Method, Rule

FDC_LOW, FDC_HIGH = "FDC low band", "FDC high band"


def spectralcache(
    threshold: float = 0.6,
    max_consecutive: int = 2,
    tads_min: float = 0.5,
    tads_max: float = 1.5,
    band_split: float = 0.5,
    gamma_low: float = 0.8,
    gamma_high: float = 1.5,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Method:
    """tau, C_max, s_min, s_max, r, gamma_low, gamma_high with the paper's defaults (sec. 5.1); a window of progress.

    Raises `CacheError` on values that no run could use. `threshold` 0 or `max_consecutive` 0: nothing is ever skipped.
    """
    params = dict(locals())
    check(params, RANGES, ORDERED)
    if threshold == 0 or max_consecutive == 0:
        gate = never()
    else:
        decide = decision(threshold, max_consecutive, tads_min, tads_max, gamma_low, gamma_high)
        gate = all_of(within(start_percent, end_percent), decide)
    return Method("SpectralCache", (Rule(TRUNK, modulated_l1(band_split), gate, hold()),), params=params)


def decision(
    threshold: float, max_consecutive: int, tads_min: float, tads_max: float, gamma_low: float, gamma_high: float
) -> Gate:
    """Algorithm 1's gate, lines 3-8: CEB, then A < tau_eff, then FDC."""
    tau_eff = Bell(threshold, tads_min, tads_max)
    return all_of(
        at_most(max_consecutive),
        accumulate(tau_eff),
        below("low", tau_eff, gamma_low, FDC_LOW),
        below("high", tau_eff, gamma_high, FDC_HIGH),
    )


RANGES = {
    "threshold": (0.0, 10.0),
    "max_consecutive": (0, 1000),
    "tads_min": (0.0, 10.0),
    "tads_max": (0.0, 10.0),
    "band_split": (0.01, 0.99),
    "gamma_low": (0.0, 1000.0),
    "gamma_high": (0.0, 1000.0),
    "start_percent": (0.0, 1.0),
    "end_percent": (0.0, 1.0),
}
"""Smallest and largest value of every parameter."""

ORDERED = (
    ("tads_min", "tads_max", "set both to 1 to switch TADS off; the paper uses 0.5 and 1.5"),
    ("start_percent", "end_percent", "0 and 1 allow skipping in the whole run"),
)
"""Pairs of which the first may not exceed the second, and what to do."""
