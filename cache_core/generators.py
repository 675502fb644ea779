"""From a profile to what a method follows: pure functions of measured tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from .placement import cumulative
from .profile import BOTH, Profile
from .tables import State, Table, fitted
from .types import Schedule, Step

MODULE_OF = {State.ATTENTION: "attention", State.MLP: "mlp"}
CLOSE = 0.02
"""How far a run's noise levels may lie from the profile's, of the highest one."""


def misfit(profile: Profile | None, schedule: Schedule) -> str:
    """Why a profile says nothing of a run, in a sentence, or an empty string."""
    if profile is None:
        return ""
    levels = profile.tables["sigmas"].tolist()
    if len(levels) != schedule.total:
        return f"the profile is of {len(levels)} steps, this run has {schedule.total}: a stated default takes its place"
    off = max(abs(a - b) for a, b in zip(levels, schedule.sigmas, strict=False))
    if off > CLOSE * levels[0]:
        return "the profile is of other noise levels than this run's: a stated default takes its place"
    return ""


# FEB-Cache's table and gain -------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """A model as the profile knows it, for Algorithm 1: E_state / E_ori as measured at the age of what is reused. Where
    both are and one is older, its further age moves the norm by what it does alone (first order). Beyond the longest
    measured lag a change grows in a straight line.
    """

    noise: dict[State, list[list[list[float]]]]
    made: dict[State, int] = field(default_factory=dict)

    def changes(self, step: int, state: State) -> Sequence[float]:
        return [abs(ratio - 1) for ratio in self.ratios(step, state)]

    def ratios(self, step: int, state: State) -> list[float]:
        """E_state / E_ori of each sample; infinite where it was not measured."""
        ages = {module: step - self.made[module] for module in MODULE_OF if state in (module, State.BOTH)}
        least = min(ages.values())

        def ratio(sample: int) -> float:
            older = [module for module, age in ages.items() if age > least]
            further = (
                self._moved(module, step, ages[module], sample) - self._moved(module, step, least, sample)
                for module in older
            )
            return 1 + self._moved(state, step, least, sample) + sum(further)

        return [ratio(sample) for sample in range(len(self.noise[state][0][0]))]

    def advance(self, step: int, state: State) -> None:
        for module in MODULE_OF:
            if state not in (module, State.BOTH):
                self.made[module] = step

    def _moved(self, state: State, step: int, age: int, sample: int) -> float:
        lags = self.noise[state]
        longest = min(age, len(lags))
        moved = (lags[longest - 1][step][sample] - 1) * age / longest
        return moved if math.isfinite(moved) else math.inf


def measured(profile: Profile) -> Measured:
    names = {**MODULE_OF, State.BOTH: BOTH}
    return Measured({state: profile.tables[f"{name}.noise"].tolist() for state, name in names.items()})


class Guided:
    """FEB-Cache's table and gains by one profile, each share of the work resolved once."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._resolved = lru_cache(maxsize=16)(self._resolve)

    def table(self, wanted: float) -> Table:
        return self._resolved(wanted)[0]

    def gains(self, wanted: float) -> tuple[float, ...]:
        """b_t = E_ori / E_state, the mean over samples: 1 where nothing is reused, and where no norm would be left."""
        return self._resolved(wanted)[1]

    def _resolve(self, wanted: float) -> tuple[Table, tuple[float, ...]]:
        table = fitted(self.profile.total, lambda: measured(self.profile), wanted)
        world, gains = measured(self.profile), []
        for step, state in enumerate(table):
            ratios = world.ratios(step, state) if state else [1.0]
            gains.append(sum(1 / ratio if ratio > 0 else 1.0 for ratio in ratios) / len(ratios))
            world.advance(step, state)
        return table, tuple(gains)


# SmoothCache ----------------------------------------------------------------------------------------------------------


