"""The pictures of a profile: one panel a group of tables, its curves over the steps of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..cache_core.profile import MODULES, Profile
from .timeline import BLUE, DIM, FAINT, GROUND, ORANGE, PANEL, PURPLE, RED, TEXT, font, shorten

WIDTH, HEIGHT, EDGE, HEAD, FOOT = 1024, 320, 24, 56, 52
COLOURS = (BLUE, ORANGE, PURPLE, RED)
DASHES = (0, 14, 6, 3)
"""Pixels of a dash, so that curves differ by more than colour."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: a name, and a value a step (not finite: a gap)."""

    name: str
    values: Sequence[float]


def plots(profile: Profile) -> torch.Tensor:
    """1 h w 3 from 0 to 1."""
    panels = list(_panels(profile))
    image = Image.new("RGB", (WIDTH, HEIGHT * max(len(panels), 1)), GROUND)
    draw = ImageDraw.Draw(image)
    for number, (title, curves) in enumerate(panels):
        _panel(draw, HEIGHT * number, title, curves)
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)[None]


def _panels(profile: Profile) -> Iterator[tuple[str, list[Curve]]]:
    """A title and its curves, for each group that is there."""
    tables = profile.tables
    if "trunk" in profile.groups:
        means = {name: tables[f"trunk.{name}"].flatten(0, 1).nanmean(0) for name in ("change", "signal", "magnitude")}
        changes = {
            "residual": means["change"], "modulated input": means["signal"], "modulation": tables["trunk.embedding"],
        }  # fmt: skip
        curves = [Curve(name, (100 * values).tolist()) for name, values in changes.items()]
        yield "Change from step to step, in percent", curves
        yield "Magnitude of the residual over the step before", [Curve("ratio", means["magnitude"].tolist())]
    if "branch" in profile.groups:
        difference = (100 * tables["branch.difference"].nanmean(0)).tolist()
        yield "Difference of the two sides of guidance, in percent", [Curve("difference", difference)]
    if "course" in profile.groups:
        gram = tables["course.gram"]
        size = gram.diagonal()
        alike = [float(gram[t, t - 1] / (size[t] * size[t - 1]).sqrt()) for t in range(1, len(size))]
        yield "Cosine of the derivative with the step before", [Curve("cosine", [math.nan, *alike])]
        amplified = tables["course.amplified"]
        if bool(torch.isfinite(amplified).all()):
            yield "What an error of one step becomes in the picture's latent", [Curve("times", amplified.tolist())]
    if "modules" in profile.groups:
        curves = [Curve(f"{kind}, 1 step", (100 * tables[f"{kind}.change"][0].nanmean(1)).tolist()) for kind in MODULES]
        yield "Change of a module's output, in percent, mean over blocks", curves
    if "gain" in profile.groups:
        gains = {"noise": tables["gain.noise"], "channels, mean": tables["gain.channels"].mean(1)}
        yield "Gain of a cache", [Curve(name, values.tolist()) for name, values in gains.items()]


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, curves: Sequence[Curve]) -> None:
    """Curves over the steps, from 0 or their smallest value to their largest, and what they are."""
    known = [value for curve in curves for value in curve.values if math.isfinite(value)]
    low, high = min([0.0, *known]), max(known, default=1.0)
    if low == 0 and known and min(known) > 0.6 * high:  # far from 0 there would be nothing to see
        low = min(known)
    high = high if high > low else low + 1.0
    area = (EDGE, top + HEAD, WIDTH - EDGE, top + HEIGHT - FOOT)
    draw.rectangle(area, fill=PANEL)
    _text(draw, (EDGE, top + 12), title, 28, WIDTH - 2 * EDGE)
    span = f"{low:.3g} to {high:.3g}"
    _text(draw, (WIDTH - EDGE - font(24).getlength(span), top + 16), span, 24, 300, FAINT)
    for y in (area[1], area[3]):
        draw.line((area[0], y, area[2], y), fill=DIM, width=2)
    x = float(EDGE)
    for number, curve in enumerate(curves):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        _line(draw, area, low, high, curve.values, colour, dash)
        _line(draw, (x, top + HEIGHT - 32, x + 40, top + HEIGHT - 32), 0, 1, (0, 0), colour, dash)
        _text(draw, (x + 50, top + HEIGHT - 46), curve.name, 24, 250)
        x += 70 + font(24).getlength(curve.name) + 20


def _line(
    draw: ImageDraw.ImageDraw,
    area: tuple[float, float, float, float],
    low: float,
    high: float,
    values: Sequence[float],
    colour: str,
    dash: int,
) -> None:
    left, top, right, bottom = area
    last = None
    for index, value in enumerate(values):
        if not math.isfinite(value):
            last = None
            continue
        x = left + (right - left) * index / max(len(values) - 1, 1)
        here = (x, bottom - (bottom - top) * (value - low) / (high - low))
        if last is not None:
            _dashed(draw, last, here, colour, dash)
        last = here


def _dashed(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: str, dash: int
) -> None:
    length = math.dist(start, end)
    if not dash:
        draw.line((*start, *end), fill=colour, width=4)
        return
    for place in np.arange(0, length, 2 * dash):
        shares = (place / length, min((place + dash) / length, 1))
        points = [tuple(a + (b - a) * share for a, b in zip(start, end, strict=True)) for share in shares]
        draw.line((*points[0], *points[1]), fill=colour, width=4)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, room: float, colour: str = TEXT
) -> None:
    draw.text(at, shorten(text, font(size), room), fill=colour, font=font(size))
