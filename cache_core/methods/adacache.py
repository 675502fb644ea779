"""AdaCache (arXiv 2411.02397, sec. 3.2, eq. 4): how fast the middle of the trunk changes says how many steps to skip.

    c = ||p_a - p_b||_1 / ||p_b||_1 / (a - b),   the next computed step is a + codebook(c)

p is the image stream in the middle of the trunk at the last two computed steps, b before a. The decision falls one
computed step ahead, so that a skipped step runs nothing at all; it adds the trunk's last residual.

Differs from the original: one decision for the whole trunk, which is skipped as one (as in the ports for image models;
the paper skips modules); p is the stream behind the middle block, not one module's output. It needs blocks, so that on
a model that is not described here it stands down.
"""

from __future__ import annotations

from ..gates import Never, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..schedules import Codebook
from ..signals import MiddleRate
from ..types import TRUNK, Gate, Method, Rule
from .spectralcache import ORDERS, WINDOW

CODEBOOKS = {
    "fast": ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2)),
    "slow": ((0.08, 3), (0.16, 2)),
    "fast, 100 steps": ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3)),
}
PARAMETERS = (
    Parameter(
        "codebook", "fast", "How a rate of change becomes a number of steps. The paper's for 30 steps: fast (up to 6) "
        "or slow (up to 3); the third one is for 100 steps. Slow: closer to the original picture.",
        choices=tuple(CODEBOOKS),
    ),
    Parameter(
        "scale", 1.0, "Multiplies the rates of the codebook. Higher: more is skipped. 1 is the paper's, for Open-Sora; "
        "0.1 to 0.5 suit models that change less per step; 0 switches the node off.",
        high=1000,
    ),
    Parameter("motion", False, "The paper's motion term: where neighbouring frames differ much, less is skipped. Only "
              "where the model's tokens have frames; it changes nothing for a picture.", folded=True, late=True),
    *WINDOW,
)  # fmt: skip


@published(
    "AdaCache", PARAMETERS, orders=(ORDERS[1],), aliases=("ada cache", "adaptive caching"),
    never={"scale": 0.0}, refusing={"scale": 1e-6}, skipping={"codebook": "slow", "scale": 1000.0},
    advice="With offloaded or streamed weights: a skipped step touches no block and measures nothing.",
)  # fmt: skip
def adacache(codebook: str, scale: float, motion: bool, start_percent: float, end_percent: float) -> Method:
    """Which codebook, what multiplies its rates, and whether motion does."""
    gate: Gate = Never()
    if scale:
        gate = all_of(Within(start_percent, end_percent), Codebook(CODEBOOKS[codebook], scale))
    return Method("AdaCache", (Rule((TRUNK,), MiddleRate(motion), gate, Hold()),))
