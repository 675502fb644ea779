"""SpectralCache Auto: a budget that is kept, a forecast that tests itself, a corrector that pays back what it missed.

Of T steps exactly round(T / speedup) are computed (`gates.Budget`), placed early-dense, the less so the less changes
between the first two, with a shorter last gap (`placement`). Between them each band of the feature follows its last
slope, and how that turned, as far as the run's own back-test supports it (`backtest`); when the next step has been
computed, the skipped ones before it are interpolated, and that step pays back what the sampler has drifted by
(`corrections.Repay`). The back-test is also the estimate of the error.

`computed` says how many instead, whatever T is: steps that are not computed are nearly free, so that 100 steps with 12
of them computed come closer to the exact picture than 28 with 12.

`site`: auto skips whole model calls on every model, and whole evaluations where these do more than that (windows,
tiles, ControlNets, LoRA hooks, further passes). There the feature is the ODE derivative itself, so that the corrector
is exact, and what is kept has the size of a latent; the trunk's residual is the alternative.

Where the sampler is seen to draw noise, a share of it is kept out of what is forecast (`drawn`).

`guidance`: derive lets the negative prompt rest in every other computed step, from a third of the run on: what it
differs by follows half of its last slope. Skipped steps then forecast the guided result.

With a profile of the model the forecast's weights and the corrector's are learned (`calibrated`); beyond its range the
back-test counts.

Sources: band-wise forecasts from FreqCa (arXiv 2510.08669); the corrector from linear multistep methods (Adams-Moulton;
UniPC, arXiv 2302.04867); the resting negative from FasterCache (arXiv 2410.19355). Kin: a multistep forecast of skipped
outputs is in AB-Cache (2504.10540), FoCa (2508.16211), CAB (2605.16736) and PrediT (2602.18093), which has an
Adams-Moulton corrector too; a budget that is kept, with places searched on the model, in BudCache (2606.13496),
MeanCache (2601.19961) and DPCache (2602.22654); a test on a held-out feature in HiCache++. Our own is what is left:
gains that each lane and band earns in the run itself, the estimate of the error from the same test, a corrector that
repays the skipped steps in the ODE's derivative, and places by a formula, without a search.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import words
from ..backtest import EDGES
from ..calibrated import expected_error, forecast, repayment, sparse
from ..gates import AtMost, Budget, Never, Within, all_of
from ..parameters import Parameter, published
from ..predictors import Linear
from ..profile import Profile
from ..types import BRANCH, GUIDED, MODEL, TRUNK, CacheError, Gate, Method, Rule, Signal

CUSTOM = "Custom"
PLACES = {"auto": (MODEL,), "trunk": (TRUNK, MODEL), "model": (MODEL,), "guided": (GUIDED, MODEL)}
PARAMETERS = (
    Parameter(
        "speedup", 2.0, "How much faster, counted in steps: of 28 steps, 2.0 computes 14, 3.0 computes 9. Higher: "
        "faster, further from the original picture. 1.5 careful, 2 balanced, 3 fast, 4 and more for drafts. Counts "
        "only with quality Custom, where 1.0 switches the node off.",
        low=1, high=20, step=0.1,
    ),
    Parameter(
        "quality", "Balanced", "In words instead of a number: how many steps are computed then depends on how many "
        "there are. Quality is slowest and closest to the original, then Balanced, Fast and Draft. Custom: the number "
        "in speedup counts.",
        choices=(CUSTOM, *words.WORDS),
    ),
    Parameter(
        "tolerance", 0.0, "A step whose estimated error would be larger is computed, whatever the budget. Lower: "
        "slower, closer to the original. 0 switches this off (typical): the budget is kept. Cache Stats shows the "
        "estimates of your runs; 0.02 means two percent.",
        high=10, folded=True, late=True,
    ),
    Parameter(
        "keep_first", 1, "So many first steps are always computed; they count in the budget. Higher: the layout is "
        "closer to the original and less is left for the rest. 1 is typical, 2 to 4 protect the layout.",
        low=1, high=100, folded=True, late=True,
    ),
    Parameter(
        "keep_last", 1, "So many last steps are always computed; they count in the budget. Higher: finer detail, and "
        "less is left for the rest. 1 is typical, 2 protects texture.",
        low=1, high=100, folded=True, late=True,
    ),
    Parameter(
        "bands", 3, "How many bands, from coarse structure to fine detail, are forecast each at its own pace. Higher: "
        "detail that cannot be foreseen is held back apart. 3 is typical; 1 treats all alike and is a little faster.",
        low=1, high=max(EDGES), folded=True, late=True,
    ),
    Parameter(
        "site", "auto", "Where to skip: model skips the whole model call, which works on every model and holds least "
        "memory; trunk skips inside FLUX and Qwen-Image, as the other nodes do, and holds more; guided skips all that "
        "an evaluation does, ControlNets, tiles and extra guidance passes too; auto takes guided where there are "
        "such, else model.",
        choices=tuple(PLACES), folded=True, late=True,
    ),
    Parameter(
        "computed", 0, "Exactly so many steps are computed, however many the sampler makes: it wins over speedup and "
        "quality. Lower: faster, further from the original picture. The other steps cost next to nothing, so 50 or 100 "
        "steps with 12 computed come closer to the exact picture than 20 with 12. 0 (typical): speedup or quality "
        "counts.",
        high=1000, folded=True, late=True,
    ),
    Parameter(
        "guidance", "follow", "With CFG above 1. follow (typical): a computed step evaluates both prompts. derive: "
        "from a third of the run on, every other one evaluates only the positive prompt and derives the negative's "
        "result, which halves its cost and moves guidance a little; skipped steps then forecast what guidance gives "
        "(site guided). Cache Stats counts both.",
        choices=("follow", "derive"), folded=True, late=True,
    ),
)  # fmt: skip
FAST = {"speedup": 3.0, "quality": CUSTOM}


@published(
    "SpectralCache Auto", PARAMETERS, never={"speedup": 1.0, "quality": CUSTOM},
    refusing={"keep_first": 100}, skipping=FAST, variants=({"site": "trunk"}, {"site": "guided"}), own_node=True,
    profiled=("course",),
    advice="The first choice: one dial, any model, and it keeps its budget.",
)  # fmt: skip
def auto(
    speedup: float,
    quality: str,
    tolerance: float,
    keep_first: int,
    keep_last: int,
    bands: int,
    site: str,
    computed: int,
    guidance: str,
    profile: Profile | None,
) -> Method:
    """How much faster, by computed steps, unless a word or a number says it; the largest estimated error of a skipped
    step (0: any); steps that are always computed at both ends, part of the budget; radial bands that are tested apart;
    where to skip; whether the negative is derived in some computed steps. `speedup` 1 computes everything.
    """
    gate: Gate = Never()
    count = partial(_count, speedup, quality, computed)
    if computed or quality != CUSTOM or speedup != 1:
        gate = Budget(count, tolerance, keep_first, keep_last)
    where = PLACES["guided" if guidance == "derive" and site == "auto" else site]
    around = GUIDED if site == "auto" else None
    if profile is not None and site == "trunk":
        raise CacheError("it holds how the ODE derivative moves, which site trunk does not store; choose another site")
    # an estimate that is relied on is that of the worst part
    stands_in, repaid = forecast(bands, profile, count, apart=tolerance > 0), repayment(profile, count, tolerance > 0)
    rule = Rule(where, Signal(), gate, stands_in, correction=repaid, around=around, drawn=DRAWN)
    method = Method("SpectralCache Auto", (rule,))
    if profile is not None:
        expected, remark = partial(expected_error, profile, count), partial(sparse, profile, count)
        method = replace(method, expected=expected, remark=remark)
    if guidance == "follow":
        return method
    if site not in ("auto", "guided"):
        raise CacheError(f"guidance derive goes with site guided or auto, not with {site}; change one of the two")
    rests: Gate = Never() if gate.never else all_of(Within(DERIVED_FROM, 1.0), AtMost(1))
    return replace(method, rules=(rule, Rule((BRANCH,), Signal(), rests, Linear(0.5, "log_noise"))))


DRAWN = 0.4
"""Of the noise that a sampler draws, between what the model takes out early in a run (0.9) and late (0.3)."""
DERIVED_FROM = 0.33
"""Before this share of the run the difference of the prompts changes too fast: by half a step on the small FLUX."""


def _count(speedup: float, quality: str, computed: int, total: int) -> int:
    """How many of `total` steps are computed: as many as asked for, round(T / speedup), or what the word stands for."""
    return computed or (round(total / speedup) if quality == CUSTOM else words.computed(quality, total))
