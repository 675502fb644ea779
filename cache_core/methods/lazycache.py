"""LazyCache (ComfyUI's own node): EasyCache's rule on the guided, denoised latent.

    k = mean|dX| / mean|dx| over the last two computed steps,   A <- A + k · mean|x - x'| / mean|X|
    skip while A < threshold;   on a skip X = x + (X - x) of the last computed step

X is the denoised latent behind guidance, x the noisy one. A skip runs nothing of the evaluation, on any model.

Differs from ComfyUI's node: the first and the last step are computed; x is the latent as the model sees it, which on
models that are no flow models is scaled. For a flow model it means a derivative that grows as 1 / sigma, so that it
suits few skips in a row.
"""

from __future__ import annotations

from ..parameters import published
from ..predictors import Hold
from ..signals import InputChange
from ..types import GUIDED, MODEL, Method, Rule
from .easycache import EAGER, ORDERS, PARAMETERS, decision


@published(
    "LazyCache", PARAMETERS, orders=ORDERS, aliases=("lazy cache",),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping=EAGER,
    advice="For comparison with ComfyUI's node; EasyCache and Auto are closer at the same speed.",
)  # fmt: skip
def lazycache(threshold: float, start_percent: float, end_percent: float, rule: str) -> Method:
    """tau, a window of progress, and whose sum."""
    gate = decision(threshold, start_percent, end_percent, measured=1)
    return Method("LazyCache", (Rule((GUIDED, MODEL), InputChange(rule == "core"), gate, Hold(), "denoised"),))
