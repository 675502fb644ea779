"""SpectralCache's components one by one, at equal thresholds and at equal computed evaluations.

Tables 3 and 4 of its paper (2603.05315) on the small FLUX. The paper compares at one threshold, where combinations
skip unequally. Here also each one's curve over the threshold, read where it computes as much as the others.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

from bench.lab import fill
from bench.lab.arms import Cached
from bench.lab.grid import Group, group
from bench.lab.intervals import at
from bench.lab.presets import FEWER, NO_CEB, NO_FDC, NO_TADS, fewer
from bench.lab.reading import Row, cells, curve, families, matched, over, sign
from bench.lab.table import document, fixed, markdown, number

STEPS, CFG, PAIRS = 20, 1.0, 12
"""The paper's: 20 steps of a model without guidance."""
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.2)
PUBLISHED = 0.6
FULL = "TADS + CEB + FDC"
BASE = "none (TeaCache)"
SWITCHES = (("TADS", NO_TADS), ("CEB", NO_CEB), ("FDC", NO_FDC))
PLACES = (7, 8, 9, 10, 11, 12, 14)
FEWER_COUNTS = (6, 7, 8, 9, 10, 11, 12, 14, 16)


def combinations() -> Iterator[tuple[str, dict[str, float]]]:
    """The eight combinations in the paper's order: name, and the parameters that switch the others off."""
    for count in range(len(SWITCHES) + 1):
        for on in itertools.combinations(range(len(SWITCHES)), count):
            off = [SWITCHES[i][1] for i in range(len(SWITCHES)) if i not in on]
            name = " + ".join(SWITCHES[i][0] for i in on) or BASE
            yield name, {key: value for settings in off for key, value in settings.items()}


def arms(thresholds: Sequence[float] = THRESHOLDS) -> list[Cached]:
    return [
        Cached(name, f"{name}, {threshold:g}", method="spectralcache", params={"threshold": threshold, **off})
        for name, off in combinations()
        for threshold in thresholds
    ]


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    """`quick`: one pair at the published threshold."""
    if quick:
        short = [*(fewer(count) for count in FEWER_COUNTS[::4]), *arms((PUBLISHED,))]
        return [group(STEPS, CFG, pairs or 1, short)]
    return [group(STEPS, CFG, pairs or PAIRS, [*(fewer(count) for count in FEWER_COUNTS), *arms()])]


def at_threshold(rows: Sequence[Row], threshold: float) -> list[Row]:
    return [row for row in rows if row["name"].endswith(f", {threshold:g}")]


def twins(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows with FDC beside the same without it, where both computed and scored exactly the same."""
    figures = ("computed", "computed_least", "computed_most", "psnr", "ssim")
    found = []
    for row in rows:
        without = row["name"].replace(" + FDC", "").replace("FDC", BASE)
        for other in rows:
            if "FDC" in row["family"] and other["name"] == without and all(row[f] == other[f] for f in figures):
                found.append((row, other))
    return found


def showing(rows: Sequence[Row]) -> str:
    """What the tables show, from the rows alone."""
    with_fdc = [row for row in rows if "FDC" in row["family"]]
    same = twins(rows)
    worse = [row["name"] for row in rows if row["psnr_over_fewer"] and int(row["skipping"]) and sign(row) < 0]
    better = [row["name"] for row in rows if row["psnr_over_fewer"] and int(row["skipping"]) and sign(row) > 0]
    skipping = [row for row in rows if row["psnr_over_fewer"] and int(row["skipping"])]
    sentences = [
        f"FDC changed nothing at all in {len(same)} of {len(with_fdc)} settings that have it.",
        f"Of {len(skipping)} settings that skip, {len(better)} come closer to the full run than the plain sampler with "
        f"as many steps, {len(worse)} are further away.",
    ]
    base, full = (families(rows)[name] for name in (BASE, FULL))
    gaps = [
        (place, a - b)
        for place in PLACES
        if (a := at(curve(full), place)) is not None and (b := at(curve(base), place)) is not None
    ]
    if gaps:
        listed = ", ".join(f"{gap:+.1f} dB at {place}" for place, gap in gaps)
        sentences.append(f"All three components against none at equal computed evaluations: {listed}.")
    else:
        sentences.append("All three components and none never compute equally much, so they cannot be compared so.")
    sentences += against_fewer(rows)
    one, other = ({r["family"]: r for r in at_threshold(rows, PUBLISHED)}[name] for name in (BASE, FULL))
    sentences.append(
        f"At the paper's threshold {PUBLISHED:g} the full method computes {number(other['computed']):.1f} evaluations "
        f"and scores {fixed(number(other['psnr']), 1)} dB, TeaCache alone {number(one['computed']):.1f} and "
        f"{fixed(number(one['psnr']), 1)} dB."
    )
    return " ".join(sentences)


def against_fewer(rows: Sequence[Row]) -> list[str]:
    """The best combination against the plain sampler with as many steps, at equal computed evaluations."""
    curves = {family: curve(members) for family, members in families(rows).items()}
    plain = curves.pop(FEWER, [])
    told, ahead = [], 0
    for place in PLACES:
        values = {family: value for family, points in curves.items() if (value := at(points, place)) is not None}
        control = at(plain, place)
        if values and control is not None:
            best = max(values, key=lambda family: values[family])
            ahead += values[best] > control
            told.append(f"{place}: {best} {values[best] - control:+.1f} dB")
    if not told:
        return []
    return [f"The best combination is ahead of fewer steps at {ahead} of {len(told)} budgets ({'; '.join(told)})."]


def report(rows: Sequence[Row], about: str) -> str:
    """docs/ablation.md."""
    heading = ("", "computed", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps")

    def short(row: Row) -> list[str]:
        return [*cells(row)[:5], over(row, "psnr_over_fewer", 1)]

    return document(
        "# Ablation",
        f"SpectralCache's components, {STEPS} steps, CFG {CFG:g}, {rows[0]['pairs']} prompt and seed pairs. The "
        "polynomial is the published one of the model's family (FLUX.1's; there is none of Qwen-Image, whose distance "
        "counts as it is), never fitted to this model.",
        showing(rows),
        f"## At one threshold, {PUBLISHED:g} (the paper's table 3)",
        markdown(heading, [short(row) for row in at_threshold(rows, PUBLISHED)]),
        "## Over thresholds, all components (the paper's table 4)",
        markdown(heading, [short(row) for row in families(rows)[FULL]]),
        "## At equal computed evaluations",
        "Each combination over its thresholds, interpolated; thresholds that compute equally many are averaged; blank "
        "where none brackets it.",
        markdown(*matched(rows, {f"{place} computed": place for place in PLACES})),
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out(options, "ablation", grid(options.pairs, options.quick), report, fill.quick_folder(options))
