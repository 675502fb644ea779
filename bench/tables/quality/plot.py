"""docs/quality.png from docs/quality.csv: quality over computed evaluations, a curve a family, controls in black."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bench.lab.chart import Curve, Panel, chart
from bench.lab.presets import FEWER
from bench.lab.reading import Row, controls, families, groups, title
from bench.lab.table import number

COLOURS = (
    "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#8c564b", "#6a3d9a", "#7f7f7f", "#a6a600",
    "#00b3b3",
)  # fmt: skip
MARKS = "osd^vx"
DASHES = ((10, 5), (2, 5), (10, 4, 2, 4))
PANELS = (("psnr", "PSNR of the picture, dB"), ("ssim", "SSIM of the picture"))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the largest group."""
    group = max(groups(rows), key=len)
    x_label = f"computed evaluations of {group[0]['steps']}"
    panels = [Panel(label, x_label, curves(group, what)) for what, label in PANELS]
    chart(f"Closeness to the full run, small FLUX, {title(group)}", panels).save(path, optimize=True)


def curves(group: Sequence[Row], what: str) -> list[Curve]:
    """Caches first, so that the black controls lie on top. A single setting is no curve: the table has it."""
    found = families(group)
    plain = [family for family in found if controls(family)]
    cached = [family for family in found if not controls(family)]
    made = [
        Curve(family, _points(found[family], what), COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)])
        for i, family in enumerate(cached)
    ]
    for family in plain:
        dash = () if family == FEWER else DASHES[(plain.index(family) - 1) % len(DASHES)]
        made.append(Curve(family, _points(found[family], what), "black", dash=dash, width=3))
    return [curve for curve in made if len(curve.points) > 1]


def _points(rows: Sequence[Row], what: str) -> list[tuple[float, float]]:
    points = ((number(row["computed"]), number(row[what])) for row in rows if int(row["skipping"]))
    return sorted(point for point in points if math.isfinite(point[1]))
