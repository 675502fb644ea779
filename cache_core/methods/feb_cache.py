"""FEB-Cache (arXiv 2503.07120): attention and MLP are reused apart, each by its own column of one table of the run.

Each step computes both, reuses one, or reuses both: the MLP alone in the first 60 % of the run, attention alone in the
last 40 % (`tables`: the paper's Algorithm 1). What is kept is each block's output before its gate; a reused one is
multiplied with the current step's gate. The predicted noise may be scaled by b(t) (eq. 3, `outputs.NoiseGain`), because
a cache adds to what the sampler sees as noise.

Differs from the original: the paper's table is not published (the released example holds no step that reuses one
module), so it follows from a profile's norms, or without one from a stated drift. `scaling` paper multiplies the noise
by b(t), code divides it by 0.965 as the released script does, which is the opposite sign, measured gives back the norm
that a profile saw lost at each step, E_ori / E_state, whatever its sign; each acts once something was skipped.
First and last step are computed. It needs blocks, so that on a model that is not described here it stands down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..gates import Never, Within, all_of
from ..generators import Guided, misfit
from ..outputs import NoiseGain, noise_scale
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..schedules import Listed
from ..tables import STAGE, State, by_share
from ..types import ATTENTION, MLP, CacheError, Gate, Method, Output, Rule, Schedule, Signal, Step, Store
from .spectralcache import ORDERS, WINDOW

GIGABYTE = 1e9
RELEASED = 0.965
"""The scalar by which the released script divides the noise."""
PARAMETERS = (
    Parameter(
        "work", 0.5, "The share of attention and MLP that is still computed, over the whole run. Lower: faster, "
        "further from the original picture. 0.7 careful (1.4x), 0.5 balanced (2x), 0.35 fast; 1 switches the node off.",
        low=0.1, high=1, step=0.05,
    ),
    Parameter(
        "scaling", "off", "What a cache adds to the noise, taken back: paper multiplies the predicted noise by b(t), "
        "which makes pictures a little softer; code divides it by 0.965 as the authors' script does, which makes them "
        "a little sharper; measured needs a profile and gives back what it saw lost; off (typical) leaves it.",
        choices=("off", "paper", "code", "measured"),
    ),
    Parameter(
        "scale_high", 0.98, "b(t) where 40 % of the noise is left. Lower: the noise is scaled down more. The paper's "
        "is 0.98; counts with scaling paper.", low=0.8, high=1, folded=True,
    ),
    Parameter(
        "scale_low", 0.96, "b(t) at the end of the run. Lower: the noise is scaled down more. The paper's is 0.96; "
        "counts with scaling paper.", low=0.8, high=1, folded=True,
    ),
    Parameter(
        "inner_blocks", 0, "Reuse only in so many blocks: the last ones in the first 60 % of the run, the first ones "
        "behind that. Lower: slower, closer to the original picture. 0 (typical): in all.", high=1000, folded=True,
    ),
    Parameter(
        "store", "device", "Where reused results wait: device (fastest), ram (slower, no memory of the device), or fp8 "
        "(half the memory of 16-bit weights, a little less exact).", choices=("device", "ram", "fp8"), folded=True,
    ),
    Parameter(
        "memory", 0.0, "How many gigabytes may be held for each prompt: where that is too little only the last blocks "
        "reuse anything, and Cache Stats says so. Lower: slower, closer. 0 (typical) sets no limit.",
        high=1000, step=0.1, folded=True,
    ),
    *WINDOW,
)  # fmt: skip


@published(
    "FEB-Cache", PARAMETERS, orders=(Order("scale_low", "scale_high", "the paper uses 0.96 and 0.98"), ORDERS[1]),
    aliases=("feb cache", "eb-cache", "frequency guided", "exposure bias", "attention cache", "mlp cache"),
    never={"work": 1.0}, refusing={"start_percent": 1.0, "end_percent": 1.0}, skipping={"work": 0.35}, own_node=True,
    profiled=("modules",),
    advice="Half a step at a time, where whole steps are too much; it holds the most memory of all methods.",
)  # fmt: skip
def feb_cache(
    work: float,
    scaling: str,
    scale_high: float,
    scale_low: float,
    inner_blocks: int,
    store: Store,
    memory: float,
    start_percent: float,
    end_percent: float,
    profile: Profile | None,
) -> Method:
    """The wanted share of the work, b(t), innerN, how and how much is held, and a window of progress."""
    guided = None if profile is None else Guided(profile)
    rules = []
    for place, module in ((ATTENTION, State.ATTENTION), (MLP, State.MLP)):
        gate: Gate = Never()
        if work < 1:
            only = partial(_inner, inner_blocks) if inner_blocks else None
            listed = Listed(partial(_reused, guided, work, module), only, note=partial(misfit, profile))
            gate = all_of(Within(start_percent, end_percent), listed)
        limited = replace(place, budget=memory * GIGABYTE / 2)
        rules.append(Rule((limited,), Signal(), gate, Hold(), "absolute", store=store))
    return Method("FEB-Cache", tuple(rules), output=_output(scaling, scale_high, scale_low, guided, work))


def _reused(guided: Guided | None, work: float, module: State, schedule: Schedule) -> frozenset[int]:
    """The steps that reuse this module."""
    known = guided is not None and not misfit(guided.profile, schedule)
    table = guided.table(work) if guided is not None and known else by_share(schedule.total, work)
    return frozenset(step for step, state in enumerate(table) if state in (module, State.BOTH))


def _inner(count: int, step: Step) -> frozenset[int]:
    """innerN: Delta-DiT's ends of the model."""
    return frozenset(range(-count, 0) if step.index < STAGE * step.total else range(count))


def _output(scaling: str, high: float, low: float, guided: Guided | None, work: float) -> Output | None:
    if scaling == "measured" and guided is None:
        raise CacheError("scaling is measured, but there is no profile; connect Cache Calibrate, or take off")
    gains: dict[str, Callable[[Step], float]] = {
        "paper": partial(_paper, high, low),
        "code": _code,
        "measured": partial(_measured, guided, work),
    }
    return NoiseGain(gains[scaling]) if scaling in gains else None


def _paper(high: float, low: float, step: Step) -> float:
    return noise_scale(1 - step.progress, high, low)


def _measured(guided: Guided | None, work: float, step: Step) -> float:
    if guided is None or step.schedule is None or misfit(guided.profile, step.schedule):
        return 1.0
    return guided.gains(work)[step.index]


def _code(step: Step) -> float:
    return 1 / RELEASED
