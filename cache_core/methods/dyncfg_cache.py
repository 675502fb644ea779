"""DynCFGCache (PromptTea, arXiv 2507.06739): the negative rests while both prompts say nearly the same.

    A <- A + d,   the negative's result is the positive's while A < threshold,   else both are computed and A <- 0

d = mean|v_uncond - v_cond| / mean|v_cond|, v the model's output. Guidance rests in a derived evaluation, so that the
threshold stays small (the authors' for Wan: 0.02, where d is 0.25 at the first step and below 0.017 later).

Differs from the original: only this part of PromptTea, without the rest of `prompttea`; d is that of the newest
computed pair of this run, so that it follows prompt and guidance, or with a profile the table's of that noise level,
as published; v is the ODE derivative, not the trunk's residual (the same where only the text tells the two apart); the
last step is computed. `stand_in` difference adds the last difference instead of none.
"""

from __future__ import annotations

from ..gates import Between, Never, Sum, all_of
from ..guidance import BranchDistance, Codebook, NoDifference, codebook
from ..parameters import Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..types import BRANCH, Gate, Method, Predictor, Rule

PARAMETERS = (
    Parameter("threshold", 0.02, "How much difference of the two prompts may add up before both are evaluated again. "
              "Higher: faster, guidance further from the original. The authors' for Wan: 0.02; with stand_in "
              "difference 0.2 to 0.5; 0 switches the node off.", high=10, step=0.005),
    Parameter("warmup_steps", 1, "Both prompts are evaluated in so many first steps. Higher: slower, composition "
              "closer to the original. The authors use 1.", low=1, high=100),
    Parameter("last_steps", 1, "Both prompts are evaluated in so many last steps. Higher: slower, finer detail. 1 is "
              "typical.", low=1, high=100),
    Parameter("stand_in", "none", "none: the positive's result is taken for the negative's, so that guidance rests (as "
              "published). difference: with the last difference added, which keeps guidance.",
              choices=("none", "difference"), folded=True),
)  # fmt: skip


@published(
    "DynCFGCache", PARAMETERS, aliases=("prompttea", "dynamic cfg cache"),
    never={"threshold": 0.0}, refusing={"threshold": 1e-6}, skipping={"threshold": 1.0, "stand_in": "difference"},
    profiled=("branch",),
    advice="With CFG above 1 on models whose two prompts differ little late in a run, as on video models.",
)  # fmt: skip
def dyncfg_cache(
    threshold: float, warmup_steps: int, last_steps: int, stand_in: str, profile: Profile | None
) -> Method:
    """The sum's limit, steps that are computed at both ends, and what stands in."""
    gate: Gate = Never()
    if threshold:
        kept = Sum(threshold) if profile is None else Codebook(threshold, codebook(profile))
        gate = all_of(Between(warmup_steps, last_steps), kept)
    predictor: Predictor = NoDifference() if stand_in == "none" else Hold()
    return Method("DynCFGCache", (Rule((BRANCH,), BranchDistance(), gate, predictor),))
