"""DeepCache against SpectralCache Auto on a tiny U-Net of the SD1.5 class, beside fewer steps.

The U-Net is trained in minutes on painted latents (`bench.lab.unet`), on first use. What is held against the full run
is its latent, since there is no decoder for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group
from bench.lab.intervals import at
from bench.lab.presets import AUTO, DEEPCACHE, fewer
from bench.lab.reading import Row, controls, curve_of, families, matched, over, title
from bench.lab.table import document, fixed, markdown, number
from bench.lab.unet import BATCH, ROUNDS, UNetPainter, cases
from bench.lab.verdict import standing

STEPS, CFG, PAIRS = 50, 3.0, 6
"""The authors' number of steps."""
COUNTS = (5, 7, 10, 13, 17, 20, 25, 30, 35, 40)
PLACES = (30, 25, 20, 15, 10)


def auto(count: int) -> Cached:
    params = {"computed": count, "site": "guided"}
    return Cached(AUTO, f"Auto, {count} of {STEPS}", method="auto", params=params)


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    """`quick`: one pair, twelve steps, one setting of each, on a U-Net that is hardly trained."""
    if quick:
        return [_group(12, pairs or 1, [fewer(5), *DEEPCACHE[1::6], auto(5)])]
    arms: list[Arm] = [*(fewer(n) for n in COUNTS), *DEEPCACHE, *(auto(n) for n in COUNTS)]
    return [_group(STEPS, pairs or PAIRS, arms)]


def _group(steps: int, pairs: int, arms: Sequence[Arm]) -> Group:
    return Group(steps, CFG, tuple(cases(pairs, CFG)), tuple(arms))


def verdict(rows: Sequence[Row]) -> str:
    """Auto's curve read at the work that each setting of DeepCache leaves."""
    gaps = [
        number(row["psnr"]) - level
        for row in rows
        if row["family"].startswith("DeepCache")
        and (level := at(curve_of(rows, AUTO), number(row["computed"]))) is not None
    ]
    if not gaps:
        return "DeepCache and Auto never cost the same here, so they cannot be compared."
    ahead = sum(gap > 0 for gap in gaps)
    better = "Auto is the better choice on this U-Net" if ahead < len(gaps) / 2 else "DeepCache is the better choice"
    span = f"{fixed(min(gaps), 1, sign=True)} to {fixed(max(gaps), 1, sign=True)} dB"
    return f"At equal work DeepCache is closer than Auto in {ahead} of {len(gaps)} settings ({span}): {better}."


def report(rows: Sequence[Row], about: str) -> str:
    """docs/unet.md."""
    told = [f"{family}: {standing(own)}" for family, own in families(rows).items() if not controls(family)]
    heading = ["", "work, in steps", "speed-up", "PSNR", "PSNR over fewer steps"]
    body = [
        [row["name"], fixed(number(row["computed"]), 1), f"{fixed(number(row['speedup']), 2)}x",
         fixed(number(row["psnr"]), 1), over(row, "psnr_over_fewer", 1)]
        for row in rows
    ]  # fmt: skip
    return document(
        "# DeepCache and Auto on a U-Net",
        f"A tiny U-Net of the SD1.5 class, trained here for {ROUNDS} rounds of {BATCH} painted latents, euler, "
        f"{title(rows)}: the latent in dB against the full run of the same prompt and seed. A skipped step of "
        "DeepCache still runs its outermost blocks; it counts by the share of the U-Net's work that they are. Auto "
        "(site guided) runs nothing on a skip. How SD1.5 and SDXL look at these settings so small a model cannot say.",
        " ".join([verdict(rows), *told]),
        markdown(*matched(rows, {f"{place} steps": float(place) for place in PLACES}, "PSNR at the work of")),
        markdown(heading, body),
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_minutes(parser)
    fill.add_arguments(parser, models=False)


def run(options: argparse.Namespace) -> int:
    made, opened = grid(options.pairs, options.quick), partial(UNetPainter, rounds=4 if options.quick else ROUNDS)
    return fill.carry_out(options, "unet", made, report, fill.quick_folder(options), opened=opened)
