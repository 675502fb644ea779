"""The negative prompt derived instead of evaluated, against fewer steps that cost as much.

Cost is counted in evaluations of both prompts: one in which the negative is derived counts half.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group, group
from bench.lab.intervals import at
from bench.lab.presets import AUTO, FEWER, NEED_GUIDANCE, PRESETS, fewer
from bench.lab.reading import Row, curve_of, families, over, title
from bench.lab.table import document, fixed, markdown, number
from bench.lab.verdict import standing

STEPS, CFG, PAIRS = 28, 3.0, 6
COUNTS = (6, 8, 10, 12, 16, 20, 24)
DERIVE = f"{AUTO}, guidance derive"


def auto(count: int, guidance: str) -> Cached:
    name = AUTO if guidance == "follow" else DERIVE
    params = {"computed": count, "guidance": guidance, "site": "guided"}
    return Cached(name, f"{name}, {count} steps", method="auto", params=params)


def arms() -> list[Arm]:
    follow = [auto(count, "follow") for count in (8, 10, 12, 14)]
    derive = [auto(count, "derive") for count in (9, 12, 14)]
    derived = [arm for name in NEED_GUIDANCE for arm in PRESETS[name]]
    return [*(fewer(count) for count in COUNTS), *derived, *follow, *derive]


def grid(pairs: int | None) -> list[Group]:
    return [group(STEPS, CFG, pairs or PAIRS, arms())]


def over_auto(rows: Sequence[Row], row: Row) -> float | None:
    """Auto's own curve read at the row's cost: it can save the same by computing fewer steps."""
    level = at(curve_of(rows, AUTO), number(row["computed"]))
    return None if level is None or row["family"] == AUTO else number(row["psnr"]) - level


def sentences(rows: Sequence[Row]) -> Iterator[str]:
    """Each way to derive against fewer steps, and Auto's against Auto as it is."""
    for family, members in families(rows).items():
        if family != FEWER:
            yield f"{family}: {standing(members)}"
    told = [(number(row["computed"]), gain) for row in rows
            if row["family"] == DERIVE and (gain := over_auto(rows, row)) is not None]  # fmt: skip
    if not told:
        yield "Auto with guidance derive and Auto as it is never cost the same, so they cannot be compared."
        return
    listed = ", ".join(f"{gain:+.1f} dB at {cost:.1f}" for cost, gain in told)
    wins = sum(gain > 0 for _, gain in told)
    advice = "derive is worth it here" if wins == len(told) else "follow stays the default" if wins else "leave it off"
    yield f"Auto with guidance derive against Auto as it is, at equal cost: {listed}; so {advice}."


def report(rows: Sequence[Row], about: str) -> str:
    """docs/guidance.md."""
    heading = ["", "cost", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps", "PSNR over Auto as it is"]
    body = []
    for row in rows:
        gain = over_auto(rows, row)
        body.append([
            row["name"], fixed(number(row["computed"]), 1), f"{fixed(number(row['speedup']), 2)}x",
            fixed(number(row["psnr"]), 1), fixed(number(row["ssim"]), 3), over(row, "psnr_over_fewer", 1),
            "" if gain is None or row["family"] == FEWER else fixed(gain, 1, sign=True),
        ])  # fmt: skip
    return document(
        "# The negative prompt, derived",
        f"The small FLUX, euler, {title(rows)}. PSNR of the picture in dB against the full run. "
        "Cost counts evaluations of both prompts; one in which the negative's result is derived counts half. Over "
        "fewer steps: the mean of paired differences to the plain sampler at the same cost (the next whole number of "
        "steps), with its 95 % bootstrap interval over pairs. Over Auto as it is: against its curve, read at the same "
        "cost.",
        " ".join(sentences(rows)),
        markdown(heading, body),
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_minutes(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out(options, "guidance", grid(options.pairs), report)
