"""MagCache (arXiv 2506.09045, sec. 3): the norm of the residual follows a curve that hardly depends on the prompt.

    R <- R · gamma_i,   E <- E + |1 - R|,   n <- n + 1;   skip while E < threshold and n <= max_consecutive

gamma_i is the ratio of the norm at this step to that at the step before (`magnitudes`); R, E, n start anew on every
computed step, and the first `retention` of the run is computed. So the skipped steps are known before the run begins.

Differs from the original: the curve is taken over the noise level, so that any number of steps and any schedule can
use it, a profile's too; the last step is computed; FLUX has no step that is never skipped; both branches of guidance
follow one curve.
"""

from __future__ import annotations

from ..gates import Never
from ..magnitudes import CURVES, chosen
from ..parameters import Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..schedules import Magnitude
from ..types import MODEL, TRUNK, Gate, Method, Rule, Signal

PARAMETERS = (
    Parameter("threshold", 0.1, "How much error of the magnitude may build up. Higher: faster, further from the "
              "original picture. The authors': FLUX 0.24, Kontext 0.05, Qwen-Image 0.10; 0 switches the node off.",
              high=10),
    Parameter("max_consecutive", 3, "At most this many steps skipped in a row (the paper's K). Higher: faster, errors "
              "add up. The authors': FLUX 5, Kontext 4, Qwen-Image 2; 0 switches the node off.", high=1000),
    Parameter("retention", 0.2, "This share of the first steps is always computed. Higher: slower, composition closer "
              "to the original. The authors': 0.1 for FLUX, 0.2 elsewhere.", high=1),
    Parameter("curve", "auto", "Whose magnitude curve counts. auto: the profile's, else the model's own, and nothing "
              "is skipped where none was published; a name: that model's, whatever the model is; custom: the one in "
              "ratios.", choices=("auto", *CURVES, "custom"), folded=True),
    Parameter("ratios", "", "For curve custom: the residual's norm over that of the step before, for each step of a "
              "calibration run, as in 1.0, 1.21, 1.12; of the conditional branch.", folded=True, late=True),
    Parameter("gain", False, "What stands in grows and shrinks with the curve, instead of being held (the authors'). "
              "Closer where the curve fits the model, further where not; it needs blocks.", folded=True, late=True),
)  # fmt: skip
EAGER = {"threshold": 10.0, "max_consecutive": 2, "retention": 0.0}


@published(
    "MagCache", PARAMETERS, aliases=("mag cache", "magnitude"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6, "retention": 1.0}, skipping=EAGER, profiled=("trunk",),
    advice="On FLUX and Qwen-Image, when the skipped steps should be the same whatever the prompt.",
)  # fmt: skip
def magcache(
    threshold: float, max_consecutive: int, retention: float, curve: str, ratios: str, gain: bool,
    profile: Profile | None,
) -> Method:  # fmt: skip
    """The paper's delta, K and retention ratio, and whose curve; `gain` is ours."""
    gate: Gate = Never()
    if threshold and max_consecutive:
        gate = Magnitude(threshold, max_consecutive, retention, chosen(curve, ratios, profile), gain)
    places = (TRUNK,) if gain else (TRUNK, MODEL)  # the curve is that of the trunk's residual
    return Method("MagCache", (Rule(places, Signal(), gate, Hold()),))
