"""A polynomial fitted to the user's own model instead of FLUX.1's, at equal computed evaluations.

TeaCache and SpectralCache over their thresholds, with FLUX.1's published polynomial and with the one that Cache
Calibrate fits to the small FLUX, each curve read where both compute as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.grid import Group, group
from bench.lab.intervals import at
from bench.lab.presets import FEWER, NO_FDC, fewer
from bench.lab.profiled import Profiled
from bench.lab.reading import Row, cells, curve, families, over
from bench.lab.table import document, fixed, markdown, number

STEPS, PAIRS = 28, 6
GUIDANCE = (1.0,)
THRESHOLDS = (0.3, 0.5, 0.8, 1.2)
PLACES = (8, 10, 12, 14, 16)
COUNTS = (8, 10, 12, 14, 16)
PUBLISHED, FITTED = "FLUX.1's", "fitted"
METHODS = {"TeaCache": ("teacache", {}), "SpectralCache": ("spectralcache", {"max_consecutive": 3, **NO_FDC})}


def arms(cfg: float, thresholds: Sequence[float] = THRESHOLDS) -> list[Arm]:
    found: list[Arm] = [fewer(count) for count in COUNTS]
    for title, (method, more) in METHODS.items():
        for threshold in thresholds:
            name = f"{title}, {PUBLISHED}"
            plain = Cached(name, f"{name}, {threshold:g}", method=method, params={"threshold": threshold, **more})
            name = f"{title}, {FITTED}"
            own = Profiled(name, f"{name}, {threshold:g}", method=method, params=plain.params, cfg=cfg)
            found += [plain, replace(own, recorded_steps=STEPS)]
    return found


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    if quick:
        return [group(STEPS, 1.0, pairs or 1, [fewer(COUNTS[1]), fewer(COUNTS[3]), *arms(1.0, (0.5,))[len(COUNTS) :]])]
    return [group(STEPS, cfg, pairs or PAIRS, arms(cfg)) for cfg in GUIDANCE]


def matched(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """PSNR at equal computed evaluations."""
    body = []
    for family, members in families(rows).items():
        values = [at(curve(members), place) for place in PLACES]
        body.append([family, *("" if value is None else f"{value:.1f}" for value in values)])
    return ["PSNR at", *(f"{place} computed" for place in PLACES)], body


def showing(rows: Sequence[Row]) -> str:
    """Whether the fit is worth it, from the rows alone."""
    curves = {family: curve(members) for family, members in families(rows).items()}
    plain = curves.get(FEWER, [])
    told = []
    for title in METHODS:
        both = [curves.get(f"{title}, {kind}", []) for kind in (FITTED, PUBLISHED)]
        gaps = [(p, a - b) for p in PLACES if (a := at(both[0], p)) is not None and (b := at(both[1], p)) is not None]
        if not gaps:
            told.append(f"{title}: the two never compute equally much, so they cannot be compared.")
            continue
        better = sum(gap > 0 for _, gap in gaps)
        listed = ", ".join(f"{gap:+.1f} dB at {place}" for place, gap in gaps)
        told.append(
            f"{title}, {FITTED} against {PUBLISHED} at equal computed evaluations: {listed}; ahead at {better} of "
            f"{len(gaps)}."
        )
        control = [at(both[0], p) - c for p in PLACES if at(both[0], p) is not None and (c := at(plain, p)) is not None]
        if control:
            told.append(f"Against as many plain steps it is {min(control):+.1f} to {max(control):+.1f} dB.")
    return " ".join(told)


def report(rows: Sequence[Row], about: str) -> str:
    """docs/fitted.md."""
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        own = [row for row in rows if row["cfg"] == cfg]
        body = [[*cells(row)[:5], over(row, "psnr_over_fewer", 1)] for row in own]
        parts += [
            f"## CFG {number(cfg):g}",
            showing(own),
            markdown(*matched(own)),
            markdown(("", "computed", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps"), body),
        ]
    least = fixed(min(number(row["computed"]) for row in rows), 1)
    return document(
        "# A polynomial of your own model",
        f"TeaCache and SpectralCache (without FDC, at most 3 skips in a row) on the small FLUX, euler, {STEPS} steps, "
        f"{rows[0]['pairs']} pairs of prompt and seed: with FLUX.1's published polynomial, and with the one that Cache "
        "Calibrate fits to the small FLUX itself on four other captions. PSNR of the picture in dB against the full "
        f"run. Each curve over the thresholds is read where it computes as much (the least here is {least}); blank "
        "where no threshold brackets it.",
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out(options, "fitted", grid(options.pairs, options.quick), report, fill.quick_folder(options))
