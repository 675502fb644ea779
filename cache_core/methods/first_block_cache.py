"""First-Block Cache (ParaAttention, 2025; Comfy-WaveSpeed): skip the other blocks when the first one did as before.

    d = mean|r - r_a| / mean|r_a|,   skip while d < threshold;   on a skip H = h + R

r is what the first block adds to the image tokens, r_a the same at the last computed step, h its output, R what the
blocks behind it added then. Nothing is summed up: the comparison is always with the last computed step.

Differs from the original: one conditioning decides for all, each with its own R. It needs blocks, so that on a model
that is not described here it stands down.
"""

from __future__ import annotations

from ..gates import AtMost, Never, Under, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..signals import HeadL1
from ..types import Gate, Method, Place, Rule
from .spectralcache import ORDERS, WINDOW

THRESHOLD = Parameter(
    "threshold", 0.12, "How much the first block may differ from the last computed step. Higher: faster, further from "
    "the original picture. The authors' for FLUX: 0.06 careful, 0.08, 0.10, 0.12 fast; 0 switches the node off.",
    high=10, step=0.005,
)  # fmt: skip
MOST = Parameter(
    "max_consecutive", 1000, "At most this many steps skipped in a row. Lower: slower, safer. The authors set no limit "
    "(1000 here); 2 to 4 protect the picture; 0 switches the node off.",
    high=1000,
)  # fmt: skip


@published(
    "First-Block Cache", (THRESHOLD, MOST, *WINDOW), orders=(ORDERS[1],),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 10.0, "max_consecutive": 2},
    aliases=("fbcache", "first block cache", "paraattention", "wavespeed"),
    advice="On big models, where one block costs little; it sees the picture itself, and needs no calibration.",
)  # fmt: skip
def first_block_cache(threshold: float, max_consecutive: int, start_percent: float, end_percent: float) -> Method:
    """The threshold, a limit of skips in a row and a window of progress; 0 skips nothing."""
    gate: Gate = Never()
    if threshold and max_consecutive:
        gate = all_of(Within(start_percent, end_percent), AtMost(max_consecutive), Under(threshold))
    return Method("First-Block Cache", (Rule((Place("trunk", head=1),), HeadL1(), gate, Hold()),))
