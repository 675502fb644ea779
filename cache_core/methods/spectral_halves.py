"""SpectralCache's rule choosing a state: a small change skips the step, a larger one half of it, the rest is computed.

    A <- A + P(d) for each module since it was computed;   it is reused while A < tau_module · s(t)

d, P and s(t) are SpectralCache's (arXiv 2603.05315, eqs. 5-6): the modulated input's change, rescaled, and TADS. tau is
`skip` for the module that FEB-Cache's stage rule (arXiv 2503.07120) finds fragile, `half` for the other one: attention
is the fragile one in the first 60 % of the run, the MLP behind that. So below `skip` both are reused, up to `half` one,
and what was computed last counts for each module by itself.

Differs from the originals: the combination is our own. Neither FDC nor a table takes part. It needs blocks, so that on
a model that is not described here it stands down.
"""

from __future__ import annotations

from ..gates import Accumulate, AtMost, Never, Staged, Within, all_of
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..signals import ModulatedL1
from ..tables import State
from ..types import ATTENTION, MLP, Gate, Method, Rule
from .spectralcache import MAX_CONSECUTIVE, ORDERS, WINDOW

PARAMETERS = (
    Parameter("skip", 0.3, "How much change may build up before a step is no longer skipped whole. Higher: faster, "
              "further from the original picture. In FLUX units on every model; 0 skips halves only.", high=10),
    Parameter("half", 0.6, "How much change may build up before even half a step is computed again. Higher: faster, "
              "further from the original picture. Twice skip is typical; 0 switches the node off.", high=10),
    MAX_CONSECUTIVE,
    *WINDOW,
)  # fmt: skip


@published(
    "SpectralCache, half steps", PARAMETERS, aliases=("half steps", "states"),
    orders=(Order("skip", "half", "half a step is left out where a whole one would be too much"), ORDERS[1]),
    never={"skip": 0.0, "half": 0.0}, refusing={"skip": 1e-6, "half": 1e-6},
    skipping={"skip": 5.0, "half": 10.0, "max_consecutive": 2},
    advice="Where the picture should decide and half a step is enough; it holds as much memory as FEB-Cache.",
)  # fmt: skip
def spectral_halves(skip: float, half: float, max_consecutive: int, start_percent: float, end_percent: float) -> Method:
    """Both thresholds in FLUX units, the most skips in a row of each module, and a window of progress."""
    rules = []
    for place, module in ((ATTENTION, State.ATTENTION), (MLP, State.MLP)):
        gate: Gate = Never()
        if half and max_consecutive:
            limit = Staged(skip, 0.5, 1.5, half, module)
            gate = all_of(Within(start_percent, end_percent), AtMost(max_consecutive), Accumulate(limit))
        rules.append(Rule((place,), ModulatedL1(), gate, Hold(), "absolute"))
    return Method("SpectralCache, half steps", tuple(rules))
