"""The negative prompt derived instead of evaluated, against fewer steps that cost as much.

Cost is counted in evaluations of both prompts: one in which the negative is derived counts half. The control is the
plain sampler's curve over its steps, read at that cost.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from bench.host.provision import say
from bench.lab import Studio, fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group, group
from bench.lab.intervals import at, finite_mean
from bench.lab.presets import AUTO, FEWER, PRESETS, fewer
from bench.lab.reading import Row
from bench.lab.runner import Runner
from bench.lab.store import Outcome, Store
from bench.lab.table import document, fixed, markdown, number

STEPS, CFG, PAIRS = 28, 3.0, 3
COUNTS = (6, 8, 10, 12, 16, 20, 24)


def auto(count: int, guidance: str) -> Cached:
    name = AUTO if guidance == "follow" else f"{AUTO}, guidance derive"
    params = {"computed": count, "guidance": guidance, "site": "guided"}
    return Cached(name, f"{name}, {count} steps", method="auto", params=params)


def arms() -> list[Arm]:
    follow = [auto(count, "follow") for count in (8, 10, 12)]
    derive = [auto(count, "derive") for count in (9, 12, 14)]
    return [*(fewer(count) for count in COUNTS), *PRESETS["cfg_cache"], *follow, *derive]


def rows(g: Group, runner: Runner) -> list[dict[str, object]]:
    """One line an arm: means over pairs. Made pair by pair, so that one full run serves all arms."""
    found: list[list[Outcome]] = []
    for i, pair in enumerate(g.pairs):
        found.append([runner.outcome(arm, pair, g.steps) for arm in g.arms])
        say(f"{i + 1} of {len(g.pairs)} pairs")
    return [
        {
            "steps": g.steps, "cfg": g.cfg, "family": arm.family, "name": arm.name, "pairs": len(g.pairs),
            "cost": statistics.fmean(o.computed for o in own), "speedup": statistics.median(o.speedup for o in own),
            "psnr": finite_mean([o.psnr for o in own]), "ssim": statistics.fmean(o.ssim for o in own),
        }
        for arm, own in zip(g.arms, zip(*found, strict=True), strict=True)
    ]  # fmt: skip


def curve(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    return [(number(row["cost"]), number(row["psnr"])) for row in rows if row["family"] == family]


def derive_showing(rows: Sequence[Row]) -> str:
    """Whether deriving is worth it beside Auto, which can compute fewer steps instead."""
    told = []
    for row in rows:
        plain = at(curve(rows, AUTO), number(row["cost"]))
        if row["family"] != AUTO and row["family"].startswith(AUTO) and plain is not None:
            told.append(f"{number(row['psnr']) - plain:+.1f} dB at {number(row['cost']):g}")
    return f"Auto with guidance derive against Auto as it is, at equal cost: {'; '.join(told) or 'not comparable'}."


def report(rows: Sequence[Row], about: str) -> str:
    """docs/guidance.md."""
    heading = ["", "cost", "speed-up", "PSNR", "SSIM", "over fewer steps", "over Auto as it is"]
    body, ahead, told = [], 0, 0
    for row in rows:
        place, mine = number(row["cost"]), number(row["psnr"])
        controls = [at(curve(rows, family), place) for family in (FEWER, AUTO)]
        over = ["" if c is None or row["family"] == f else fixed(mine - c, 1, sign=True)
                for c, f in zip(controls, (FEWER, AUTO), strict=True)]  # fmt: skip
        if row["family"] != FEWER and controls[0] is not None:
            told, ahead = told + 1, ahead + (mine > controls[0])
        cells = [fixed(place, 1), f"{fixed(number(row['speedup']), 2)}x", fixed(mine, 1), fixed(number(row["ssim"]), 3)]
        body.append([row["name"], *cells, *over])
    first = rows[0]
    return document(
        "# The negative prompt, derived",
        f"The small FLUX of this repository, euler, {first['steps']} steps, CFG {number(first['cfg']):g}, "
        f"pairs of prompt and seed: {first['pairs']}. PSNR of the picture in dB against the full run. Cost counts "
        "evaluations of both prompts; one in which the negative's result is derived counts half. Over fewer steps: "
        "against the plain sampler's curve, read at the same cost.",
        f"{ahead} of {told} rows come closer to the full run than fewer steps at equal cost. {derive_showing(rows)}",
        markdown(heading, body),
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    def records(studio: Studio) -> list[dict[str, object]]:
        return rows(group(STEPS, CFG, options.pairs or PAIRS, arms()), Runner(studio, Store()))

    return fill.carry_out_records(options, "guidance", records, ["auto", "cfg_cache"], report)
