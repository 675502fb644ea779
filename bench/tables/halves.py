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
from bench.lab.intervals import at
from bench.lab.presets import FEWER, auto, fewer
from bench.lab.reading import Row, between, cells, curve_of, matched, over
from bench.lab.table import document, fixed, markdown, number
from bench.lab.verdict import showing
from cache_core.methods.feb_cache import RELEASED
from cache_core.outputs import noise_scale

if TYPE_CHECKING:
    from bench.lab.studio import Studio

STEPS, PAIRS = 28, 6
GUIDANCE = (1.0, 3.0)
WORKS = (0.7, 0.5, 0.35)
SCALINGS = {"off": "the table alone", "paper": "table and b(t)", "code": "table and 1 / 0.965"}
STATES = ((0.15, 0.4), (0.3, 0.6), (0.6, 1.2))
"""Thresholds of a skip and of half a step."""
PLACES, COMPARED = (10, 14, 20), (10, 13, 18)
"""Steps that Auto computes; the work at which all are compared."""
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
    chosen = [
        Cached("full, half or skip by SpectralCache", f"states {skip:g}/{half:g}", method="spectral_halves",
               params={"skip": skip, "half": half})
        for skip, half in STATES
    ]  # fmt: skip
    return [*(fewer(count) for count in FEWER_COUNTS), *alone, *halves, *chosen, *(auto(count) for count in PLACES)]


def grid(pairs: int | None) -> list[Group]:
    return [group(STEPS, cfg, pairs or PAIRS, arms()) for cfg in GUIDANCE]


def report(rows: Sequence[Row], about: str) -> str:
    """docs/halves.md."""
    heading = ("", "work, in steps", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps")
    parts = []
    for cfg in GUIDANCE:
        mine = [row for row in rows if float(row["cfg"]) == cfg]
        shown = [[*cells(row)[:5], over(row, "psnr_over_fewer", 1)] for row in mine if row["family"] != FEWER]
        at_work = matched(mine, {f"{place} steps": place for place in COMPARED}, "PSNR at the work of")
        told = showing([row for row in mine if int(row["skipping"])])
        parts += [f"## CFG {cfg:g}, {mine[0]['pairs']} prompt and seed pairs", markdown(*ablation(mine)),
                  taken_back(mine), markdown(*at_work), told, markdown(heading, shown)]  # fmt: skip
    return document(
        "# Half steps",
        "FEB-Cache's table and its scaling of the noise, apart and together, and SpectralCache's gate choosing between "
        f"a full, a half and no step, on the small FLUX: {STEPS} steps, Euler. PSNR to the full run.",
        "The paper's ablation is by FID, which a few pictures of a small model cannot give. Closeness to the full run "
        "cannot credit a scaling that would make pictures better than the full run's: what it shows is whether the "
        "scaling takes back what the table has changed.",
        *parts,
        about,
    )


def ablation(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The paper's four cases at each work. With neither part there is nothing but fewer plain steps."""
    by_name = {row["name"]: row for row in rows}
    heading = ["PSNR, by the work left", *(f"{work:g}" for work in WORKS)]
    plain, scaled = curve_of(rows, FEWER), by_name["b(t) alone"]
    body = [["neither: as many plain steps", *(_at(plain, work * STEPS) for work in WORKS)],
            ["scaling only, nothing skipped", *(fixed(number(scaled["psnr"]), 1) for _ in WORKS)]]  # fmt: skip
    for family, says in (("the table alone", "table only"), ("table and b(t)", "both")):
        body.append([says, *(fixed(number(by_name[f"{family}, {work:g}"]["psnr"]), 1) for work in WORKS)])
    return heading, body


def taken_back(rows: Sequence[Row]) -> str:
    """What b(t) adds to the table, pair by pair, and whether that is what the paper found."""
    by_name = {row["name"]: row for row in rows}
    pairs = [tuple(by_name[f"{SCALINGS[scaling]}, {work:g}"] for scaling in ("paper", "off")) for work in WORKS]
    gains = [between(both, table) for both, table in pairs]
    told = ", ".join(
        f"{fixed(gain.mean, 1, sign=True)} dB ({fixed(gain.low, 1, sign=True)} to {fixed(gain.high, 1, sign=True)}) at "
        f"{work:g}"
        for gain, work in zip(gains, WORKS, strict=True)
    )
    better, worse = (sum(gain.sign == sign for gain in gains) for sign in (1, -1))
    verdict = "as the paper found" if better == len(gains) else "where the paper found both together best"
    return (
        f"b(t) adds to the table, pair by pair: {told}. It takes back what the table has changed at {better} of "
        f"{len(gains)} shares of the work, makes it worse at {worse}, {verdict}."
    )


def _at(points: Sequence[tuple[float, float]], place: float) -> str:
    value = at(points, place)
    return "" if value is None else fixed(value, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_minutes(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out(options, "halves", grid(options.pairs), report)
