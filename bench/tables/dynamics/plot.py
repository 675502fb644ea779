"""docs/dynamics.png from docs/dynamics.csv: what was measured, and the published figures as open circles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.tables.dynamics.report import BANDS, OBJECTS, SENSITIVITY, Row, curve, fit, points

COLOURS = {"outputs": "#0072b2", "residual": "#d55e00", "from the start": "#d55e00", "neighbours": "#e69f00",
           "spread": "#0072b2", "middle block": "#0072b2", "last block": "#009e73", "output": "#0072b2"}  # fmt: skip
PUBLISHED: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "none", "color": "black"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Six panels."""
    from matplotlib.figure import Figure  # a developer tool: not needed for the tables

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, panel in zip(axes, (_sensitivity, _depth, _bands, _similarity, _continuity, _relation), strict=True):
        panel(axis, rows)
        axis.grid(color="#e2e2e2")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _sensitivity(axis: Any, rows: Sequence[Row]) -> None:
    for series in ("outputs", "residual"):
        found = curve(rows, "sensitivity", series)
        axis.plot(list(found), [y / found[1] for y in found.values()], label=f"{series} reused", color=COLOURS[series],
                  marker=".")  # fmt: skip
    first = SENSITIVITY[1]
    published = [y / first for y in SENSITIVITY.values()]
    axis.plot(list(SENSITIVITY), published, label="published, FLUX.1-schnell", **PUBLISHED)
    axis.set(title="Reuse at one step", xlabel="step of 20", ylabel="error, in that of step 1", yscale="log")
    axis.set_xticks(range(1, 20, 3))


def _depth(axis: Any, rows: Sequence[Row]) -> None:
    for series in ("from the start", "neighbours", "spread"):
        found = curve(rows, "depth", series)
        axis.plot(list(found), list(found.values()), label=series, color=COLOURS[series], marker=".")
    axis.set(title="Stale blocks", xlabel="blocks", ylabel="error of the latent, L2")


def _bands(axis: Any, rows: Sequence[Row]) -> None:
    for name in OBJECTS:
        found = curve(rows, "bands", name)
        axis.plot(list(found), list(found.values()), label=name, color=COLOURS[name], marker=".")
    axis.plot(list(BANDS), list(BANDS.values()), label="published, middle block", **PUBLISHED)
    axis.set(title="Change from step to step", xlabel="DCT band, coarse to fine", ylabel="relative change, L2")


def _similarity(axis: Any, rows: Sequence[Row]) -> None:
    for name in OBJECTS:
        for side, dash in (("low", "-"), ("high", "--")):
            found = curve(rows, "similarity", f"{side}, {name}")
            axis.plot(list(found), list(found.values()), dash, label=f"{side}, {name}", color=COLOURS[name], marker=".")
    axis.set(title="How alike", xlabel="steps apart", ylabel="cosine", xticks=range(1, 6))


def _continuity(axis: Any, rows: Sequence[Row]) -> None:
    for i, (side, shade) in enumerate((("low", 1.0), ("high", 0.45))):
        for j, name in enumerate(OBJECTS):
            value = curve(rows, "continuity", f"{side}, {name}")[1]
            axis.bar(j + 0.38 * i - 0.19, value, 0.36, color=COLOURS[name], alpha=shade, label=f"{side}, {name}")
    axis.set_xticks(range(len(OBJECTS)), OBJECTS)
    axis.set(title="How steady: cosine of two moves in a row", ylim=(0, 1.3))


def _relation(axis: Any, rows: Sequence[Row]) -> None:
    for series in ("output", "residual"):
        pairs = points(rows, series)
        axis.scatter(*zip(*pairs, strict=True), s=9, color=COLOURS[series], alpha=0.5, label=f"of the {series}")
        coefficients, fitted = fit(pairs)
        low, high = min(x for x, _ in pairs), max(x for x, _ in pairs)
        xs = [low + (high - low) * i / 60 for i in range(61)]
        ys = [sum(c * x**p for p, c in enumerate(reversed(coefficients))) for x in xs]
        axis.plot(xs, ys, color=COLOURS[series], label=f"degree 4, R² {fitted:.2f}")
    axis.set(title="Change of input and output", xlabel="modulated input, relative L1", ylabel="relative L1")
