"""ProfilingDiT (arXiv 2504.03140, sec. 3.3): the blocks of a list rest between refresh steps that come ever denser.

    T_s = T_max - (T_max - T_min) · (s - s_0) / (S - s_0)        steps to the next refresh, s_0 the warm-up of S steps

The blocks from `first_block` to `last_block`, with a profile those that change least (`generators.steady`), reuse
attention and MLP on every step that is no refresh; the others run. With T_max = T_min: as in Delta-DiT (2406.01125).

Differs from the original: its lists are published for two video models only; here the list is a range, or the steadiest
blocks of it instead of those whose attention lies on the background. What is kept is
both modules' outputs before their gates, not the change over the range. It needs blocks.
"""

from __future__ import annotations

from functools import partial

from ..gates import Between, Never, all_of
from ..generators import steady_blocks
from ..parameters import Order, Parameter, published
from ..predictors import Hold
from ..profile import Profile
from ..schedules import Listed, resting
from ..types import ATTENTION, MLP, Gate, Method, Rule, Signal
from .taylorseer import WARMUP

PARAMETERS = (
    Parameter("interval_most", 6, "Steps between two refreshes at the start. Higher: faster, further from the original "
              "picture. The authors' run of 50 steps starts at 12; 1 switches the node off.", low=1, high=100),
    Parameter("interval_least", 2, "Steps between two refreshes at the end. Higher: faster, less detail. The authors "
              "end at 2.", low=1, high=100),
    WARMUP,
    Parameter("first_block", 0, "The first block that may rest, counted from 0 in the order in which they run. Higher: "
              "slower, closer. FLUX.1 has 57 blocks (19 and 38), Qwen-Image 60.", high=1000),
    Parameter("last_block", 1000, "The last block that may rest. Lower: slower, closer. 1000 (typical): up to the end.",
              high=1000),
    Parameter("share", 0.6, "With a profile: so many of these blocks rest, those that change least; without one all. "
              "Lower: slower, closer. The authors: 0.6 of the single blocks.", high=1, folded=True, late=True),
)  # fmt: skip


@published(
    "ProfilingDiT", PARAMETERS, aliases=("profiling dit", "delta-dit", "block list"),
    orders=(Order("interval_least", "interval_most", "intervals shrink; make them equal for a fixed period"),
            Order("first_block", "last_block", "0 and 1000 let every block rest")),
    never={"interval_most": 1, "interval_least": 1}, refusing={"warmup_steps": 100},
    skipping={"interval_most": 3, "interval_least": 3, "warmup_steps": 1}, profiled=("modules",),
    advice="Where some blocks are known to change little: give their range; the others run on every step.",
)  # fmt: skip
def profilingdit(
    interval_most: int, interval_least: int, warmup_steps: int, first_block: int, last_block: int, share: float,
    profile: Profile | None,
) -> Method:  # fmt: skip
    """T_max, T_min, s_0, the range of blocks, and how many of them are taken from a profile."""
    gate: Gate = Never()
    if interval_most > 1:
        table = partial(resting, warmup_steps, interval_most, interval_least)
        blocks = partial(steady_blocks, first_block, last_block, share, profile)
        gate = all_of(Between(warmup_steps, 1), Listed(table, blocks))
    return Method("ProfilingDiT", tuple(Rule((p,), Signal(), gate, Hold(), "absolute") for p in (ATTENTION, MLP)))
