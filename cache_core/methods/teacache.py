"""TeaCache (arXiv 2411.19108, sec. 3.3, eqs. 5-7): the modulated input's change, rescaled and summed up to a limit.

    d = ||M_t - M_{t-1}||_1 / ||M_{t-1}||_1,   A <- A + P(d),   skip while A < threshold;   on a skip H_L = H_0 + R

M is the first block's modulated input, P the polynomial that the authors fitted to the model (`coefficients`), R the
trunk's last residual. A becomes 0 on every computed step; the first and the last one are computed.

Differs from the original: `threshold` is in FLUX units on every model, times the model's `unit`; a negative P(d) counts
0, unless the model's row takes its absolute value; one conditioning decides for all. With a profile P and the unit are
fitted to the user's own model (`fits`). It is SpectralCache with its
components off (tests/core/test_methods.py).
"""

from __future__ import annotations

from ..fits import fitted
from ..gates import Accumulate, Bell, Never, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..signals import ModulatedL1
from ..types import MODEL, TRUNK, Gate, Method, Rule
from .spectralcache import ORDERS, WINDOW

THRESHOLD = Parameter(
    "threshold", 0.4, "How much change may build up before a step is computed again. Higher: faster, further from the "
    "original picture. The authors' for FLUX: 0.25 (1.5x), 0.4 (1.8x), 0.6 (2x), 0.8 (2.25x); 0 switches the node off.",
    high=10,
)  # fmt: skip


@published(
    "TeaCache", (THRESHOLD, *WINDOW), orders=(ORDERS[1],), aliases=("tea cache",),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 10.0}, profiled=("trunk",),
    advice="To compare with what most published tables call TeaCache; SpectralCache adds limits that it lacks.",
)  # fmt: skip
def teacache(threshold: float, start_percent: float, end_percent: float, profile: Profile | None) -> Method:
    """The threshold in FLUX units and a window of progress; 0 skips nothing."""
    gate: Gate = Never()
    if threshold:
        gate = all_of(Within(start_percent, end_percent), fitted(Accumulate(Bell(threshold)), profile))
    return Method("TeaCache", (Rule((TRUNK, MODEL), ModulatedL1(), gate, Hold()),))
