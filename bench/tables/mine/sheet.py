"""The contact sheet of `bench mine`: a prompt a row, a few settings side by side, each with its distance."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, HEAD, FOOT, SIDE = 256, 8, 78, 24, 150
INK, QUIET, PAPER, CLOSEST = (25, 25, 30), (115, 115, 125), (255, 255, 255), (0, 125, 60)
QUALITY = 88


@dataclass(frozen=True, slots=True)
class Column:
    """One setting: its name, a line of figures, and for each prompt its picture with the PSNR (None: not made)."""

    name: str
    figures: str
    pictures: Sequence[tuple[Path, float] | None]


def sheet(title: str, prompts: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """Every column at every prompt. Green: the closest of the row."""
    first = Image.open(next(found[0] for column in columns for found in column.pictures if found))
    tall = round(CELL * first.height / first.width)
    size = (SIDE + len(columns) * (CELL + GAP), HEAD + len(prompts) * (tall + FOOT))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, GAP), title, INK, font=ImageFont.load_default(17))
    for i, column in enumerate(columns):
        left = SIDE + i * (CELL + GAP)
        pen.text((left, HEAD - 42), column.name, INK, font=ImageFont.load_default(15))
        pen.text((left, HEAD - 22), column.figures, QUIET, font=ImageFont.load_default(13))
    for j, prompt in enumerate(prompts):
        top = HEAD + j * (tall + FOOT)
        words = "\n".join(textwrap.wrap(prompt, width=20)[:8])
        pen.multiline_text((GAP, top), words, QUIET, font=ImageFont.load_default(13))
        row = [column.pictures[j] for column in columns]
        closest = max((found[1] for found in row if found and math.isfinite(found[1])), default=math.inf)
        for i, found in enumerate(row):
            if found is None:
                continue
            left = SIDE + i * (CELL + GAP)
            picture = Image.open(found[0]).convert("RGB").resize((CELL, tall), Image.Resampling.LANCZOS)
            canvas.paste(picture, (left, top))
            told = "identical" if math.isinf(found[1]) else f"{found[1]:.1f} dB"
            ink = CLOSEST if found[1] == closest else INK
            pen.text((left, top + tall + 3), told, ink, font=ImageFont.load_default(13))
            if ink == CLOSEST:  # not by colour alone
                pen.line((left, top + tall + 19, left + 46, top + tall + 19), CLOSEST)
    return canvas
