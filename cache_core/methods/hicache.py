"""HiCache (arXiv 2508.16984, sec. 3): TaylorSeer with Hermite polynomials, scaled down, in place of powers.

    F^ = sum over j of D_j · sigma^j · H_j(sigma · x) / j!

with D_j the finite differences of TaylorSeer and x the steps since the last computed one. sigma = 0.5: the slope counts
half, which is a damped Taylor series. The first `warmup_steps` are computed, then one in `interval`.

Differs from the original: the whole trunk is one feature (or the model's output is), where the original keeps one for
every module; the last step is computed.
"""

from __future__ import annotations

from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..predictors import MOST_ORDER, hermite
from ..types import Gate, Method
from .taylorseer import SITE, WARMUP, rules_at

INTERVAL = Parameter(
    "interval", 7, "Compute one step in this many. Higher: faster, further from the original picture. 2 to 4 suit 20 "
    "to 30 steps; the authors' 7 is for 50; 1 switches the node off.",
    low=1, high=100,
)  # fmt: skip
ORDER = Parameter(
    "order", 2, "How what is skipped is forecast: 0 holds, 1 follows the slope, 2 the curve. Higher: bolder. The "
    "authors use 2.",
    high=MOST_ORDER,
)  # fmt: skip
SCALE = Parameter(
    "scale", 0.5, "The sigma of the polynomials. Lower: the forecast is held back more. The authors use 0.5; at 0.71 "
    "the slope counts in full.",
    low=0.01, high=1, folded=True,
)  # fmt: skip


@published(
    "HiCache", (INTERVAL, ORDER, WARMUP, SCALE, SITE), aliases=("hermite", "hi cache"),
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3, "warmup_steps": 1},
    advice="Where TaylorSeer overshoots: long intervals, few steps.",
)  # fmt: skip
def hicache(interval: int, order: int, warmup_steps: int, scale: float, site: str) -> Method:
    """N, the order, first_enhance, sigma, and where."""
    gate: Gate = Never()
    if interval > 1:
        gate = all_of(Between(warmup_steps, 1), Every(interval, anchor=warmup_steps - 1))
    stand_in = hermite(order, sigma=scale, published=True, since=warmup_steps - 1)
    return Method("HiCache", rules_at(site, gate, stand_in))
