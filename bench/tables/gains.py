"""What a method does to the noise, learned from other prompts and taken back: FEB-Cache's gain, Q&C's of each channel.

On the small FLUX. A gain is learned from runs with and without the cache on three other prompts, at the same steps and
guidance; the runs that are measured cost as much with it as without.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench.lab import fill
from bench.lab.arms import Arm, Cached
from bench.lab.gained import LEARNED_FROM, Gained
from bench.lab.grid import Group, group
from bench.lab.reading import Row, between
from bench.lab.table import document, fixed, markdown, number
from cache_core.gains import Kind

STEPS, PAIRS = 28, 6
GUIDANCE = (1.0, 3.0)
METHODS = (
    ("SpectralCache 0.6", "spectralcache", {"threshold": 0.6}),
    ("TeaCache 0.6", "teacache", {"threshold": 0.6}),
    ("First-Block Cache 0.12", "first_block_cache", {"threshold": 0.12}),
    ("MagCache", "magcache", {}),
    ("FreqCa N=4", "freqca", {"interval": 4}),
    ("TaylorSeer N=4", "taylorseer", {"interval": 4}),
    ("FEB-Cache 0.5", "feb_cache", {"work": 0.5}),
)
KINDS: tuple[Kind, ...] = ("noise", "channels")
HEADINGS = {"": "as it is", "noise": "gain of the noise", "channels": "gain of each channel"}


QUICK_STEPS, QUICK = 8, METHODS[4:5]


def arms(cfg: float, quick: bool = False) -> list[Arm]:
    found: list[Arm] = []
    for name, method, params in QUICK if quick else METHODS:
        found.append(Cached(name, name, method=method, params=params))
        found += [
            Gained(name, f"{name}, {kind}", method=method, params=params, gain=kind, cfg=cfg) for kind in KINDS
        ]
    return found


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    steps, count = (QUICK_STEPS, 1) if quick else (STEPS, PAIRS)
    return [group(steps, cfg, pairs or count, arms(cfg, quick)) for cfg in GUIDANCE]


def report(rows: Sequence[Row], about: str) -> str:
    """docs/gains.md."""
    parts, signs = [], dict[str, list[int]]()
    for cfg in dict.fromkeys(float(row["cfg"]) for row in rows):
        body = []
        for name in dict.fromkeys(row["family"] for row in rows):
            mine = [row for row in rows if row["family"] == name and float(row["cfg"]) == cfg]
            plain, *gained = mine
            cells = [name, fixed(number(plain["computed"]), 1), fixed(number(plain["psnr"]), 1)]
            for row in gained:
                over = between(row, plain)
                low, high = (fixed(end, 2, sign=True) for end in (over.low, over.high))
                cells.append(f"{fixed(over.mean, 2, sign=True)} ({low} to {high})")
                signs.setdefault(row["name"].rpartition(", ")[2], []).append(over.sign)
            body.append(cells)
        heading = f"## CFG {cfg:g}, {mine[0]['pairs']} prompt and seed pairs"
        parts += [heading, markdown(["PSNR", "work, in steps", *HEADINGS.values()], body)]
    return document(
        "# Gains",
        f"What a cache does to a run, learned from {LEARNED_FROM} other prompts and taken back, on the small FLUX: "
        f"{rows[0]['steps']} steps, Euler. PSNR to the full run, mean over pairs, and what a gain adds to it, pair by "
        "pair, with its 95 % interval; the work is the same in each row but for methods that look at the picture. A "
        "learned gain belongs to one method with one set of settings, and learning it takes two runs a prompt.",
        " ".join(
            f"The {HEADINGS[kind]}: closer to the full run in {found.count(1)} of {len(found)} settings, further away "
            f"in {found.count(-1)}, undecided in {found.count(0)}."
            for kind, found in signs.items()
        ),
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_minutes(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    groups = grid(options.pairs, options.quick)
    return fill.carry_out(options, "gains", groups, report, fill.quick_folder(options))
