"""The demo's figures: one row per setting and guidance, as text, as Markdown, as JSON and in two sentences.

A row is the mean over the pictures in which something was skipped. Its control is the uncached run of each picture with
as many steps as that picture computed: what the same work buys without a cache.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.host.graphs import APPLY, Picture

Trace = Mapping[str, Any]

EVEN = 0.05
"""Differences in dB that a table with one decimal cannot show are a draw."""
UNSTEADY = 0.1
"""The share of the sampling time that may be lost to other programs before the times are called unsteady."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: what it is called, and the inputs of its Apply node that differ from the defaults."""

    name: str
    settings: Mapping[str, Any]
    node: str = APPLY


@dataclass(frozen=True)
class Quality:
    """Distance to the uncached picture; psnr is inf if there is none."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Fewer:
    """The control: the plain graph with fewer steps."""

    steps: int
    png: bytes
    quality: Quality


@dataclass(frozen=True)
class Result:
    """One picture under one setting, with its control (None where nothing was skipped)."""

    picture: Picture
    variant: Variant
    png: bytes
    trace: Trace
    quality: Quality
    fewer: Fewer | None

    @property
    def computed(self) -> int:
        """Evaluations that ran the trunk; one that ran for some lanes only counts as computed."""
        return int(self.trace["computed"] + self.trace["partial"])

    @property
    def seconds(self) -> float:
        return sum(e["seconds"] for e in self.trace["evaluations"] if e["seconds"] is not None)

    @property
    def closer(self) -> int:
        """1 where the cached picture is the closer one, -1 where the control is, 0 for a draw or without a control."""
        return 0 if self.fewer is None else _closer(self.quality, self.fewer.quality)


def _closer(cached: Quality, fewer: Quality) -> int:
    difference = cached.psnr - fewer.psnr
    return 0 if abs(difference) <= EVEN else 1 if difference > 0 else -1


@dataclass(frozen=True)
class Row:
    """Means over the pictures of one setting at one guidance; of times the median, since other programs disturb some.

    Quality is None where no picture skipped anything.

    speedup is seconds over seconds, the first evaluation included; stats_speedup is what Cache Stats shows, which
    leaves it out. The first one is always computed, so leaving it out flatters short runs.
    """

    cfg: float
    variant: Variant
    pictures: int
    skipping: int
    computed: float
    skipped: float
    seconds: float
    speedup: float
    stats_speedup: float | None
    quality: Quality | None
    fewer: Quality | None
    closer_pictures: int
    fewer_closer_pictures: int

    @property
    def closer(self) -> int:
        """As of a picture, for the means."""
        return 0 if self.quality is None or self.fewer is None else _closer(self.quality, self.fewer)

    @property
    def difference(self) -> Quality | None:
        """Caching minus fewer steps: above zero, caching is closer to the uncached picture."""
        if self.quality is None or self.fewer is None:
            return None
        return Quality(self.quality.psnr - self.fewer.psnr, self.quality.ssim - self.fewer.ssim)


def summarize(results: Iterable[Result], uncached: str) -> list[Row]:
    """One row per guidance and setting, in the order they came; `uncached` names the one speed is measured by."""
    groups: dict[tuple[float, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.picture.cfg, result.variant.name), []).append(result)
    return [_row(group, groups[cfg, uncached]) for (cfg, _), group in groups.items()]


def _row(group: Sequence[Result], uncached: Sequence[Result]) -> Row:
    skipping = [result for result in group if result.fewer is not None]
    differs = [result for result in group if not math.isinf(result.quality.psnr)]
    seconds = statistics.median(result.seconds for result in group)
    shown = [s for result in group if (s := result.trace["speedup"]["wall"]) is not None]
    return Row(
        cfg=group[0].picture.cfg,
        variant=group[0].variant,
        pictures=len(group),
        skipping=len(skipping),
        computed=statistics.fmean(result.computed for result in group),
        skipped=statistics.fmean(result.trace["skipped"] for result in group),
        seconds=seconds,
        speedup=statistics.median(result.seconds for result in uncached) / seconds,
        stats_speedup=statistics.median(shown) if shown and skipping else None,
        quality=_mean([result.quality for result in skipping or differs]),
        fewer=_mean([result.fewer.quality for result in skipping if result.fewer is not None]),
        closer_pictures=sum(result.closer > 0 for result in group),
        fewer_closer_pictures=sum(result.closer < 0 for result in group),
    )


def _mean(values: Sequence[Quality]) -> Quality | None:
    if not values:
        return None
    return Quality(statistics.fmean(v.psnr for v in values), statistics.fmean(v.ssim for v in values))


# The columns of a table: heading and cell.
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("computed", lambda row: f"{row.computed:.1f}"),
    ("skipped", lambda row: f"{row.skipped:.1f}"),
    ("seconds", lambda row: f"{row.seconds:.2f}"),
    ("speed-up", lambda row: f"{row.speedup:.2f}x"),
    ("Cache Stats", lambda row: f"{row.stats_speedup:.2f}x" if row.stats_speedup else "-"),
    ("PSNR", lambda row: _psnr(row.quality)),
    ("SSIM", lambda row: _ssim(row.quality)),
    ("fewer steps: PSNR", lambda row: _psnr(row.fewer, "-")),
    ("SSIM", lambda row: _ssim(row.fewer, "-")),
    ("difference: PSNR", lambda row: f"{row.difference.psnr:+.1f}" if row.difference else "-"),
    ("SSIM", lambda row: f"{row.difference.ssim:+.3f}" if row.difference else "-"),
)


def _psnr(quality: Quality | None, absent: str = "identical") -> str:
    return absent if quality is None else f"{quality.psnr:.1f}"


def _ssim(quality: Quality | None, absent: str = "identical") -> str:
    return absent if quality is None else f"{quality.ssim:.3f}"


def _label(row: Row) -> str:
    part = 0 < row.skipping < row.pictures
    return row.variant.name + (f" ({row.skipping} of {row.pictures} skipped)" if part else "")


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    heading = ["", *(name for name, _ in COLUMNS)]
    return [heading, *([_label(row), *(cell(row) for _, cell in COLUMNS)] for row in rows)]


def title(rows: Sequence[Row], steps: int) -> str:
    pictures = "one picture" if rows[0].pictures == 1 else f"mean of {rows[0].pictures} pictures"
    return f"CFG {rows[0].cfg:g}, {steps} steps, {pictures}"


def as_text(rows: Sequence[Row]) -> str:
    """Columns aligned for a terminal: the first to the left, figures to the right."""
    table = _cells(rows)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: Sequence[Row]) -> str:
    heading, *body = _cells(rows)
    rule = ["---", *(["---:"] * len(COLUMNS))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *body))


def legend(steps: int) -> str:
    """What the columns mean, for people who did not read this file."""
    return (
        "seconds: sampling only, per picture (median). speed-up: uncached seconds over these.\n"
        "Cache Stats: the speed-up which that node shows; it leaves out the first step, which is always computed.\n"
        f"PSNR (dB) and SSIM: how close to the same picture with all {steps} steps computed; higher is closer.\n"
        "fewer steps: the plain uncached graph with as many steps as this row computed for that picture.\n"
        "difference: above zero, caching is closer; below zero, fewer steps are."
    )


def untouched(results: Iterable[Result], uncached: str) -> str:
    """One sentence: whether the node changes anything while it skips nothing."""
    distances = [result.quality.psnr for result in results if result.variant.name == uncached]
    same = sum(math.isinf(distance) for distance in distances)
    return f"Attached with threshold 0: identical to the graph without the node in {same} of {len(distances)} pictures."


def lost_time(results: Iterable[Result]) -> float:
    """The share of the sampling time that evaluations took beyond 1.25 times a calm one of their kind.

    Calm is the lower quartile, so that it holds while most runs are disturbed.
    """
    kinds: dict[tuple[float, str], list[float]] = {}
    for result in results:
        for e in result.trace["evaluations"]:
            if e["seconds"] is not None:
                kinds.setdefault((result.picture.cfg, e["action"]), []).append(e["seconds"])
    calm = {kind: sorted(seconds)[len(seconds) // 4] for kind, seconds in kinds.items()}
    lost = sum(max(0.0, s - 1.25 * calm[kind]) for kind, seconds in kinds.items() for s in seconds)
    return lost / (sum(sum(seconds) for seconds in kinds.values()) or 1.0)


def steadiness(lost: float) -> str:
    """One sentence: whether the times can be trusted."""
    if lost <= UNSTEADY:
        return "Times were steady."
    return f"Times were NOT steady, {lost:.0%} was lost to other programs: seconds and speed-ups mean little."


def gained(rows: Sequence[Row], default: str, steps: int, lost: float) -> str:
    """One sentence: what the default setting saved, and whether the times can be trusted."""
    chosen = [row for row in rows if row.variant.name == default]
    parts = [f"{row.speedup:.2f}x at CFG {row.cfg:g} ({row.skipped:.1f} of {steps} steps skipped)" for row in chosen]
    doubt = "" if lost <= UNSTEADY else "; other programs disturbed the times"
    return f"Gained with {default}: sampling {_listed(parts)}{doubt}."


def cost(rows: Sequence[Row], default: str) -> str:
    """One sentence: how far the pictures moved, and where simply using fewer steps would have done better.

    Pictures are counted beside rows: a mean hides a prompt on which caching loses.
    """
    chosen = [row for row in rows if row.variant.name == default]
    moved = [
        f"{row.quality.psnr:.1f} dB at CFG {row.cfg:g}" if row.quality else f"identical at CFG {row.cfg:g}"
        for row in chosen
    ]
    skipping = [row for row in rows if row.skipping]
    better, worse = [row for row in skipping if row.closer > 0], [row for row in skipping if row.closer < 0]
    where = f" ({_by_cfg(worse)})" if worse else ""
    return (
        f"Cost: PSNR against the uncached picture {_listed(moved)}; compared with simply using as few steps as were "
        f"computed, caching comes closer in {len(better)} of {len(skipping)} rows and "
        f"{sum(row.closer_pictures for row in rows)} of {sum(row.skipping for row in rows)} pictures, "
        f"fewer steps in {len(worse)} rows{where} and {sum(row.fewer_closer_pictures for row in rows)} pictures."
    )


def _by_cfg(rows: Sequence[Row]) -> str:
    names: dict[float, list[str]] = {}
    for row in rows:
        names.setdefault(row.cfg, []).append(row.variant.name)
    return "; ".join(f"CFG {cfg:g}: {', '.join(group)}" for cfg, group in names.items())


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""
