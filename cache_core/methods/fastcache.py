"""FastCache (arXiv 2505.20353, sec. 3.3): a block whose input hardly changed is skipped, and an affine map stands in.

    delta = ||H_t - H_(t-1)||_F / ||H_(t-1)||_F,   skip the block while delta < threshold;   then H_out = a·H_in + c

H is the block's input (image tokens), at every block anew. The paper derives the limit from a chi-square test: skip
while delta^2 <= chi2(N·D, 1 - alpha) / (N·D). That test is vacuous: at N·D = 1.4e7 (FLUX, 1024²) and alpha = 0.05 it
asks for delta < 1.0003, so an input may change by its own size. What decides in the authors' code is a plain relative
limit, and so here.

Differs from the original: a and c are fitted to each channel by least squares on the block's last computed input and
output (`affine`), where the authors' linear layers are untrained; tokens are not reduced; one conditioning decides for
all. Each block costs one device-to-host read. It needs blocks: on a model that is not described here it stands down.
"""

from __future__ import annotations

from ..gates import AtMost, Never, Under, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..signals import BlockChange
from ..types import BLOCKS, Gate, Method, Rule
from .first_block_cache import MOST
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter("threshold", 0.05, "How much a block's input may change. Higher: faster, further from the original "
              "picture. The authors' code: 0.05; tables that call it FastCache use 0.15; 0 switches the node off.",
              high=10, step=0.005),
    MOST,
    Parameter("against", "previous", "previous: the change from step to step (the authors'), so that a slow drift "
              "is never noticed. computed: from the block's last computed input, slower and safer.",
              choices=("previous", "computed")),
    *WINDOW,
)  # fmt: skip


@published(
    "FastCache", PARAMETERS, orders=(ORDERS[1],), aliases=("fast cache", "fastcache-xdit", "statistical cache"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 10.0, "max_consecutive": 2},
    advice="To compare with what tables call FastCache; blocks are replaced by far less than they do.",
)  # fmt: skip
def fastcache(threshold: float, max_consecutive: int, against: str, start_percent: float, end_percent: float) -> Method:
    """The limit of delta, a limit of skips in a row for each block, what delta is taken from, and a window."""
    gate: Gate = Never()
    if threshold and max_consecutive:
        gate = all_of(Within(start_percent, end_percent), AtMost(max_consecutive), Under(threshold))
    signal = BlockChange("computed" if against == "computed" else "previous")
    return Method("FastCache", (Rule((BLOCKS,), signal, gate, Hold(), "affine"),))
