"""Line charts with what ComfyUI has anyway (Pillow): panels side by side with one legend, drawn large and scaled down.

A plotting library would be a dependency of every developer's ComfyUI for one picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Drawn this much larger, for smooth lines."""
PANEL, MARGIN, TOP, BOTTOM = (640, 470), 70, 52, 52
LEGEND_LINE, LEGEND_COLUMNS, LEGEND_TOP = 26, 4, 14
INK, GRID, GROUND = "#202020", "#e2e2e2", "white"
TICKS = 8


@dataclass(frozen=True, slots=True)
class Curve:
    """points: (x, y). dash: lengths on and off in pixels, () for a solid line. mark: "" | o | s | d | ^ | v | x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    mark: str = ""
    dash: tuple[int, ...] = ()
    width: int = 2


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    x_label: str
    curves: Sequence[Curve]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = (high - low) or 1.0
    size = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


class _Canvas:
    """Pixels of the finished picture in, enlarged drawing out."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), GROUND)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float, dash: Sequence[int] = ()) -> None:
        for a, b in itertools.pairwise(points):
            for start, stop in _dashes(math.dist(a, b), dash):
                ends = [tuple(SCALE * (p + (q - p) * t) for p, q in zip(a, b, strict=True)) for t in (start, stop)]
                self._draw.line(ends, colour, round(width * SCALE))

    def text(self, at: tuple[float, float], words: str, size: int = 14, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), words, INK, font=font, anchor=anchor)

    def mark(self, at: tuple[float, float], kind: str, colour: str) -> None:
        x, y, r = at[0] * SCALE, at[1] * SCALE, 4.5 * SCALE
        if kind == "o":
            self._draw.ellipse((x - r, y - r, x + r, y + r), colour)
        elif kind == "x":
            for sign in (1, -1):
                self._draw.line((x - r, y - sign * r, x + r, y + sign * r), colour, 2 * SCALE)
        elif kind:
            corners = {
                "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
                "d": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
                "^": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
                "v": ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
            }[kind]
            self._draw.polygon([(x + dx * r, y + dy * r) for dx, dy in corners], colour)

    def finished(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def _dashes(length: float, dash: Sequence[int]) -> list[tuple[float, float]]:
    """Parts of a line that are drawn, as shares of its length."""
    if not dash or length == 0:
        return [(0.0, 1.0)]
    found, place, i = [], 0.0, 0
    while place < length:
        stop = min(place + dash[i % len(dash)], length)
        if i % 2 == 0:
            found.append((place / length, stop / length))
        place, i = stop, i + 1
    return found


def chart(title: str, panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side, one legend for all of them below."""
    names = list({curve.name: curve for panel in panels for curve in panel.curves}.values())
    rows = math.ceil(len(names) / LEGEND_COLUMNS)
    width = len(panels) * (PANEL[0] + MARGIN) + 20
    canvas = _Canvas(width, TOP + PANEL[1] + BOTTOM + LEGEND_TOP + rows * LEGEND_LINE + 10)
    canvas.text((width / 2, 18), title, 17)
    for i, panel in enumerate(panels):
        _panel(canvas, panel, MARGIN + i * (PANEL[0] + MARGIN), TOP)
    _legend(canvas, names, rows, TOP + PANEL[1] + BOTTOM + LEGEND_TOP)
    return canvas.finished()


def _panel(canvas: _Canvas, panel: Panel, left: int, top: int) -> None:
    points = [point for curve in panel.curves for point in curve.points]
    axes = [ticks(min(p[axis] for p in points), max(p[axis] for p in points)) for axis in (0, 1)]
    width, height = PANEL[0] - 30, PANEL[1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = ((v - axis[0]) / ((axis[-1] - axis[0]) or 1) for v, axis in zip(point, axes, strict=True))
        return left + x * width, top + height - y * height

    for x in axes[0]:
        at = place((x, axes[1][0]))
        canvas.line([at, (at[0], top)], GRID, 1)
        canvas.text((at[0], at[1] + 14), f"{x:g}")
    for y in axes[1]:
        at = place((axes[0][0], y))
        canvas.line([at, (left + width, at[1])], GRID, 1)
        canvas.text((at[0] - 8, at[1]), f"{y:g}", anchor="rm")
    canvas.line([(left, top), (left, top + height), (left + width, top + height)], INK, 1)
    canvas.text((left + width / 2, top - 14), panel.title, 15)
    canvas.text((left + width / 2, top + height + 36), panel.x_label)
    for curve in panel.curves:
        placed = [place(point) for point in curve.points]
        canvas.line(placed, curve.colour, curve.width, curve.dash)
        for at in placed:
            canvas.mark(at, curve.mark, curve.colour)


def _legend(canvas: _Canvas, curves: Sequence[Curve], rows: int, top: int) -> None:
    pitch = (canvas.size[0] - 2 * MARGIN) / LEGEND_COLUMNS
    for i, curve in enumerate(curves):
        x, y = MARGIN + (i // rows) * pitch, top + (i % rows) * LEGEND_LINE + LEGEND_LINE / 2
        canvas.line([(x, y), (x + 36, y)], curve.colour, curve.width, curve.dash)
        canvas.mark((x + 18, y), curve.mark, curve.colour)
        canvas.text((x + 44, y), curve.name, 13, anchor="lm")
