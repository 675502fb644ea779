"""FoCa (arXiv 2508.16211): forecast with BDF2, then calibrate with Heun's rule, from one skipped step to the next.

    f_n = f_(n-1) + (D + f_(n-1) - f_(n-2)) / 2

D is the difference of the last two computed features; at the last computed step a, f_(a-1) is what stood in before it.
The first `warmup_steps` are computed, then one in `interval`. Formula as in cache-dit's code (`extrapolation.Foca`).

Differs from the original: the whole trunk is one feature (or the model's output is), where the original keeps one for
every module; D is divided by the steps that it spans, unless `reference`, where it is not, as in the code: such a slope
is `interval` times too steep. The last step is computed.
"""

from __future__ import annotations

from ..extrapolation import Foca
from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..types import Gate, Method
from .ab_cache import INTERVAL
from .taylorseer import SITE, WARMUP, rules_at

REFERENCE = Parameter(
    "reference", False, "Use the published code's slope, which does not count the steps between computed ones: bolder, "
    "for comparison with the paper. Off measures it per step.",
    folded=True,
)  # fmt: skip


@published(
    "FoCa", (INTERVAL, WARMUP, REFERENCE, SITE), aliases=("forecast then calibrate", "bdf2", "heun"),
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3, "warmup_steps": 1},
    advice="A fixed schedule on any model, steadier than TaylorSeer at long intervals.",
)  # fmt: skip
def foca(interval: int, warmup_steps: int, reference: bool, site: str) -> Method:
    """N, the warm-up, which slope, and where."""
    gate: Gate = Never()
    if interval > 1:
        gate = all_of(Between(warmup_steps, 1), Every(interval, anchor=warmup_steps - 1))
    return Method("FoCa", rules_at(site, gate, Foca(reference)))
