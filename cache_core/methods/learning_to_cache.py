"""Learning-to-Cache (arXiv 2406.01733): a static mask says which layers' modules rest on every second step.

    F_(t, layer, module) <- F_(t-1, layer, module)   where the mask is set;   steps of odd number only

The mask is filled from a profile, by the knapsack: the units (step, layer, module) whose measured change over one step
is smallest, until `share` of the units of those steps rest.

Differs from the original: its router is trained on the model's data against the uncached prediction; here nothing is
trained. Without a profile all layers rest on the earliest of those steps, as the published router did on DDIM. It needs
blocks, so that on a model that is not described here it stands down.
"""

from __future__ import annotations

from functools import partial

from ..gates import Never, Within, all_of
from ..generators import masked, misfit
from ..parameters import Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..schedules import Listed
from ..tables import State
from ..types import ATTENTION, MLP, Gate, Method, Rule, Schedule, Signal, Step
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter("share", 0.5, "How many of every second step's modules rest. Higher: faster, further from the original "
              "picture; 1 is at most twice as fast. The authors' masks rest 0.4 to 0.9; 0 switches the node off.",
              high=1, step=0.05),
    *WINDOW,
)  # fmt: skip


@published(
    "Learning-to-Cache", PARAMETERS, orders=(ORDERS[1],), aliases=("learning to cache", "l2c", "router"),
    never={"share": 0.0}, refusing={"start_percent": 1.0}, skipping={"share": 1.0}, profiled=("modules",),
    advice="With a profile of your model: single layers rest where they change least, never two steps in a row.",
)  # fmt: skip
def learning_to_cache(share: float, start_percent: float, end_percent: float, profile: Profile | None) -> Method:
    """The share of the units, and a window of progress."""
    rules = []
    for place, module in ((ATTENTION, State.ATTENTION), (MLP, State.MLP)):
        gate: Gate = Never()
        if share:
            listed = Listed(partial(_rests, profile, module, share), partial(_layers, profile, module, share),
                            note=partial(misfit, profile))  # fmt: skip
            gate = all_of(Within(start_percent, end_percent), listed)
        rules.append(Rule((place,), Signal(), gate, Hold(), "absolute"))
    return Method("Learning-to-Cache", tuple(rules))


def _rests(profile: Profile | None, module: State, share: float, schedule: Schedule) -> frozenset[int]:
    return frozenset(
        step for step, layers in masked(profile, schedule, share)[module].items() if layers is None or layers
    )


def _layers(profile: Profile | None, module: State, share: float, step: Step) -> frozenset[int] | None:
    return None if step.schedule is None else masked(profile, step.schedule, share)[module].get(step.index)
