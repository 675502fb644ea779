"""A grid of runs, walked, and one row per arm: means over pairs, and the difference to the fewer-steps control.

The control is paired: for each pair the plain sampler with as many steps as the arm computed for that very pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.lab.arms import EULER, TWICE, Arm, evaluations
from bench.lab.intervals import finite_mean, paired
from bench.lab.models import MODELS
from bench.lab.pairs import Pair, cases
from bench.lab.presets import FEWER, fewer
from bench.lab.store import Outcome

Make = Callable[[Arm, Pair, int], Outcome]
"""`Runner.outcome`."""
SAME = (math.inf, 1.0)


@dataclass(frozen=True, slots=True)
class Group:
    """Everything that is measured at one number of steps and one guidance."""

    steps: int
    cfg: float
    pairs: tuple[Pair, ...]
    arms: tuple[Arm, ...]
    sampler: str = EULER


def group(steps: int, cfg: float, count: int, arms: Iterable[Arm], sampler: str = EULER) -> Group:
    if sampler != EULER:
        arms = [replace(arm, sampler=sampler) for arm in arms]
    return Group(steps, cfg, tuple(cases(count, cfg)), tuple(arms), sampler)


def of_model(groups: Sequence[Group], model: str) -> list[Group]:
    """The groups whose guidance means something to this model."""
    return [g for g in groups if g.cfg in MODELS[model].guidance]


def walk(groups: Sequence[Group], make: Make, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
    """Makes every run, pair by pair so that a full run serves them all; yields (done, total).

    `share` (k, n) takes every n-th pair only, so that several processes can fill one store.
    """
    part, parts = share
    jobs = [(g, pair) for g in groups for i, pair in enumerate(g.pairs) if i % parts == part]
    total = sum(len(g.arms) for g, _ in jobs)
    done = 0
    for g, pair in jobs:
        for arm in g.arms:
            control(make, make(arm, pair, g.steps), pair, g)
            done += 1
            yield done, total


def complete(groups: Sequence[Group], done: int) -> list[Group]:
    """The groups with as many pairs as are whole when a walk has come so far."""
    found = []
    for g in groups:
        pairs = min(done // len(g.arms), len(g.pairs))
        done -= pairs * len(g.arms)
        if pairs:
            found.append(replace(g, pairs=g.pairs[:pairs]))
        if pairs < len(g.pairs):
            break
    return found


def control(make: Make, outcome: Outcome, pair: Pair, g: Group) -> tuple[float, float]:
    """PSNR and SSIM of the plain sampler with as many evaluations as were computed (the next whole number); the full
    run itself where all were.

    A sampler that evaluates a step twice but the last (heun) reaches n evaluations with (n + 1) / 2 steps.
    """
    count = math.ceil(outcome.computed)  # the control never has less work
    count = (count + 1) // 2 if g.sampler in TWICE else count
    if count >= g.steps:
        return SAME
    plain = make(fewer(count, g.sampler), pair, g.steps)
    return plain.psnr, plain.ssim


def rows(groups: Sequence[Group], make: Make) -> list[dict[str, object]]:
    """One record per group and arm: the lines of a table's CSV."""
    return [row(g, arm, make) for g in groups for arm in g.arms]


def row(g: Group, arm: Arm, make: Make) -> dict[str, object]:
    """One line. Means leave out identical pictures, whose PSNR is infinite; `skipping` says in how many pairs anything
    was skipped; `psnr_each` has every pair's, so that two lines can be compared pair by pair (`reading.between`).
    """
    outcomes = [make(arm, pair, g.steps) for pair in g.pairs]
    controls = [control(make, outcome, pair, g) for outcome, pair in zip(outcomes, g.pairs, strict=True)]
    record: dict[str, object] = {
        "steps": g.steps,
        "cfg": g.cfg,
        "sampler": g.sampler,
        "family": arm.family,
        "name": arm.name,
        "pairs": len(g.pairs),
        "skipping": sum(outcome.computed < evaluations(g.sampler, g.steps) for outcome in outcomes),
        "computed": statistics.fmean(outcome.computed for outcome in outcomes),
        "computed_least": min(outcome.computed for outcome in outcomes),
        "computed_most": max(outcome.computed for outcome in outcomes),
        "speedup": statistics.median(outcome.speedup for outcome in outcomes),
        "psnr": finite_mean([outcome.psnr for outcome in outcomes]),
        "ssim": statistics.fmean(outcome.ssim for outcome in outcomes),
        "latent_psnr": finite_mean([outcome.latent_psnr for outcome in outcomes]),
        "latent_ssim": statistics.fmean(outcome.latent_ssim for outcome in outcomes),
    }
    psnr = paired([outcome.psnr for outcome in outcomes], [p for p, _ in controls])
    ssim = paired([outcome.ssim for outcome in outcomes], [s for _, s in controls])
    is_control = arm.family == FEWER
    for name, interval in (("psnr_over_fewer", psnr), ("ssim_over_fewer", ssim)):
        record[name] = None if is_control else interval.mean
        record[f"{name}_low"] = None if is_control else interval.low
        record[f"{name}_high"] = None if is_control else interval.high
    known = [outcome.cache_bytes for outcome in outcomes if outcome.cache_bytes is not None]
    estimates = [outcome.estimate for outcome in outcomes if outcome.estimate is not None]
    record["estimate"] = statistics.fmean(estimates) if estimates else None
    for look in ("feature", "flip"):
        seen = [getattr(outcome, look) for outcome in outcomes]
        record[look] = None if None in seen else statistics.fmean(seen)
    record["psnr_each"] = " ".join(f"{outcome.psnr:.4f}" for outcome in outcomes)
    record["cache_bytes"] = round(statistics.fmean(known)) if known else None
    return record
