"""SeaCache (arXiv 2602.18993): TeaCache's rule, with the noise filtered out of what it compares.

    d = ||F_t - F_(t-1)||_1 / ||F_(t-1)||_1,   A <- A + d,   skip while A < threshold;   on a skip H_L = H_0 + R

F is the first block's modulated input behind the Wiener filter of its noise level, G = a·S / (a²·S + b²) with a = 1 -
sigma, b = sigma and S = f^-2 (f^-3 for video), divided by its mean (`spectrum.content`): high frequencies, noise until
late, hardly count. No polynomial is fitted, so that any described model can use the same thresholds.

Differs from the original: the constant of S, which its text leaves open, is that of f in cycles a token; inputs of
computed steps are filtered too; one conditioning decides for all; the last step is computed. It needs blocks, so that
on a model that is not described here it stands down.
"""

from __future__ import annotations

from ..gates import Never, Sum, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..signals import ContentL1
from ..types import TRUNK, Gate, Method, Rule
from .spectralcache import ORDERS, WINDOW

THRESHOLD = Parameter(
    "threshold", 0.3, "How much change may build up before a step is computed again. Higher: faster, further from the "
    "original picture. The authors' for FLUX, 50 steps: 0.3 (2.2x), 0.6 (3.3x); 0 switches the node off.",
    high=10,
)  # fmt: skip


@published(
    "SeaCache", (THRESHOLD, *WINDOW), orders=(ORDERS[1],), aliases=("sea cache", "spectral evolution"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 10.0},
    advice="Where TeaCache would be used, on a model without a fitted polynomial; its threshold means more there.",
)  # fmt: skip
def seacache(threshold: float, start_percent: float, end_percent: float) -> Method:
    """delta and a window of progress."""
    gate: Gate = Never()
    if threshold:
        gate = all_of(Within(start_percent, end_percent), Sum(threshold))
    return Method("SeaCache", (Rule((TRUNK,), ContentL1(), gate, Hold()),))
