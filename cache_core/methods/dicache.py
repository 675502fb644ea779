"""DiCache (arXiv 2508.17356): a shallow probe runs on every step; it says when to skip, and how to mix what is kept.

    A <- A + ||y_t - y_(t-1)||_1 / ||y_(t-1)||_1,   skip while A < threshold
    on a skip r = r_b + gamma · (r_a - r_b),   gamma = |h - h_b| / |h_a - h_b|, kept within 1 .. 1.5

y is the image stream behind the first `head` blocks, h what these add, r what the others add; a is the last computed
step, b the one before it. The first fifth of the run is computed (the released FLUX script).

Differs from the original: what is kept begins behind the probe, whose own part is fresh on every step; one conditioning
decides for all. It needs blocks, so that on a model that is not described here it stands down.
"""

from __future__ import annotations

from ..extrapolation import Aligned
from ..gates import Never, Sum, Within, all_of
from ..parameters import Parameter, published
from ..signals import ProbeL1
from ..types import Gate, Method, Place, Rule
from .spectralcache import ORDERS, WINDOW

START = Parameter("start_percent", 0.2, "Nothing is skipped before this share of the run's steps. Higher: slower, "
                  "composition closer to the original. The authors' for FLUX: 0.2.", high=1, folded=True)  # fmt: skip
PARAMETERS = (
    Parameter("threshold", 0.4, "How much change of the probe may build up before a step is computed again. Higher: "
              "faster, further from the original picture. The authors': FLUX 0.4; Wan 0.2; 0 switches the node off.",
              high=10),
    Parameter("head", 1, "So many first blocks are the probe and always run. Higher: slower, decides better. The "
              "authors use 1.", low=1, high=100, folded=True),
    START,
    WINDOW[1],
)  # fmt: skip


@published(
    "DiCache", PARAMETERS, orders=(ORDERS[1],), aliases=("di cache", "probe"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 3.0, "start_percent": 0.0},
    advice="Where the picture itself should decide and steer the forecast; one block runs on every step.",
)  # fmt: skip
def dicache(threshold: float, head: int, start_percent: float, end_percent: float) -> Method:
    """delta, m, and a window of progress."""
    gate: Gate = Never()
    if threshold:
        gate = all_of(Within(start_percent, end_percent, computed=1), Sum(threshold))
    return Method("DiCache", (Rule((Place("trunk", head=head),), ProbeL1(), gate, Aligned()),))
