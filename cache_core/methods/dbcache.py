"""DBCache (cache-dit, 2025): First-Block Cache with n blocks as the probe and m blocks that always run at the end.

    d = mean|r - r_a| / mean|r_a|,   skip while d < threshold, behind a warm-up, at most so many in a row

r is what the first `head` blocks add to the image tokens, r_a the same at the last computed step. On a skip what the
blocks between added is forecast, and the last `tail` blocks run on that, with text and image.

Differs from the original: one conditioning decides for all; the sum of d (`max_accumulated`) starts anew on every
computed step; skips count in steps of the run. It needs blocks, so that on a model that is not described here it stands
down.
"""

from __future__ import annotations

from ..extrapolation import Foca
from ..gates import AtMost, Between, Never, Sum, Under, all_of
from ..parameters import Parameter, published
from ..predictors import Hold, taylor
from ..signals import HeadL1
from ..types import Gate, Method, Place, Rule

PARAMETERS = (
    Parameter("threshold", 0.08, "How much the first blocks may differ from the last computed step. Higher: faster, "
              "further from the original picture. The authors' for FLUX: 0.08, 0.12, up to 0.24; 0 switches the node "
              "off.", high=10, step=0.005),
    Parameter("head", 8, "So many first blocks always run and decide. Higher: slower, decides better. The authors' "
              "F8B0, F4B0 and F1B0 use 8, 4 and 1.", low=1, high=100),
    Parameter("tail", 0, "So many last blocks always run, on what stood in. Higher: slower, closer. The authors' "
              "default is 0; 8 is their B8.", high=100),
    Parameter("warmup_steps", 8, "So many first steps are always computed. Higher: slower, composition closer to the "
              "original. The authors use 8 of 50; 3 to 4 suit 20 to 30 steps.", high=100),
    Parameter("max_consecutive", 1000, "At most this many steps skipped in a row. Lower: slower, safer. The authors' "
              "presets use 2 to 4, or no limit (1000); 0 switches the node off.", high=1000),
    Parameter("max_accumulated", 0.0, "At most so much of the change may add up over skipped steps. Lower: slower, "
              "safer. 0 sets no limit (the authors' default).", high=100, folded=True),
    Parameter("predictor", "hold", "What stands in: hold, taylor (follows the slope; DBCache + TaylorSeer) or foca "
              "(DBCache + FoCa). Bolder: taylor.", choices=("hold", "taylor", "foca"), folded=True),
)  # fmt: skip
PREDICTORS = {"hold": Hold(), "taylor": taylor(1), "foca": Foca()}


@published(
    "DBCache", PARAMETERS, aliases=("cache-dit", "cachedit", "dual block cache", "F8B0"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6, "head": 1},
    skipping={"threshold": 10.0, "head": 1, "tail": 1, "warmup_steps": 1, "max_consecutive": 2},
    advice="Careful settings on big models: more blocks decide, and the last ones repair.",
)  # fmt: skip
def dbcache(
    threshold: float, head: int, tail: int, warmup_steps: int, max_consecutive: int, max_accumulated: float,
    predictor: str,
) -> Method:  # fmt: skip
    """Fn, Bn, the threshold, the limits, and what stands in."""
    gate: Gate = Never()
    if threshold and max_consecutive:
        total = (Sum(max_accumulated),) if max_accumulated else ()
        gate = all_of(Between(warmup_steps, 1), AtMost(max_consecutive), Under(threshold), *total)
    place = Place("trunk", head=head, tail=tail)
    return Method("DBCache", (Rule((place,), HeadL1(), gate, PREDICTORS[predictor]),))
