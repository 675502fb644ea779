"""PromptTea (arXiv 2507.06739): only the noise level says when to compute, and the prompt how much may build up.

    x = ||e_t - e_{t-1}||_1 / ||e_{t-1}||_1,   A <- A + P(x, t),   skip while A < threshold · w(prompt)

e is the vector that modulates the blocks, which the sampler's noise level alone moves, P a surface fitted to the model
(`fits`), so that on one schedule the skipped steps depend on the threshold alone. The authors set that by the prompt: a
complex one gets the smaller threshold t_1, a simple one t_2, between them 1 / (1 + exp(-K (c - 1/2))).

Differs from the original: c is not the likeness of the prompt's embedding to two banks of prompts, but how many of its
tokens say something of their own, n / (n + `halfway`), with n = tr(C)² / tr(C²) of the tokens' covariance C as they
enter the blocks: a stand-in, not measured on prompts that people had ranked. Without a profile P(x, t) is x. Its branch
rule is `dyncfg_cache`. It needs blocks.
"""

from __future__ import annotations

from functools import partial

from ..coefficients import IDENTITY
from ..fits import AccumulateSurface, allowance, surface_of
from ..gates import Bell, Never, Within, all_of
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..signals import EmbeddingL1
from ..types import TRUNK, Gate, Method, Rule
from .spectralcache import ORDERS, WINDOW

PARAMETERS = (
    Parameter("threshold", 0.4, "How much predicted change may build up with a complex prompt (the paper's t1). Higher:"
              " faster, further from the original. 0.25 careful, 0.4 balanced; 0 switches the node off.", high=10),
    Parameter("threshold_simple", 0.6, "The same with a simple prompt (the paper's t2, 1.4 to 2.6 times t1). Higher: "
              "simple pictures are sampled faster. Equal to threshold: the prompt does not count.", high=10),
    Parameter("halfway", 8.0, "A prompt of so many tokens that say something of their own counts as half complex. "
              "Higher: more prompts count as simple. The authors use banks of prompts instead; 8 is a guess.", low=1,
              high=1000, step=0.5, folded=True),
    Parameter("sharpness", 50.0, "How sharply simple and complex prompts are told apart (the paper's K). Higher: most "
              "prompts are one or the other. The authors use 50 and 200.", low=0, high=1000, step=1, folded=True),
    *WINDOW,
)  # fmt: skip


@published(
    "PromptTea", PARAMETERS, aliases=("prompt tea", "prompt complexity"), profiled=("trunk",),
    orders=(Order("threshold", "threshold_simple", "simple prompts bear more; equal: not looked at"), ORDERS[1]),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6, "threshold_simple": 1e-6},
    skipping={"threshold": 10.0, "threshold_simple": 10.0},
    advice="With a profile of your model: steps are known before the run, and simple prompts are sampled faster.",
)  # fmt: skip
def prompttea(
    threshold: float, threshold_simple: float, halfway: float, sharpness: float, start_percent: float,
    end_percent: float, profile: Profile | None,
) -> Method:  # fmt: skip
    """t_1 and t_2 in FLUX units, n at which c is one half, K, and a window of progress."""
    gate: Gate = Never()
    if threshold:
        surface, unit = (None, IDENTITY.unit) if profile is None else surface_of(profile)[:2]
        allowed = partial(allowance, threshold_simple / threshold, halfway, sharpness)
        gate = all_of(Within(start_percent, end_percent), AccumulateSurface(Bell(threshold), unit, surface, allowed))
    return Method("PromptTea", (Rule((TRUNK,), EmbeddingL1(prompt=threshold_simple > threshold), gate, Hold()),))
