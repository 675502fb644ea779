"""The picture of Cache Stats: one cell per evaluation, and above it the score that decided against its limit.

Drawn for the size of a node, where 1024 pixels become about 400: large type, few elements, colours of Okabe and Ito
(https://jfly.uni-koeln.de/color/) and a shape beside every colour. Reads trace JSON version 1. A trace may come from a
run that failed, so whatever is missing or not a finite number is left out, and nothing raises.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Area = tuple[float, float, float, float]

GROUND, PANEL, DIM, FAINT, TEXT = "#202225", "#2a2d31", "#585e67", "#a0a6ae", "#f2f2f2"
BLUE, PURPLE, ORANGE, RED = "#56b4e9", "#cc79a7", "#f0a818", "#ff8c5a"
COMPUTED, SKIPPED, PARTIAL = "computed", "skipped", "partial"

SIZE = (1024, 384)
LEFT, RIGHT, ROOM = 24, 1000, 976
CHART, STRIP, TALL_STRIP, LEGEND = (68, 240), (252, 312), (150, 290), (334, 364)
CEILING = 1.6  # times the highest limit: one score far above it must not flatten the rest
WIDEST, NARROW = 160, 12  # pixels of one evaluation: at most; below which an outline would fill it
HUGE = 1e30  # beyond it a limit stands for "none"
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Cell:
    """One evaluation, as far as it is drawn, between two places on the time axis."""

    left: float
    right: float
    action: str
    forced: bool
    score: float | None
    limit: float | None


def timeline(trace: dict[str, Any] | None, width: int = SIZE[0], height: int = SIZE[1]) -> torch.Tensor:
    """The picture of a run, 1 h w 3 from 0 to 1; a calm panel with one line of text where there is no run to show."""
    trace = trace or {}
    image = Image.new("RGB", SIZE, GROUND)
    draw = ImageDraw.Draw(image)
    evaluations = [e for e in _list(trace.get("evaluations")) if isinstance(e, dict)]
    if evaluations:
        name = _plotted(evaluations)
        cells = _cells(trace, evaluations, name)
        _header(draw, trace, cells)
        _chart(draw, cells) if name else _note(draw, trace)
        _strip(draw, cells, STRIP if name else TALL_STRIP)
        _legend(draw, cells, name)
    else:
        _blank(draw, trace)
    pixels = np.array(image if image.size == (width, height) else image.resize((width, height)), dtype=np.float32)
    return torch.from_numpy(pixels / 255.0)[None]


def _blank(draw: ImageDraw.ImageDraw, trace: dict[str, Any]) -> None:
    _rectangle(draw, (LEFT, LEFT, RIGHT, SIZE[1] - LEFT), PANEL)
    text = shorten(str(next(iter(_list(trace.get("notes"))), "No run to show")), font(32), ROOM - 48)
    _write(draw, ((SIZE[0] - font(32).getlength(text)) / 2, SIZE[1] / 2), text, font(32), FAINT)


def _note(draw: ImageDraw.ImageDraw, trace: dict[str, Any]) -> None:
    for note in _list(trace.get("notes"))[:1]:
        _write(draw, (LEFT, 106), shorten(str(note), font(28), ROOM), font(28), FAINT)


def _header(draw: ImageDraw.ImageDraw, trace: dict[str, Any], cells: list[Cell]) -> None:
    """The run in one line, the last figures left out where they do not fit; at the right its state if not done."""
    big, room = font(32), float(ROOM)
    if (state := str(trace.get("state") or "done")) != "done":
        state = shorten(state, big, ROOM / 3)
        _write(draw, (RIGHT - big.getlength(state), 36), state, big, RED)
        room -= big.getlength(state) + 32
    parts = [shorten(str(trace.get("method") or "Cache"), big, ROOM * 0.4), *_figures(trace, cells)]
    while len(parts) > 1 and big.getlength(" · ".join(parts)) > room:
        parts.pop()
    _write(draw, (LEFT, 36), shorten(" · ".join(parts), big, room), big)


def _figures(trace: dict[str, Any], cells: list[Cell]) -> Iterable[str]:
    count, steps = len(cells), _steps(trace) or len(cells)
    steps_text = "1 step" if steps == 1 else f"{steps} steps"
    yield steps_text if count == steps else f"{count} of {steps_text}" if count < steps else f"{count} evaluations"
    for action in (SKIPPED, PARTIAL):
        if (number := sum(cell.action == action for cell in cells)) or action == SKIPPED:
            yield f"{number} {action}"
    speedup = _dict(trace.get("speedup"))
    if wall := _number(speedup.get("wall")):
        yield f"{wall:.2f}x measured"
    elif by_count := _number(speedup.get("evaluations")):
        yield f"{by_count:.2f}x by count"
    if memory := _number(trace.get("cache_bytes")):
        yield f"{memory / MEGABYTE:.{0 if memory >= 10 * MEGABYTE else 1}f} MB"


def _strip(draw: ImageDraw.ImageDraw, cells: list[Cell], rows: tuple[int, int]) -> None:
    _rectangle(draw, (LEFT, rows[0], RIGHT, rows[1]), PANEL)
    for cell in cells:
        _bar(draw, (cell.left, rows[0], cell.right, rows[1]), cell.action, cell.forced)


def _chart(draw: ImageDraw.ImageDraw, cells: list[Cell]) -> None:
    """Bars of the score, notched where cut off far above the limit, and the limit as a stepped line."""
    highest = max(cell.score for cell in cells if cell.score is not None)
    limit = max(cell.limit for cell in cells if cell.limit is not None)
    limit = limit if limit > 0 else max(highest, 0.0) or 1.0
    top = min(max(highest, limit * 1.1), limit * CEILING)
    above, floor = CHART
    _rectangle(draw, (LEFT, above, RIGHT, floor), PANEL)

    def level(value: float) -> float:
        return floor - (floor - above) * min(max(value / top, 0.0), 1.0)

    for cell in cells:
        if cell.score is not None:
            _bar(draw, (cell.left, min(level(cell.score), floor - 4), cell.right, floor), cell.action)
            if cell.score > top:
                _rectangle(draw, (cell.left, above + 10, cell.right, above + 16), PANEL)
    before = None
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        here = None if cell.limit is None else level(cell.limit)
        if here is not None:
            _rectangle(draw, (cell.left, here - 3, following.left if following else cell.right, here + 3), ORANGE)
            if before is not None:
                _rectangle(draw, (cell.left - 2, min(before, here) - 3, cell.left + 3, max(before, here) + 3), ORANGE)
        before = here


def _legend(draw: ImageDraw.ImageDraw, cells: list[Cell], name: str | None) -> None:
    """Only what is in the picture."""
    x, (top, bottom) = float(LEFT), LEGEND
    present = {cell.action for cell in cells} | {"forced" for cell in cells if cell.forced} | {"limit" if name else ""}
    for label in (COMPUTED, SKIPPED, PARTIAL, "forced", "limit"):
        if label in present:
            if label == "limit":
                _rectangle(draw, (x, top + 12, x + 30, top + 18), ORANGE)
            else:
                _bar(draw, (x, top, x + 30, bottom), COMPUTED if label == "forced" else label, label == "forced")
            text = shorten(f"limit of {name}" if label == "limit" else label, font(28), RIGHT - x - 40)
            _write(draw, (x + 40, (top + bottom) / 2), text, font(28))
            x += 40 + font(28).getlength(text) + 28


def _bar(draw: ImageDraw.ImageDraw, area: Area, action: str, forced: bool = False) -> None:
    """Computed is solid, skipped hollow, partial striped; each has its own colour too. Forced has a white head."""
    left, top, right, bottom = area
    outline = FAINT if action == SKIPPED and right - left > NARROW else None
    _rectangle(draw, area, BLUE if action == COMPUTED else DIM, outline)
    if action == PARTIAL:
        for y in range(round(top), round(bottom), 10):
            _rectangle(draw, (left, y, right, min(y + 5, bottom)), PURPLE)
    if forced:
        _rectangle(draw, (left, top, right, top + 12), TEXT)


def _rectangle(draw: ImageDraw.ImageDraw, area: Area, colour: str, outline: str | None = None) -> None:
    """At least one pixel; right and bottom are outside."""
    left, top, right, bottom = (round(edge) for edge in area)
    box = (left, top, max(left, right - 1), max(top, bottom - 1))
    draw.rectangle(box, fill=colour, outline=outline, width=3 if outline else 0)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, typeface: Font, colour: str = TEXT) -> None:
    """The line begins at x, and its middle is at y."""
    _, top, _, bottom = typeface.getbbox("Hg")
    draw.text((at[0], at[1] - (top + bottom) / 2), text, fill=colour, font=typeface)


def font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):  # Pillow before 10.1, or built without FreeType: one small size
        return ImageFont.load_default()


def shorten(text: str, typeface: Font, room: float) -> str:
    """One line, or as much of its start as fits before an ellipsis, in what Pillow's own font has: ASCII and "·"."""
    text = unicodedata.normalize("NFKD", " ".join(text[:400].split()))
    text = "".join(c for c in text if c == "·" or (c.isascii() and c.isprintable()))
    if typeface.getlength(text) <= room:
        return text
    while text and typeface.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text.rstrip()}..." if text else ""


