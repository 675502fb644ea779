"""AB-Cache (arXiv 2504.10540): a skipped step extrapolates the last k outputs, as an Adams-Bashforth solver would.

    f_n = sum over j = 1 .. k of (-1)^(j+1) · C(k, j) · f_(n-j)        k = 2: f_n = 2 f_(n-1) - f_(n-2)

The first `warmup_steps` are computed, then one in `interval` (FLUX, 50 steps: 5 and 6, order 2; order 5 beside it).

Differs from the original: the last step is computed. The paper leaves open what the queue holds: `history` computed
keeps computed outputs only, so that all steps of a gap get the same one; recursive lets what stood in enter the queue.
`spacing` true uses the noise levels that the computed steps really have.
"""

from __future__ import annotations

from ..extrapolation import AdamsBashforth, Recursive
from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..types import GUIDED, MODEL, Gate, Method, Predictor, Rule, Signal

INTERVAL = Parameter(
    "interval", 6, "Compute one step in this many. Higher: faster, further from the original picture. 2 to 4 suit 20 "
    "to 30 steps; the paper's 6 is for 50; 1 switches the node off.",
    low=1, high=100,
)  # fmt: skip
WARMUP = Parameter(
    "warmup_steps", 5, "So many first steps are always computed. Higher: slower, composition closer to the original. "
    "The authors use 5 of 50; 3 suits 20 to 30 steps.",
    low=1, high=100,
)  # fmt: skip
PARAMETERS = (
    INTERVAL,
    Parameter("order", 2, "From how many outputs. Higher: bolder. The authors use 2, or 5; 1 holds.", low=1, high=5),
    WARMUP,
    Parameter("spacing", "unit", "unit: as if computed steps were one apart (the paper's). true: where they lie, "
              "bolder, and exact on straight paths.", choices=("unit", "true")),
    Parameter("history", "computed", "computed: from computed outputs only. recursive: also from what stood in, always "
              "one step apart.", choices=("computed", "recursive"), folded=True),
    Parameter("site", "guided", "guided: the result of guidance (the paper's). model: each conditioning by itself.",
              choices=("guided", "model"), folded=True),
)  # fmt: skip


@published(
    "AB-Cache", PARAMETERS, aliases=("abcache", "adams-bashforth"),
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3, "warmup_steps": 1},
    advice="On any model, at short intervals; not with multistep samplers, which extrapolate themselves.",
)  # fmt: skip
def ab_cache(interval: int, order: int, warmup_steps: int, spacing: str, history: str, site: str) -> Method:
    """N, k, the warm-up, and how the queue is read."""
    gate: Gate = all_of(Between(warmup_steps, 1), Every(interval)) if interval > 1 else Never()
    stand_in: Predictor = AdamsBashforth(order, "true" if spacing == "true" else "unit")
    if history == "recursive":
        stand_in = Recursive(order)
    return Method("AB-Cache", (Rule((GUIDED, MODEL) if site == "guided" else (MODEL,), Signal(), gate, stand_in),))
