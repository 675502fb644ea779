"""The published methods from careful to draft beside fewer steps, and the tables of SpectralCache's paper again.

Its Tables 1 and 2 (2603.05315: FLUX.1-schnell, 512², 20 steps) at the same settings on the small FLUX. There and here
everything is held against the full run of the same model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group, group
from bench.lab.presets import OTHERS, PRESETS, auto, fewer
from bench.lab.reading import HEADING, Row, cells, groups, matched, title
from bench.lab.table import document, fixed, markdown, number

STEPS, CFG, PAIRS = 28, 3.0, 8
FEWER_COUNTS = (4, 5, 6, 7, 9, 10, 12, 14, 17, 19, 23)
AUTO_COUNTS = (20, 14, 10, 8, 6, 5)
PAPER_STEPS, PAPER_CFG = 20, 1.0


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
    """`quick`: one pair of the paper's settings alone."""
    paper: list[Arm] = [line.arm for line in PAPER if line.arm]
    again = group(PAPER_STEPS, PAPER_CFG, pairs or (1 if quick else PAIRS), [fewer(5), fewer(10), *paper])
    if quick:
        return [again]
    published = [arm for name in OTHERS for arm in PRESETS[name]]
    arms = [*(fewer(n) for n in FEWER_COUNTS), *(auto(n) for n in AUTO_COUNTS), *published]
    return [group(STEPS, CFG, pairs or PAIRS, arms), again]


def paper_table(rows: Sequence[Row]) -> str:
    """The paper's lines, and ours at the same settings."""
    heading = ["", "speed-up, paper", "here", "computed of 20", "PSNR, paper", "here", "SSIM, paper", "here",
               "LPIPS, paper", "PSNR over fewer steps, here"]  # fmt: skip
    body = []
    for line in PAPER:
        row = next((row for row in rows if line.arm and row["name"] == line.arm.name), None)
        says = [None if line.psnr is None else f"{line.psnr:.2f}", line.ssim and f"{line.ssim:.3f}"]
        if row is None:
            body.append([line.name, f"{line.speedup:.2f}x", "1.00x", str(PAPER_STEPS), *[""] * 6])
            continue
        mine = (f"{fixed(number(row['speedup']), 2)}x", fixed(number(row["computed"]), 1))
        body.append([
            f"{line.name} {line.arm.params['threshold']:g}" if line.arm else line.name, f"{line.speedup:.2f}x", *mine,
            says[0] or "", fixed(number(row["psnr"]), 1), says[1] or "", fixed(number(row["ssim"]), 3),
            f"{line.lpips:.3f}", fixed(number(row["psnr_over_fewer"]), 1, sign=True),
        ])  # fmt: skip
    return markdown(heading, body)


def report(rows: Sequence[Row], about: str) -> str:
    """docs/published.md."""
    parts = [
        "# The published methods",
        "The small FLUX of this repository, euler, scheduler simple, shift 1.5, against the full run of the same "
        "prompt and seed. It tells methods apart under equal conditions; it does not say how FLUX.1 looks at these "
        "settings.",
    ]
    for found in groups(rows):
        if int(found[0]["steps"]) == PAPER_STEPS:
            parts += [
                f"## SpectralCache's paper, Tables 1 and 2: {title(found)}",
                paper_table(found),
                "The paper's figures are for FLUX.1-schnell on a GPU, ten pictures at one seed; ours for the small "
                "model, so only the order and the ratios can be compared. LPIPS is not measured here. A skip costs a "
                "larger share on a model this small, and FastCache a decision at every block: its speed-up here is "
                "below the share of the work it leaves out.",
            ]
            continue
        parts += [
            f"## {title(found)}",
            "PSNR in dB at matched budgets (interpolated between a family's settings, blank where none brackets it):",
            markdown(*matched(found)),
            markdown(HEADING, [cells(row) for row in found]),
        ]
    parts += [
        "Computed: evaluations, of FastCache by the share of the blocks that ran. PSNR and SSIM over fewer steps: the "
        "mean of paired differences to the plain sampler with as many steps as were computed for that pair, the next "
        "whole number, with its 95 % bootstrap interval over pairs. Speed-up: processor seconds, median over pairs.",
        about,
    ]
    return document(*parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    groups_ = grid(options.pairs, options.quick)
    return fill.carry_out(options, "published", groups_, report, fill.quick_folder(options))