def _cells(trace: dict[str, Any], evaluations: list[dict[str, Any]], name: str | None) -> list[Cell]:
    """Side by side over the width; a run that was cut short leaves the rest of its steps empty."""
    steps = _steps(trace)
    cut = trace.get("state") in ("interrupted", "error")
    pitch = min(ROOM / max(len(evaluations), steps if cut else 1), WIDEST)
    gap = min(max(pitch * 0.15, 1.0), 8.0, pitch / 3)
    cells = []
    for index, evaluation in enumerate(evaluations):
        action = evaluation.get("action")
        action = action if action in (SKIPPED, PARTIAL) else COMPUTED
        forced = action == COMPUTED and evaluation.get("step") in (0, steps - 1)
        left = LEFT + index * pitch
        cells.append(Cell(left, left + pitch - gap, action, forced, *_against_limit(evaluation, name)))
    return cells


def _plotted(evaluations: list[dict[str, Any]]) -> str | None:
    """The accumulated distance, or else the first limit with a score; the strip shows the skips in a row by itself."""
    limits = (name for e in evaluations for name in _dict(e.get("limits")) if isinstance(name, str))
    for name in dict.fromkeys(("distance", *limits)):
        if name != "consecutive" and any(None not in _against_limit(evaluation, name) for evaluation in evaluations):
            return name
    return None


def _against_limit(evaluation: dict[str, Any], name: str | None) -> tuple[float | None, float | None]:
    return _number(_dict(evaluation.get("scores")).get(name)), _number(_dict(evaluation.get("limits")).get(name))


def _steps(trace: dict[str, Any]) -> int:
    return int(_number(trace.get("steps")) or 0)


def _number(value: object) -> float | None:
    """A finite number, else None."""
    return float(value) if isinstance(value, int | float) and abs(value) < HUGE else None


def _dict(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
