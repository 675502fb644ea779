"""TaylorSeer (arXiv 2503.06923, sec. 3.2, eqs. 2-4): skipped steps follow a Taylor series of finite differences.

    D_0 = F,   D_(j+1) = (D_j - D_j at the computed step before) / gap;   F^ = sum over j of D_j · x^j / j!

with x the steps since the last computed one. The first `warmup_steps` are computed, then one in `interval`.

Differs from the original: the whole trunk is one feature (site trunk), or the model's output is (site model: the
authors' "lite"); site modules keeps one for every module, as the original does; the last step is computed; differences
of the warm-up's first steps form no second difference.
"""

from __future__ import annotations

from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..predictors import MOST_ORDER, taylor
from ..types import ATTENTION, MLP, MODEL, TRUNK, Gate, Method, Predictor, Rule, Signal
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
    "(lite), on any model and with less memory. modules: attention and MLP of every block (the paper's), with most "
    "memory.",
    choices=("trunk", "model", "modules"), folded=True,
)  # fmt: skip
PLACES = {"trunk": ((TRUNK, MODEL),), "model": ((MODEL,),), "modules": ((ATTENTION,), (MLP,))}


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
    return Method("TaylorSeer", rules_at(site, gate, stand_in))


def rules_at(site: str, gate: Gate, stand_in: Predictor) -> tuple[Rule, ...]:
    """One rule for each place: what is forecast is the feature itself."""
    return tuple(Rule(places, Signal(), gate, stand_in, "absolute") for places in PLACES[site])
