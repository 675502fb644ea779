"""The tables of SpectralCache's paper again: FBCache, TeaCache, FastCache and SpectralCache at its settings.

Its Tables 1 and 2 (2603.05315: FLUX.1-schnell, 512², 20 steps) on the small FLUX. There and here everything is held
against the full run of the same model. Every family from careful to draft is in `bench quality`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group, group
from bench.lab.presets import FEWER, fewer
from bench.lab.reading import Row, over, title
from bench.lab.table import document, fixed, markdown, number

STEPS, CFG, PAIRS = 20, 1.0, 24
FEWER_COUNTS = (4, 5, 6, 7, 8, 10, 12, 15)


class Line(NamedTuple):
    """One line of the paper's Tables 1 and 2: what was set, and what it says."""

    name: str
    arm: Cached | None
    seconds: float
    speedup: float
    lpips: float | None = None
    ssim: float | None = None
    psnr: float | None = None


def _at(name: str, method: str, threshold: float) -> Cached:
    return Cached(name, f"{name} {threshold:g}", method=method, params={"threshold": threshold})


PAPER = (
    Line("No Cache", None, 4.24, 1.0),
    Line("FBCache", _at("First-Block Cache", "first_block_cache", 0.12), 2.26, 1.87, 0.145, 0.792, 22.45),
    Line("TeaCache", _at("TeaCache", "teacache", 0.6), 2.0, 2.12, 0.215, 0.734, 20.51),
    Line("FastCache", _at("FastCache", "fastcache", 0.15), 0.94, 4.51, 0.559, 0.36, 14.53),
    Line("SpectralCache", _at("SpectralCache", "spectralcache", 0.6), 1.72, 2.46, 0.217, 0.727, 20.41),
)


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    """`quick`: one pair, fewer controls."""
    arms: list[Arm] = [line.arm for line in PAPER if line.arm]
    controls = [fewer(count) for count in (FEWER_COUNTS[1::4] if quick else FEWER_COUNTS)]
    return [group(STEPS, CFG, pairs or (1 if quick else PAIRS), [*controls, *arms])]


def measured(rows: Sequence[Row]) -> list[tuple[Line, Row]]:
    """The paper's lines that skip, each with our row."""
    by_name = {row["name"]: row for row in rows}
    return [(line, by_name[line.arm.name]) for line in PAPER if line.arm and line.arm.name in by_name]


def paper_table(rows: Sequence[Row]) -> str:
    """The paper's lines, and ours at the same settings."""
    heading = ["", "speed-up, paper", "here", "computed of 20", "PSNR, paper", "here", "SSIM, paper", "here",
               "LPIPS, paper", "PSNR over fewer steps, here"]  # fmt: skip
    body = [["No Cache", "1.00x", "1.00x", str(STEPS), *[""] * 6]]
    for line, row in measured(rows):
        body.append([
            row["name"], f"{line.speedup:.2f}x", f"{fixed(number(row['speedup']), 2)}x",
            fixed(number(row["computed"]), 1), f"{line.psnr:.2f}", fixed(number(row["psnr"]), 1), f"{line.ssim:.3f}",
            fixed(number(row["ssim"]), 3), f"{line.lpips:.3f}", over(row, "psnr_over_fewer", 1),
        ])  # fmt: skip
    return markdown(heading, body)


def orders(rows: Sequence[Row]) -> str:
    """Whether the order of the paper's lines is found again."""
    lines = measured(rows)
    told = [_order("By speed-up", lines, lambda line: line.speedup, lambda row: number(row["speedup"])),
            _order("By PSNR", lines, lambda line: line.psnr or 0.0, lambda row: number(row["psnr"]))]  # fmt: skip
    return " ".join(told)


def _order(
    what: str, lines: Sequence[tuple[Line, Row]], says: Callable[[Line], float], is_: Callable[[Row], float]
) -> str:
    paper = [line.name for line, _ in sorted(lines, key=lambda pair: -says(pair[0]))]
    here = [line.name for line, _ in sorted(lines, key=lambda pair: -is_(pair[1]))]
    if paper == here:
        return f"{what} the order is the paper's: {', '.join(here)}."
    return f"{what} the paper has {', '.join(paper)}; here it is {', '.join(here)}."


def report(rows: Sequence[Row], about: str) -> str:
    """docs/published.md."""
    plain = [row for row in rows if row["family"] == FEWER]
    heading = ["", "speed-up", "PSNR", "SSIM"]
    return document(
        "# The paper's tables again",
        f"SpectralCache's Tables 1 and 2 (arXiv 2603.05315), {title(rows)}: the small FLUX, euler, scheduler simple, "
        "against the full run of the same prompt and seed.",
        paper_table(rows),
        orders(rows),
        "The paper's figures are for FLUX.1-schnell on a GPU, ten pictures at one seed; ours for the small model, so "
        "only the order and the ratios can be compared. LPIPS is not measured here. A skip costs a larger share on a "
        "model this small, and FastCache a decision at every block: its speed-up here is below the share of the work "
        "that it leaves out.",
        "Simply using fewer steps:",
        markdown(heading, [
            [row["name"], f"{fixed(number(row['speedup']), 2)}x", fixed(number(row["psnr"]), 1),
             fixed(number(row["ssim"]), 3)]
            for row in plain
        ]),
        "Every published method from careful to draft: [quality.md](quality.md). Computed: evaluations, of FastCache "
        "by the share of the blocks that ran. PSNR over fewer steps: the mean of paired differences to the plain "
        "sampler with as many steps as were computed for that pair, the next whole number, with its 95 % bootstrap "
        "interval over pairs. Speed-up: processor seconds, median over pairs.",
        about,
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_minutes(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    made = grid(options.pairs, options.quick)
    return fill.carry_out(options, "published", made, report, fill.quick_folder(options))
