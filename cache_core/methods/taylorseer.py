"""TaylorSeer (arXiv 2503.06923, sec. 3.2, eqs. 2-4): skipped steps follow a Taylor series of finite differences.

    D_0 = F,   D_(j+1) = (D_j - D_j at the computed step before) / gap;   F^ = sum over j of D_j · x^j / j!

with x the steps since the last computed one. The first `warmup_steps` are computed, then one in `interval`.

Differs from the original: the whole trunk is one feature (site trunk), or the model's output is (site model: the
authors' "lite"), where the original keeps one for every module; the last step is computed; differences of the warm-up's
first steps form no second difference.
"""

from __future__ import annotations

from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..predictors import MOST_ORDER, taylor
from ..types import MODEL, TRUNK, Gate, Method, Rule, Signal
from .ab_cache import INTERVAL

WARMUP = Parameter(
    "warmup_steps", 3, "So many first steps are always computed. Higher: slower, composition closer to the original. "
    "The authors use 3 for FLUX.",
    low=1, high=100,
)  # fmt: skip
ORDER = Parameter(
    "order", 1, "How what is skipped is forecast: 0 holds, 1 follows the slope, 2 the curve. Higher: bolder. The "
    "authors use 1 for FLUX, 2 in their tables.",
    high=MOST_ORDER,
)  # fmt: skip
SITE = Parameter(
    "site", "trunk", "trunk: all blocks are one feature, where they are described here. model: the model's output "
    "(lite), on any model and with less memory.",
    choices=("trunk", "model"), folded=True,
)  # fmt: skip
PLACES = {"trunk": (TRUNK, MODEL), "model": (MODEL,)}


@published(
    "TaylorSeer", (INTERVAL, ORDER, WARMUP, SITE), aliases=("taylor", "taylorseer lite", "forecast"),
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3, "warmup_steps": 1},
    advice="A fixed schedule on any model; FreqCa and Auto forecast the same feature more carefully.",
)  # fmt: skip
def taylorseer(interval: int, order: int, warmup_steps: int, site: str) -> Method:
    """N, the order, first_enhance, and where."""
    gate: Gate = Never()
    if interval > 1:
        gate = all_of(Between(warmup_steps, 1), Every(interval, anchor=warmup_steps - 1))
    stand_in = taylor(order, published=True, since=warmup_steps - 1)
    return Method("TaylorSeer", (Rule(PLACES[site], Signal(), gate, stand_in, "absolute"),))
