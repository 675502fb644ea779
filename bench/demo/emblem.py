"""The icon and the banner of the pack in ComfyUI's registry, drawn from our own pictures.

    python bench/demo/emblem.py

in the host's Python. The icon is the strip of a run: tall cells were computed, low ones skipped. The banner has the
name, the strip of the shipped FLUX workflow and its pictures, every step above SpectralCache Auto, from the thumbnails
that `thumbnail.py` makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: the folder on the path is bench/demo/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from PIL import Image, ImageDraw, ImageFont

from bench import ROOT
from bench.demo.thumbnail import CELL, COMPUTED, GROUND, HEADING, INK, MARGIN, QUIET, SKIPPED, TOPS
from cache_core.placement import places

ICON, BANNER = (400, 400), (1680, 720)
PICTURES = ROOT / "workflows" / "flux_dev_auto.jpg"
STEPS, COUNT = 28, 12
FEW = "cccscsscsc"
NAME, LINE = 110, 40


def strip(pen: ImageDraw.ImageDraw, area: tuple[int, int, int, int], run: str, gap: int) -> None:
    """One cell a step: computed is tall and bright, skipped low and hollow, first and last with a white head."""
    left, top, right, bottom = area
    pitch, head = (right - left + gap) / len(run), max((bottom - top) // 7, 4)
    for i, step in enumerate(run):
        low = top + (bottom - top) * 5 // 8 if step == "s" else top
        box = (round(left + i * pitch), low, round(left + (i + 1) * pitch) - gap, bottom)
        pen.rounded_rectangle(
            box, gap, None if step == "s" else COMPUTED, SKIPPED if step == "s" else None, max(gap // 2, 3)
        )
        if i in (0, len(run) - 1):
            pen.rounded_rectangle((box[0], box[1], box[2], box[1] + head), gap, INK)


def icon() -> Image.Image:
    canvas = Image.new("RGB", ICON, GROUND)
    strip(ImageDraw.Draw(canvas), (36, 96, 364, 304), FEW, 8)
    return canvas


def banner() -> Image.Image:
    canvas = Image.new("RGB", BANNER, GROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((80, 190), "SpectralCache", INK, font=ImageFont.load_default(NAME), anchor="ls")
    for i, words in enumerate(("Faster sampling in ComfyUI.", "Only the steps that matter are computed.")):
        pen.text((84, 262 + 58 * i), words, QUIET, font=ImageFont.load_default(LINE), anchor="ls")
    computed = places(STEPS, COUNT)
    strip(pen, (84, 420, 900, 560), "".join("c" if step in computed else "s" for step in range(STEPS)), 8)
    pen.text((84, 624), f"{STEPS} steps, {STEPS - COUNT} skipped", INK, font=ImageFont.load_default(LINE), anchor="ls")
    thumbnail = Image.open(PICTURES).convert("RGB")
    side, left = 300, 990
    for row, top in enumerate(TOPS):
        pen.text(
            (left, 44 + 346 * row),
            ("every step", "SpectralCache Auto")[row],
            QUIET,
            font=ImageFont.load_default(28),
            anchor="ls",
        )
        for column in range(2):
            x = MARGIN + column * (CELL + MARGIN)
            cut = thumbnail.crop((x, top + HEADING, x + CELL, top + HEADING + CELL))
            canvas.paste(
                cut.resize((side, side), Image.Resampling.LANCZOS), (left + column * (side + 20), 60 + 346 * row)
            )
    return canvas


if __name__ == "__main__":
    icon().save(ROOT / "docs" / "icon.png", optimize=True)
    banner().save(ROOT / "docs" / "banner.jpg", quality=88, optimize=True)