def smooth(errors: Sequence[Sequence[float]], alpha: float) -> frozenset[int]:
    """The skipped steps of one module type (SmoothCache, 2411.10510): errors[j - 1][t] is its relative change over the
    j steps that end at t. From each computed step on the longest gap is taken whose last step is within alpha; first
    and last step are computed.
    """
    total, step = len(errors[0]), 0
    found: set[int] = set()
    while step < total:
        fitting = (j for j in range(len(errors), 0, -1) if step + j < total - 1 and errors[j - 1][step + j] <= alpha)
        gap = next(fitting, 0)
        found.update(range(step + 1, step + gap + 1))
        step += gap + 1
    return frozenset(found)


def smoothed(profile: Profile, module: State, alpha: float, longest: int) -> frozenset[int]:
    """The same from a profile: the mean over layers."""
    return smooth(_mean_changes(profile, module)[:longest], alpha)


@lru_cache(maxsize=16)
def _mean_changes(profile: Profile, module: State) -> list[list[float]]:
    means: list[list[float]] = profile.tables[f"{MODULE_OF[module]}.change"].mean(dim=2).tolist()
    return means


@lru_cache(maxsize=64)
def stated(total: int, alpha: float, longest: int) -> frozenset[int]:
    """The same on the stated drift of `tables.Drift`, as a share of the whole run's."""
    covered = [cumulative(step / max(total - 1, 1)) / cumulative(1.0) for step in range(total)]
    lags = range(1, longest + 1)
    return smooth([[here - covered[max(step - lag, 0)] for step, here in enumerate(covered)] for lag in lags], alpha)


# ProfilingDiT's block list --------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def steady(profile: Profile, share: float) -> frozenset[int]:
    """The blocks that may rest: as many as are `share` of them, those whose modules change least over one step, the
    mean of attention and MLP over the run (in place of the foreground mask, which needs a segmenter).
    """
    changes = torch.stack([profile.tables[f"{name}.change"][0] for name in MODULE_OF.values()]).nanmean((0, 1))
    ranked = sorted(range(len(changes)), key=lambda layer: (float(changes[layer].nan_to_num(math.inf)), layer))
    return frozenset(ranked[: round(share * len(ranked))])


def steady_blocks(first: int, last: int, share: float, profile: Profile | None, step: Step) -> frozenset[int]:
    """Those of a range of blocks that may rest; without a profile all of them."""
    blocks = frozenset(range(first, last + 1))
    return blocks if profile is None else blocks & steady(profile, share)


# Learning-to-Cache's mask ---------------------------------------------------------------------------------------------

Mask = Mapping[int, frozenset[int] | None]
"""The layers that reuse a module, by step; None for all."""


def masked(profile: Profile | None, schedule: Schedule, share: float) -> Mapping[State, Mask]:
    """Every second step reuses the units (layer, module) that change least over one step, as many as are `share` of all
    units of such steps: the knapsack whose items weigh alike. Without a profile of this run: all units of the earliest
    of those steps.
    """
    if profile is None or misfit(profile, schedule):
        steps = range(1, schedule.total - 1, 2)
        return {state: dict.fromkeys(steps[: round(share * len(steps))]) for state in MODULE_OF}
    return _measured_masks(profile, share)


@lru_cache(maxsize=16)
def _measured_masks(profile: Profile, share: float) -> Mapping[State, Mask]:
    steps = range(1, profile.total - 1, 2)
    changes = {state: profile.tables[f"{name}.change"][0].tolist() for state, name in MODULE_OF.items()}
    items = [
        (changes[state][step][layer], step, state, layer)
        for state in MODULE_OF
        for step in steps
        for layer in range(len(changes[state][step]))
    ]
    chosen = sorted(item for item in items if math.isfinite(item[0]))[: round(share * len(items))]
    return {
        state: {
            step: frozenset(layer for _, at, which, layer in chosen if (at, which) == (step, state)) for step in steps
        }
        for state in MODULE_OF
    }
