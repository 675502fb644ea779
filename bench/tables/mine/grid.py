"""The ways to make a picture that `bench mine` compares: the settings that the other tables use, a few of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.lab.arms import Arm, Cached, On, Plain
from bench.lab.presets import AUTO, PRESETS, auto, core_arms, fewer

FULL = "every step, again"
SOLVERS = "fewer steps, another solver"
AUTO_SOLVER = f"{AUTO} on dpmpp_2m"
BUDGETS = (1.5, 2.0, 3.0, 4.0, 5.6)
FURTHER = (2.0, 3.0)
"""Budgets at which other solvers are measured."""
PLAIN_SOLVERS = (("dpmpp_2m", "simple"), ("ipndm", "beta"), ("gradient_estimation", "simple"))
CHOSEN = {
    "SpectralCache 0.25", "SpectralCache 0.4", "SpectralCache 0.6", "FreqCa N=2", "FreqCa N=3", "FreqCa N=4",
    "EasyCache 0.1", "EasyCache 0.2", "EasyCache 0.4",
}  # fmt: skip
QUICK = {"SpectralCache 0.4", "FreqCa N=3", "EasyCache 0.2"}
FEWEST = 2
ADAPTIVE = 0.5
"""Share of the steps that a method without a budget is thought to compute, for the estimate of the time alone."""
HEUN = 2
"""Evaluations of a step of the converged picture."""


def counts(steps: int, budgets: Sequence[float]) -> list[int]:
    """Computed evaluations at each budget, most first, without repeats."""
    return sorted({max(round(steps / budget), FEWEST) for budget in budgets}, reverse=True)


def arms(steps: int, quick: bool = False) -> list[Arm]:
    """In the order of the table."""
    near, further = counts(steps, FURTHER if quick else BUDGETS), counts(steps, FURTHER)
    chosen = QUICK if quick else CHOSEN
    others = [arm for arm in [*PRESETS["spectralcache"], *PRESETS["freqca"], *core_arms()] if arm.name in chosen]
    plain: list[Arm] = [
        On(SOLVERS, f"{count} steps, {sampler}, {scheduler}", Plain("", "", count), sampler, scheduler)
        for sampler, scheduler in (PLAIN_SOLVERS[:1] if quick else PLAIN_SOLVERS)
        for count in further
    ]
    return [
        Plain(FULL, FULL, steps),
        *(fewer(count) for count in near),
        *plain,
        *(auto(count, steps) for count in near),
        *(On(AUTO_SOLVER, f"Auto {steps / n:.2g}x, dpmpp_2m", auto(n, steps), "dpmpp_2m") for n in further),
        *others,
    ]


def expected(arm: Arm, steps: int) -> float:
    """Evaluations of one run, for the estimate of the time; for a method without a budget with its control."""
    if isinstance(arm, On):
        return expected(arm.arm, steps)
    if isinstance(arm, Plain):
        return arm.count
    if isinstance(arm, Cached) and arm.method == "auto":
        return math.ceil(steps / arm.params["speedup"])
    return 2 * ADAPTIVE * steps


def evaluations(every: Sequence[Arm], steps: int, exact: int) -> float:
    """Of one pair: all arms, the full run, the converged picture."""
    return steps + HEUN * exact + sum(expected(arm, steps) for arm in every)
