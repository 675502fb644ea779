"""FasterCache, attention part (arXiv 2410.19355, sec. 3.2): every second attention output follows the last change.

    F_t = F_(t+1) + (F_(t+1) - F_(t+3)) · w(t),   w from 0 at the start of reuse to 1 at the end of the run

Attention alone is skipped, in every block, on every `interval`th step behind `start_percent`; the MLPs always run.

Differs from the original: image models have one attention a block (the paper's have a spatial and a temporal one); what
is kept is its output before the current step's gate; the first and the last step are computed. The paper's other part
derives the unconditional output; it is not in this method. It needs blocks, so that on a model that is not described
here it stands down.
"""

from __future__ import annotations

from ..extrapolation import Rising
from ..gates import Between, Every, Never, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..types import ATTENTION, Gate, Method, Predictor, Rule, Signal
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter(
        "interval", 2, "Compute attention on one step in this many. Higher: faster, further from the original picture. "
        "The paper's is 2; 1 switches the node off.", low=1, high=100,
    ),
    Parameter(
        "weight", "rising", "How much of the last change is followed: rising from nothing at the start of reuse to all "
        "of it at the end (the paper's), half (the released code's for Latte), or none, which holds.",
        choices=("rising", "half", "none"),
    ),
    Parameter(
        "start_percent", 0.33, "Nothing is skipped before this share of the run's steps. Higher: slower, composition "
        "closer to the original. The authors start at a third.", high=1, folded=True,
    ),
    WINDOW[1],
)  # fmt: skip


@published(
    "FasterCache (attention)", PARAMETERS, orders=(ORDERS[1],), aliases=("faster cache", "pyramid attention broadcast"),
    never={"interval": 1}, refusing={"start_percent": 1.0}, skipping={"interval": 3, "start_percent": 0.0},
    advice="Where attention is what costs: many tokens, large pictures; the MLPs of every step still run.",
)  # fmt: skip
def fastercache(interval: int, weight: str, start_percent: float, end_percent: float) -> Method:
    """The period, w(t) and a window of progress."""
    gate: Gate = Never()
    if interval > 1:
        gate = all_of(Within(start_percent, end_percent), Between(1, 1), Every(interval))
    stand_in: Predictor = Hold() if weight == "none" else Rising(start_percent, None if weight == "rising" else 0.5)
    return Method("FasterCache (attention)", (Rule((ATTENTION,), Signal(), gate, stand_in, "absolute"),))
