"""docs/quality.png from docs/quality.csv: quality over computed evaluations, a curve a family, controls in black."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lab.presets import FEWER
from bench.lab.reading import Row, controls, families, main_group, title
from bench.lab.table import number

COLOURS = (
    "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#8c564b", "#6a3d9a", "#7f7f7f", "#a6a600",
    "#00b3b3",
)  # fmt: skip
MARKS = "osd^vx"
DASHES = ("--", ":", "-.")
PANELS = (("psnr", "PSNR of the picture, dB"), ("ssim", "SSIM of the picture"))


@dataclass(frozen=True, slots=True)
class Curve:
    """points: (x, y). style: what matplotlib's `plot` takes."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Mapping[str, Any] = field(default_factory=dict)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the group that rests on the most pairs."""
    from matplotlib.figure import Figure  # a developer tool: not needed for the tables

    group = main_group(rows)
    figure = Figure(figsize=(14.4, 6.8), layout="constrained")
    figure.suptitle(f"Closeness to the full run, small FLUX, {title(group)}")
    axes = figure.subplots(1, len(PANELS))
    for axis, (what, label) in zip(axes, PANELS, strict=True):
        for curve in curves(group, what):
            axis.plot(*zip(*curve.points, strict=True), label=curve.name, **curve.style)
        axis.set(title=label, xlabel=f"computed evaluations of {group[0]['steps']}")
        axis.grid(color="#e2e2e2")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def curves(group: Sequence[Row], what: str) -> list[Curve]:
    """Caches first, so that the black controls lie on top. A single setting is no curve: the table has it."""
    found = families(group)
    plain = [family for family in found if controls(family)]
    cached = [family for family in found if not controls(family)]
    made = [
        Curve(
            family,
            _points(found[family], what),
            {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]},
        )
        for i, family in enumerate(cached)
    ]
    for family in plain:
        dash = "-" if family == FEWER else DASHES[(plain.index(family) - 1) % len(DASHES)]
        made.append(Curve(family, _points(found[family], what), {"color": "black", "linestyle": dash, "linewidth": 2}))
    return [curve for curve in made if len(curve.points) > 1]


def _points(rows: Sequence[Row], what: str) -> list[tuple[float, float]]:
    points = ((number(row["computed"]), number(row[what])) for row in rows if int(row["skipping"]))
    return sorted(point for point in points if math.isfinite(point[1]))
