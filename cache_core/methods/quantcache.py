"""QuantCache (arXiv 2503.06545), its cache: each block rests for as many steps as its own rate of change allows.

    D = ||p_a - p_b||_1 / ||p_a||_1 / (a - b);   the block is next computed after `most` steps where D < calm, half as
    many where D < moving, else at once

p is what enters the block, at the last two computed steps a and b (hierarchical latent caching). Beyond that, up to
`most` steps, a block whose output is nearly its input, cos(in, out) > prune, is left out with nothing in its place
(pruning of redundant layers).

Differs from the original: its quantisation is no cache and is not in here. Its thresholds and intervals are not
published: these are AdaCache's (2411.02397) slow ones. D is relative, since an absolute one fits no second model; its
factor, the motion's gradient, is 1, as it is for a picture; what a block added last is added again. Blocks in between
are pruned by chance there, and here never. Each block costs one device-to-host read. It needs blocks.
"""

from __future__ import annotations

from ..gates import Never, Within, all_of
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..schedules import Pruned
from ..signals import BlockRate
from ..types import BLOCKS, Gate, Method, Rule
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter("calm", 0.08, "Up to this rate of change per step a block rests longest. Higher: faster, further from "
              "the original picture. 0.08 is AdaCache's; the authors publish none.", high=1000),
    Parameter("moving", 0.16, "Up to this rate it rests for half as many steps. Higher: faster. Twice calm is typical.",
              high=1000),
    Parameter("most", 3, "Steps from one computed step of a block to the next, at most. Higher: faster. 3 is typical, "
              "6 is bold; 1 switches the node off.", low=1, high=100),
    Parameter("prune", 1.0, "How alike what enters and leaves a block must be (the cosine) for it to be left out "
              "altogether. Lower: faster, further from the original. 1 (typical) prunes nothing; 0.995 is careful.",
              high=1, step=0.001),
    *WINDOW,
)  # fmt: skip


@published(
    "QuantCache", PARAMETERS, aliases=("quant cache", "hierarchical latent caching", "hlc"),
    orders=(Order("calm", "moving", "a calm block rests longer than a moving one"), ORDERS[1]),
    never={"most": 1}, refusing={"calm": 0.0, "moving": 0.0}, skipping={"calm": 1000.0, "moving": 1000.0},
    advice="Where some blocks change much less than others: each has an interval of its own.",
)  # fmt: skip
def quantcache(calm: float, moving: float, most: int, prune: float, start_percent: float, end_percent: float) -> Method:
    """Both rates, the longest interval, the likeness of a pruned block, and a window of progress."""
    gate: Gate = Never()
    if most > 1:
        book = Pruned(((calm, most), (moving, max(2, (most + 1) // 2))), alike=prune, longest=most)
        gate = all_of(Within(start_percent, end_percent), book)
    return Method("QuantCache", (Rule((BLOCKS,), BlockRate(), gate, Hold()),))
