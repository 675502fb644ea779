"""FEB-Cache's two parts apart (2503.07120, its ablation): the table of half steps, the scaling of the noise, both.

On the small FLUX, with fewer plain steps as the control. Half steps count as the work that they leave.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.lab import fill
from bench.lab.arms import Arm, Cached, SetUp
from bench.lab.grid import Group, group
from bench.lab.presets import FEWER, auto, fewer
from bench.lab.reading import Row, cells, matched, over
from bench.lab.table import document, markdown
from cache_core.methods.feb_cache import RELEASED
from cache_core.outputs import noise_scale

if TYPE_CHECKING:
    from bench.lab.studio import Studio

STEPS, PAIRS = 28, 2
GUIDANCE = (1.0, 3.0)
WORKS = (0.7, 0.5, 0.35)
SCALINGS = {"off": "the table alone", "paper": "table and b(t)", "code": "table and 1 / 0.965"}
PLACES = (10, 14, 20)
FEWER_COUNTS = (9, 10, 12, 14, 16, 20, 22)


@dataclass(frozen=True, slots=True)
class ScaledNoise(Arm):
    """The plain sampler with the predicted noise scaled on every step and nothing skipped."""

    paper: bool

    def set_up(self, studio: Studio, steps: int) -> SetUp:
        model = studio.model.clone()
        model.set_model_sampler_post_cfg_function(partial(_scaled, self.paper))
        return SetUp(model, steps)


def _scaled(paper: bool, args: dict[str, Any]) -> torch.Tensor:
    """denoised' = b·denoised + (1 - b)·x / (1 - sigma), as in `cache_core.outputs`, with sigma as t."""
    denoised, sigma = args["denoised"], float(args["sigma"].flatten()[0])
    if sigma > 0.98:
        return denoised  # type: ignore[no-any-return]
    b = noise_scale(sigma, 0.98, 0.96) if paper else 1 / RELEASED
    return b * denoised + (1 - b) / (1 - sigma) * args["input"]  # type: ignore[no-any-return]


def arms() -> list[Arm]:
    halves = [
        Cached(name, f"{name}, {work:g}", method="feb_cache", params={"work": work, "scaling": scaling})
        for scaling, name in SCALINGS.items()
        for work in WORKS
    ]
    alone = [ScaledNoise("b(t) alone", "b(t) alone", paper=True), ScaledNoise("1 / 0.965", "1 / 0.965", paper=False)]
    return [*(fewer(count) for count in FEWER_COUNTS), *alone, *halves, *(auto(count) for count in PLACES)]


def grid(pairs: int | None) -> list[Group]:
    return [group(STEPS, cfg, pairs or PAIRS, arms()) for cfg in GUIDANCE]


def report(rows: Sequence[Row], about: str) -> str:
    """docs/halves.md."""
    heading = ("", "work, in steps", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps")
    parts = []
    for cfg in GUIDANCE:
        mine = [row for row in rows if float(row["cfg"]) == cfg]
        shown = [[*cells(row)[:5], over(row, "psnr_over_fewer", 1)] for row in mine if row["family"] != FEWER]
        at_work = matched(mine, {f"{place} steps": place for place in PLACES}, "PSNR at the work of")
        parts += [f"## CFG {cfg:g}", markdown(*at_work), markdown(heading, shown)]
    return document(
        "# Half steps",
        f"FEB-Cache's table and its scaling of the noise, apart and together, on the small FLUX: {STEPS} steps, Euler, "
        f"{rows[0]['pairs']} prompt and seed pairs. PSNR to the full run.",
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out(options, "halves", grid(options.pairs), report)
