"""EasyCache (arXiv 2507.02860, sec. 3.3; ComfyUI's own node): the input's change, times a gain, is the output's.

    k = mean|dOut| / mean|dx| over the last two computed steps,   A <- A + k · mean|x - x'| / mean|Out|
    skip while A < threshold;   on a skip Out = x + (Out - x) of the last computed step

`rule` core: x' is the input of the last computed step, so that growing distances are summed (ComfyUI); paper: that of
the step before. The first two steps inside the window are computed.

Differs from ComfyUI's node: each conditioning keeps what is its own, whatever is batched, and nothing is written into
the sampler's latent; the first and the last step are computed; on models that are no flow models Out is the ODE
derivative.
"""

from __future__ import annotations

from ..gates import Never, Sum, Within, all_of
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..signals import InputChange
from ..types import MODEL, Gate, Method, Rule

THRESHOLD = Parameter(
    "threshold", 0.2, "How much change may build up before a step is computed again. Higher: faster, further from the "
    "original picture. ComfyUI's default is 0.2; the paper: 0.05; 0.1 careful, 0.8 draft; 0 switches the node off.",
    high=10,
)  # fmt: skip
START = Parameter("start_percent", 0.15, "Nothing is skipped before this share of the run's steps. Higher: slower, "
                  "composition closer to the original. ComfyUI's: 0.15.", high=1, folded=True)  # fmt: skip
END = Parameter("end_percent", 0.95, "Nothing is skipped after this share of the run's steps. Lower: slower, finer "
                "detail. ComfyUI's: 0.95.", high=1, folded=True)  # fmt: skip
RULE = Parameter("rule", "core", "core: as in ComfyUI's node. paper: changes between neighbouring steps are summed, "
                 "which skips more.", choices=("core", "paper"), folded=True)  # fmt: skip
PARAMETERS = (THRESHOLD, START, END, RULE)
ORDERS = (Order("start_percent", "end_percent", "0.15 and 0.95 are ComfyUI's"),)
EAGER = {"threshold": 10.0, "start_percent": 0.0}


@published(
    "EasyCache", PARAMETERS, orders=ORDERS, aliases=("easy cache",),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping=EAGER,
    advice="On any model without calibration; it shrinks what it reuses, which suits late steps.",
)  # fmt: skip
def easycache(threshold: float, start_percent: float, end_percent: float, rule: str) -> Method:
    """tau, a window of progress, and whose sum."""
    gate = decision(threshold, start_percent, end_percent, measured=2)
    return Method("EasyCache", (Rule((MODEL,), InputChange(rule == "core"), gate, Hold(), "output"),))


def decision(threshold: float, start_percent: float, end_percent: float, measured: int) -> Gate:
    """The first steps in the window measure, as in ComfyUI's nodes."""
    return all_of(Within(start_percent, end_percent, measured), Sum(threshold)) if threshold else Never()
