"""SmoothCache (arXiv 2411.10510, sec. 2.2): each module type rests as long as its measured change stays below alpha.

    from each computed step t on: the longest gap j <= K with  |F_(t+j) - F_t|_1 / |F_(t+j)|_1 <= alpha,  then compute

The changes are a calibration's, averaged over samples and over all blocks of one type, so that all depths rest
together; attention and MLP each have their own schedule.

Differs from the original: without a profile, the same rule on a stated drift, fastest at the start, of which `alpha` is
a share of the whole run; what is reused is a module's output before the current step's gate. It needs blocks, so that
on a model that is not described here it stands down.
"""

from __future__ import annotations

from functools import partial

from ..gates import Never, Within, all_of
from ..generators import misfit, smoothed, stated
from ..parameters import Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..schedules import Listed
from ..tables import State
from ..types import ATTENTION, MLP, Gate, Method, Rule, Schedule, Signal
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter("alpha", 0.15, "How much a module may have changed before it is computed again. Higher: faster, further "
              "from the original picture. The authors use 0.08 to 0.35 for DiT; 0 switches the node off.", high=10),
    Parameter("longest", 3, "At most so many steps in a row reuse a module. Higher: faster. The authors use 3; with a "
              "profile no more than it has measured.", low=1, high=16),
    *WINDOW,
)  # fmt: skip


@published(
    "SmoothCache", PARAMETERS, orders=(ORDERS[1],), aliases=("smooth cache",), profiled=("modules",),
    never={"alpha": 0.0}, refusing={"alpha": 1e-6}, skipping={"alpha": 10.0, "longest": 2},
    advice="With a profile of your model: one schedule for attention and one for the MLPs, each as its changes allow.",
)  # fmt: skip
def smoothcache(
    alpha: float, longest: int, start_percent: float, end_percent: float, profile: Profile | None
) -> Method:
    """alpha, K and a window of progress."""
    rules = []
    for place, module in ((ATTENTION, State.ATTENTION), (MLP, State.MLP)):
        gate: Gate = Never()
        if alpha:
            listed = Listed(partial(_rests, profile, module, alpha, longest), note=partial(misfit, profile))
            gate = all_of(Within(start_percent, end_percent), listed)
        rules.append(Rule((place,), Signal(), gate, Hold(), "absolute"))
    return Method("SmoothCache", tuple(rules))


def _rests(profile: Profile | None, module: State, alpha: float, longest: int, schedule: Schedule) -> frozenset[int]:
    if profile is None or misfit(profile, schedule):
        return stated(schedule.total, alpha, longest)
    return smoothed(profile, module, alpha, longest)
