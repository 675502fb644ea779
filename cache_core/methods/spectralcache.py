"""SpectralCache (arXiv 2603.05315v1, Algorithm 1): TeaCache's accumulated distance, with three more ways to say no.

On every evaluation, with M the first block's modulated input (sec. 4.5, line numbers of Algorithm 1):

    d       = ||M_t - M_{t-1}||_1 / ||M_{t-1}||_1                     line 2     signals.ModulatedL1
    A      <- A + P(d)                                                line 3     gates.Accumulate
    tau_eff = tau · s(t)                                    TADS      lines 4-5  gates.Bell
    skip only if c < C_max                                  CEB       line 6     gates.AtMost
    and A < tau_eff                                                   line 8     gates.Accumulate
    and delta_low <= tau_eff·gamma_low, delta_high <= ...   FDC       lines 7-8  gates.Below
    skip:    H_L = H_0 + R,  c <- c + 1,  A is kept                   line 9     predictors.Hold
    compute: R = H_L - H_0,  c <- 0,      A <- 0                      line 10    the engine; gate.settle

First and last step are always computed: the engine sees to that for every method.

Components off, for the paper's Table 3: TADS s_min = s_max = 1; CEB a large C_max; FDC large gammas. All off: TeaCache.

Differs from the original: where the paper is silent, M_{t-1} is the previous evaluation of the same conditioning
(computed or skipped); a negative P(d) counts 0 (abs where published so); `threshold` is in FLUX units on every model,
times the model's `unit`; with a profile P and the unit are fitted to the user's own model (`fits`). With the paper's
defaults FDC rejects next to nothing, since raw deltas meet rescaled thresholds: the report counts it.
"""

from __future__ import annotations

from ..fits import fitted
from ..gates import Accumulate, AtMost, Bell, Below, Never, Within, all_of
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..signals import ModulatedL1
from ..types import MODEL, TRUNK, Gate, Method, Rule

FDC_LOW, FDC_HIGH = "FDC low band", "FDC high band"

THRESHOLD = Parameter(
    "threshold", 0.6, "How much change may build up before a step is computed again. Higher: faster, further from the "
    "original picture. 0.25 careful, 0.4 balanced, 0.6 fast (the paper's), 0.8 draft; 0 switches the node off.",
    high=10,
)  # fmt: skip
MAX_CONSECUTIVE = Parameter(
    "max_consecutive", 2, "At most this many steps skipped in a row. Higher: faster, but errors add up. 2 is the "
    "paper's, 3 to 4 for drafts; 0 switches the node off.",
    high=1000,
)  # fmt: skip
SHAPE = (
    Parameter(
        "tads_min", 0.5, "Multiplies the threshold at the first and last steps. Lower: these are computed more often. "
        "The paper: 0.5; 1 here and in tads_max keeps the threshold the same throughout.",
        high=10, folded=True,
    ),
    Parameter(
        "tads_max", 1.5, "Multiplies the threshold in the middle of the run. Higher: more is skipped there. The paper "
        "uses 1.5.",
        high=10, folded=True,
    ),
    Parameter(
        "band_split", 0.5, "Which share of the channels counts as the low band in the two checks below. Lower: the "
        "low-band check watches fewer channels, the high-band check more. The paper uses 0.5.",
        low=0.01, high=0.99, folded=True,
    ),
    Parameter(
        "gamma_low", 0.8, "A step is computed if the low band alone changed by more than this times the threshold. "
        "Lower: stricter. The paper uses 0.8, which rarely decides anything; 0.3 makes it matter, 1000 switches it "
        "off.",
        high=1000, folded=True,
    ),
    Parameter(
        "gamma_high", 1.5, "The same for the high band. Lower: stricter, slower. The paper uses 1.5; 1000 switches it "
        "off.",
        high=1000, folded=True,
    ),
)  # fmt: skip
WINDOW = (
    Parameter(
        "start_percent", 0.0, "Nothing is skipped before this share of the run's steps. Higher: slower, composition "
        "closer to the original. 0 is typical; 0.1 to 0.2 protects the layout.",
        high=1, folded=True,
    ),
    Parameter(
        "end_percent", 1.0, "Nothing is skipped after this share of the run's steps. Lower: slower, finer detail. 1 is "
        "typical; 0.9 protects texture.",
        high=1, folded=True,
    ),
)  # fmt: skip
ORDERS = (
    Order("tads_min", "tads_max", "set both to 1 to switch TADS off; the paper uses 0.5 and 1.5"),
    Order("start_percent", "end_percent", "0 and 1 allow skipping in the whole run"),
)
COUNTED = {"FDC": (FDC_LOW, FDC_HIGH)}
EAGER = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}


@published(
    "SpectralCache", (THRESHOLD, MAX_CONSECUTIVE, *SHAPE, *WINDOW), orders=ORDERS,
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping=EAGER, own_node=True, profiled=("trunk",),
    advice="Where a decision must follow the picture and no forecast is wanted; Auto is closer at the same speed.",
)  # fmt: skip
def spectralcache(
    threshold: float,
    max_consecutive: int,
    tads_min: float,
    tads_max: float,
    band_split: float,
    gamma_low: float,
    gamma_high: float,
    start_percent: float,
    end_percent: float,
    profile: Profile | None,
) -> Method:
    """tau, C_max, s_min, s_max, r, gamma_low, gamma_high with the paper's defaults (sec. 5.1); a window of progress.

    `threshold` 0 or `max_consecutive` 0: nothing is ever skipped.
    """
    gate: Gate = Never()
    if threshold and max_consecutive:
        decide = decision(threshold, max_consecutive, tads_min, tads_max, gamma_low, gamma_high)
        gate = all_of(Within(start_percent, end_percent), fitted(decide, profile))
    rule = Rule((TRUNK, MODEL), ModulatedL1(band_split), gate, Hold())
    return Method("SpectralCache", (rule,), counted=COUNTED)


def decision(
    threshold: float, max_consecutive: int, tads_min: float, tads_max: float, gamma_low: float, gamma_high: float
) -> Gate:
    """Algorithm 1's gate, lines 3-8: CEB, then A < tau_eff, then FDC."""
    tau_eff = Bell(threshold, tads_min, tads_max)
    return all_of(
        AtMost(max_consecutive),
        Accumulate(tau_eff),
        Below("low", tau_eff, gamma_low, FDC_LOW),
        Below("high", tau_eff, gamma_high, FDC_HIGH),
    )
