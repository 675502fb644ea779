"""The demo's contact sheet: per prompt the uncached picture, every setting with its timeline, each control beneath."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from bench.demo.table import Quality, Result, Row, Trace

GAP = 10
LINE = 17
STRIP = 9
HEAD = 9 * LINE
NOTES = (
    "Upper picture: cached, with its timeline.",
    "Lower picture: no cache, only as many steps as were computed above it.",
    "Green and underlined: the one closer to the uncached picture.",
)
INK, PALE_INK, PAPER = (25, 25, 30), (115, 115, 125), (255, 255, 255)
CLOSER = (0, 125, 60)
SHADES = {"computed": (38, 84, 150), "partial": (120, 160, 210), "skipped": (244, 190, 90)}


@dataclass(frozen=True)
class Line:
    """All pictures of one prompt, left to right; the first is the uncached one."""

    results: Sequence[Result]


def lines(results: Sequence[Result]) -> list[Line]:
    """Results of one guidance, grouped by prompt in the order of their first appearance."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.picture.prompt, result.picture.seed), []).append(result)
    return [Line(group) for group in groups.values()]


def strip(trace: Trace, width: int, height: int = STRIP) -> Image.Image:
    """The run as a row of cells, one per evaluation."""
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    evaluations = trace["evaluations"]
    edges = [round(i * width / max(len(evaluations), 1)) for i in range(len(evaluations) + 1)]
    for evaluation, left, right in zip(evaluations, edges, edges[1:], strict=False):
        draw.rectangle((left, 0, right - 2, height - 1), fill=SHADES[evaluation["action"]])
    return picture


def sheet(results: Sequence[Result], rows: Sequence[Row], heading: str) -> Image.Image:
    """The contact sheet of one guidance; ``rows`` are the means that stand over the columns."""
    prompts = lines(results)
    cell = _open(prompts[0].results[0].png).width
    block = 2 * cell + STRIP + 2 * LINE + 3 * GAP
    size = (GAP + len(rows) * (cell + GAP), HEAD + len(prompts) * block)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    _head(draw, rows, heading, cell)
    for i, prompt in enumerate(prompts):
        _prompt(canvas, draw, prompt, cell, HEAD + i * block)
    return canvas


def _head(draw: ImageDraw.ImageDraw, rows: Sequence[Row], heading: str, cell: int) -> None:
    draw.text((GAP, GAP), heading, INK, font=_font(18))
    for i, name in enumerate(("computed", "skipped")):
        x, y = GAP + 120 * i, GAP + 27
        draw.rectangle((x, y, x + 11, y + 11), fill=SHADES[name])
        draw.text((x + 16, y - 3), f"{name} step", PALE_INK, font=_font())
    draw.multiline_text((GAP, GAP + 43), "\n".join(NOTES), PALE_INK, font=_font())
    for i, row in enumerate(rows):
        x = GAP + i * (cell + GAP)
        draw.text((x, HEAD - 2 * LINE - 7), row.variant.name, INK, font=_font(15))
        draw.text((x, HEAD - LINE - 4), f"{row.speedup:.2f}x, {row.computed:.1f} computed", PALE_INK, font=_font())


def _prompt(canvas: Image.Image, draw: ImageDraw.ImageDraw, prompt: Line, cell: int, top: int) -> None:
    below = top + cell + 3 + STRIP + LINE + GAP
    for i, result in enumerate(prompt.results):
        x = GAP + i * (cell + GAP)
        canvas.paste(_open(result.png), (x, top))
        canvas.paste(strip(result.trace, cell), (x, top + cell + 3))
        fewer = result.fewer
        _caption(draw, (x, top + cell + STRIP + 4), _words(result.quality), result.closer > 0)
        if fewer is not None:
            canvas.paste(_open(fewer.png), (x, below))
            text = f"{fewer.steps} steps: {_words(fewer.quality)}"
            _caption(draw, (x, below + cell + 1), text, result.closer < 0)
    picture = prompt.results[0].picture
    text = "\n".join([*textwrap.wrap(picture.prompt, width=24), f"seed {picture.seed}"])
    draw.multiline_text((GAP, below + 4), text, INK, font=_font(15))


def _words(quality: Quality) -> str:
    return "identical to no node" if math.isinf(quality.psnr) else f"{quality.psnr:.1f} dB, SSIM {quality.ssim:.3f}"


def _caption(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, closer: bool) -> None:
    draw.text(at, text, CLOSER if closer else INK, font=_font())
    if closer:  # not by colour alone
        left, _, right, bottom = draw.textbbox(at, text, font=_font())
        draw.line((left, bottom + 1, right, bottom + 1), CLOSER)


def _open(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
