"""SpectralCache Auto over budgets, guidance, steps and samplers, against both controls and every cache; parts.

The controls: the plain sampler with as many steps, evenly; and on the very noise levels that Auto's plan computes, so
that placement is taken out and only forecast and corrector remain.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bench.lab import fill
from bench.lab.arms import Cached, evaluations
from bench.lab.fill import MEASURED
from bench.lab.grid import Group, group
from bench.lab.intervals import at
from bench.lab.presets import (
    ALIKE,
    AUTO,
    AUTO_COUNTS,
    FEWER,
    alike,
    auto,
    core_arms,
    dense,
    fewer,
    method_arms,
)
from bench.lab.reading import Row, controls, curve_of, groups, over
from bench.lab.table import document, fixed, markdown, number
from cache_core import words
from cache_core.predictors import Hold
from cache_core.types import Method

PAIRS, SIDE_PAIRS = 24, 6
SIDES = ((20, 1.0), (20, 3.0), (50, 1.0), (50, 3.0))
SIDE_BUDGETS = (1.4, 2.0, 3.125, 5.0)
SAMPLERS, SAMPLER_COUNTS = ("dpmpp_2m", "heun"), (17, 15, 12, 10, 8)
PART_COUNTS = (12, 8)
PARTS = ("without the corrector", "placement alone", "site trunk", "1 band", "4 bands")
MUST = {12: 9.0, 10: 7.0, 8: 5.5}
"""Asked of Auto at 28 steps: dB over evenly spaced fewer steps, by computed evaluations."""
OTHERS = {
    "FreqCa N=2", "FreqCa N=3", "FreqCa N=4", "FreqCa adaptive 0.25", "FreqCa adaptive 0.4", "FreqCa adaptive 0.6",
    "FreqCa adaptive 0.8, up to 4", "SpectralCache 0.25", "SpectralCache 0.4", "SpectralCache 0.6", "TeaCache 0.4",
    "EasyCache 0.05", "EasyCache 0.1", "EasyCache 0.2", "EasyCache 0.4", "EasyCache 0.8", "LazyCache 0.1",
    "LazyCache 0.2", "LazyCache 0.4",
}  # fmt: skip
"""Presets of every other family that are measured beside Auto at both guidances."""
WORDS_GIVE = (
    "Computed steps and, read between the rows above, the PSNR of the picture in dB. The counts were read off euler's "
    "curves at CFG 3 on the first small model (24 pairs, [tried.md](tried.md)), which was harder to follow than this "
    "one. One count serves every sampler, since a sampler is told by its moves, and these are not known before the "
    "plan is made: with Draft dpmpp_2m ends some 4 dB below euler. Where that matters, take Fast, or `computed`."
)


@dataclass(frozen=True, slots=True)
class Part(Cached):
    """Auto with one thing changed."""

    part: str = field(default="", kw_only=True)

    def made(self) -> Method:
        method = Cached.made(self)
        if self.part in PARTS[:2]:
            method = replace(method, rules=tuple(replace(rule, correction=None) for rule in method.rules))
        if self.part == PARTS[1]:
            method = replace(method, rules=tuple(replace(rule, predictor=Hold()) for rule in method.rules))
        return method


def part(name: str, count: int) -> Part:
    changed = {"site trunk": {"site": "trunk"}, "1 band": {"bands": 1}, "4 bands": {"bands": 4}}.get(name, {})
    return Part(f"{AUTO}, {name}", f"{name}, {count}", "auto", {**auto(count).params, **changed}, part=name)


def quick_grid(pairs: int) -> list[Group]:
    """A few rows of each kind."""
    budgets = [arm for n in MUST for arm in (auto(n), fewer(n))]
    count = PART_COUNTS[-1]
    parts = [alike(count), *(part(name, count) for name in PARTS[:3])]
    others = [arm for arm in [*method_arms(["freqca"]), *core_arms()] if arm.name in ("FreqCa N=3", "EasyCache 0.2")]
    return [
        group(28, 1.0, pairs, [*budgets, *parts, *others]),
        group(8, 1.0, pairs, [auto(4, 8)], SAMPLERS[-1]),
    ]


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    if quick:
        return quick_grid(pairs or 1)
    main, side = pairs or PAIRS, min(pairs or SIDE_PAIRS, SIDE_PAIRS)
    others = [
        arm for arm in [*method_arms(["freqca", "spectralcache", "teacache"]), *core_arms()] if arm.name in OTHERS
    ]
    budgets = [arm for n in AUTO_COUNTS for arm in (auto(n), fewer(n), alike(n))]
    parts = [part(name, n) for name in PARTS for n in PART_COUNTS]
    best = [dense(n, power) for power in (1.3, 1.6) for n in (12, 10, 8)]
    made = [group(28, cfg, main, [*budgets, *best, *parts, *others]) for cfg in (1.0, 3.0)]
    for steps, cfg in SIDES:
        counts = sorted({round(steps / budget) for budget in SIDE_BUDGETS}, reverse=True)
        made.append(group(steps, cfg, side, [a for n in counts for a in (auto(n, steps), fewer(n), alike(n))]))
    for sampler in SAMPLERS:
        made.append(group(28, 3.0, side, [auto(n) for n in SAMPLER_COUNTS], sampler))
    return made


# the report -----------------------------------------------------------------------------------------------------------


def budget_table(rows: Sequence[Row]) -> str:
    """Auto at each budget beside the controls at the same computed evaluations. Where these have no rows of their own,
    fewer steps are the mean that Auto was compared with, pair by pair.
    """
    heading = [
        "computed", "speed-up", "Auto", "fewer steps", "fewer, where Auto's are", "over fewer steps",
        "over the same steps", "estimated error",
    ]  # fmt: skip
    body = []
    for row in [row for row in rows if row["family"] == AUTO]:
        count, mine = number(row["computed"]), number(row["psnr"])
        even, same = at(curve_of(rows, FEWER), count), at(curve_of(rows, ALIKE), count)
        if even is None and row["psnr_over_fewer"]:
            even = mine - number(row["psnr_over_fewer"])
        total = evaluations(row["sampler"], int(row["steps"]))
        body.append([
            f"{count:g} of {total}", f"{fixed(number(row['speedup']), 2)}x", fixed(mine, 1),
            "" if even is None else fixed(even, 1), "" if same is None else fixed(same, 1),
            over(row, "psnr_over_fewer", 1),
            "" if same is None else fixed(mine - same, 1, sign=True), f"{fixed(100 * number(row['estimate']), 1)} %",
        ])  # fmt: skip
    return markdown(heading, body)


def main_showing(rows: Sequence[Row]) -> str:
    """Whether what was asked is reached, against the controls and against every other cache."""
    own = {round(number(row["computed"])): row for row in rows if row["family"] == AUTO}
    told = []
    for count, asked in MUST.items():
        gain = number(own[count]["psnr_over_fewer"])
        told.append(f"{count} computed {over(own[count], 'psnr_over_fewer', 1)} dB ({'' if gain >= asked else 'NOT '}"
                    f"the {asked:g} asked)")  # fmt: skip
    behind = [
        f"{name} at {count}"
        for name in (FEWER, ALIKE)
        for count, row in own.items()
        for control in [at(curve_of(rows, name), count)]
        if control is not None and number(row["psnr"]) < control
    ]
    beaten = f"Behind a control: {', '.join(behind)}." if behind else "Behind neither control at any budget."
    return f"Over evenly spaced fewer steps: {'; '.join(told)}. {beaten} {margins(rows)}"


def margins(rows: Sequence[Row]) -> str:
    """Auto's curve read at every other cache's computed evaluations: the smallest margin over each family."""
    mine = curve_of(rows, AUTO)
    found: dict[str, list[float]] = {}
    for row in rows:
        family = row["family"]
        level = at(mine, number(row["computed"]))
        if level is not None and not controls(family) and not family.startswith(AUTO):
            found.setdefault(family, []).append(level - number(row["psnr"]))
    least = ", ".join(f"{family} {fixed(min(values), 1, sign=True)}" for family, values in found.items())
    return f"Smallest margin over other caches at equal computed evaluations, dB: {least}."


def part_table(rows: Sequence[Row]) -> str:
    """What each part is worth: PSNR with one thing changed."""
    heading = ["PSNR", *(f"{count} computed" for count in PART_COUNTS)]
    names = [AUTO, *(f"{AUTO}, {name}" for name in PARTS), ALIKE, FEWER]
    body = []
    for name in names:
        found = {round(number(row["computed"])): row for row in rows if row["family"] == name}
        body.append([name, *(fixed(number(found[n]["psnr"]), 1) if n in found else "" for n in PART_COUNTS)])
    return markdown(heading, body)


def report(rows: Sequence[Row], about: str) -> str:
    """docs/auto.md."""
    parts = [
        "# SpectralCache Auto",
        "Scheduler simple: PSNR of the picture in dB against the full run of the same prompt and seed; means over "
        "pairs with 95 % paired bootstrap intervals. The constants of the method were chosen on other prompts and "
        "seeds.",
    ]
    for own in groups(rows):
        steps, cfg, sampler = (own[0][name] for name in ("steps", "cfg", "sampler"))
        main = (steps, sampler) == ("28", "euler")
        parts.append(f"## {sampler}, {steps} steps, CFG {number(cfg):g}, {own[0]['pairs']} pairs")
        if main:
            parts.append(main_showing(own))
        parts.append(budget_table(own))
        if main:
            parts += ["What each part is worth:", part_table(own)]
        if own[0].get(MEASURED):
            parts.append(f"These rows: {own[0][MEASURED]}")
    return document(*parts, side_showing(rows), "## What the words give", *word_table(rows), about)


def word_table(rows: Sequence[Row]) -> tuple[str, str]:
    """What a word computes, and how close that comes to the full run, by the sampler's kind: read between the rows."""
    body = []
    for own in groups(rows):
        steps, cfg, sampler = int(own[0]["steps"]), number(own[0]["cfg"]), own[0]["sampler"]
        counts = [words.computed(word, steps) for word in words.WORDS]
        levels = [at(curve_of(own, AUTO), evaluations(sampler, count)) for count in counts]
        told = [f": {fixed(level, 1)}" if level else "" for level in levels]
        cells = [f"{count}{level}" for count, level in zip(counts, told, strict=True)]
        body.append([f"{sampler}, {steps} steps, CFG {cfg:g}", *cells])
    return WORDS_GIVE, markdown(["", *words.WORDS], body)


def side_showing(rows: Sequence[Row]) -> str:
    """One sentence on all other steps, guidances and samplers."""
    gains = [number(row["psnr_over_fewer"]) for row in rows if row["family"] == AUTO]
    worst = min(gains)
    return (
        f"Over all {len(gains)} rows of Auto above: {fixed(statistics.fmean(gains), 1, sign=True)} dB over fewer steps "
        f"on average, {fixed(worst, 1, sign=True)} dB in the worst."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_only(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    made = fill.only(options, grid(options.pairs, options.quick))
    return fill.carry_out(options, "auto", made, report, fill.quick_folder(options), beside=bool(options.only))
