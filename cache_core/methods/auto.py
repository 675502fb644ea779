"""SpectralCache Auto: a budget that is kept, a forecast that tests itself, a corrector that pays back what it missed.

Of T steps exactly round(T / speedup) are computed (`gates.budget`), placed early-dense with a shorter last gap
(`placement`). Between them each band of the feature follows its last slope as far as the run's own back-test supports
it (`backtest`); when the next step has been computed, the skipped ones before it are interpolated, and that step pays
back what the sampler has drifted by (`corrections.repay`). The back-test is also the estimate of the error.

`site`: auto skips whole model calls on every model. There the feature is the ODE derivative itself, so that the
corrector is exact, and what is kept has the size of a latent; the trunk's residual is the alternative.

Sources: band-wise forecasts from FreqCa (arXiv 2510.08669); the corrector from linear multistep methods (Adams-Moulton;
UniPC, arXiv 2302.04867); back-test, density and their combination are our own.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from .. import words
from ..backtest import EDGES, backtested
from ..corrections import repay
from ..gates import budget, never
from ..parameters import check
from ..types import MODEL, TRUNK, Method, Rule, Signal

CUSTOM = "Custom"
CHOICES = {"quality": (CUSTOM, *words.WORDS), "site": ("auto", "trunk", "model")}
RANGES = {
    "speedup": (1.0, 6.0),
    "tolerance": (0.0, 10.0),
    "keep_first": (1, 100),
    "keep_last": (1, 100),
    "bands": (1, max(EDGES)),
}
"""Smallest and largest value of every parameter."""


def auto(
    speedup: float = 2.0,
    quality: Literal["Custom", "Quality", "Balanced", "Fast", "Draft"] = "Custom",
    tolerance: float = 0.0,
    keep_first: int = 1,
    keep_last: int = 1,
    bands: int = 3,
    site: Literal["auto", "trunk", "model"] = "auto",
) -> Method:
    """How much faster, by computed steps, unless a word says it; the largest estimated error of a skipped step (0:
    any); steps that are always computed at both ends, part of the budget; radial bands that are tested apart; where to
    skip.

    Raises `CacheError` on values that no run could use. `speedup` 1 computes everything.
    """
    params = dict(locals())
    check(params, RANGES, (), CHOICES)
    off = quality == CUSTOM and speedup == 1
    gate = never() if off else budget(partial(_count, speedup, quality), tolerance, keep_first, keep_last)
    rule = Rule(TRUNK, Signal(), gate, backtested(bands))
    where = None if site == TRUNK else MODEL
    return Method("SpectralCache Auto", (rule,), params=params, correction=repay(), site=where)


def _count(speedup: float, quality: str, total: int) -> int:
    """How many of `total` steps are computed: round(T / speedup), or what the word stands for."""
    return round(total / speedup) if quality == CUSTOM else words.computed(quality, total)
