"""The thumbnails of the shipped workflows: pictures of the full run over those of the cached run, and what it skipped.

    COMFYUI_PATH=<a ComfyUI> python bench/thumbnail.py

in that ComfyUI's Python. Both rows come from a real server, on the stand-in model, with the settings of the workflow.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: the folder on the path is bench/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from PIL import Image, ImageDraw, ImageFont

from bench.graphs import APPLY, DEFAULTS, FREQCA_APPLY, Graph, Picture, cached, uncached
from bench.server import ROOT, Server, base_directory

WORKFLOWS = {
    ROOT / "workflows" / "flux_dev_spectralcache.json": APPLY,
    ROOT / "workflows" / "flux_dev_freqca.json": FREQCA_APPLY,
}
NAMES = {APPLY: "SpectralCache", FREQCA_APPLY: "FreqCa"}
PICTURES = tuple(
    Picture(prompt, cfg=3.0, seed=3) for prompt in ("a photo of rocket", "a photo of galaxy", "a photo of retina")
)

SIDE, MARGIN, CELL = 512, 10, 157
TOPS = (8, 208)  # of the two rows
HEADING, LETTERS = 34, 24
STRIP = (MARGIN, 462, SIDE - MARGIN, 500)
LOW = 14
GROUND, INK, COMPUTED, SKIPPED = "#202225", "#f2f2f2", "#56b4e9", "#585e67"  # as in the node's timeline
QUALITY = 90


def settings(workflow: Path, apply: str) -> dict[str, Any]:
    """What the graph sets on its Apply node."""
    nodes = json.loads(workflow.read_text("utf-8"))["nodes"]
    values = next(node["widgets_values"] for node in nodes if node["type"] == apply)
    return dict(zip(DEFAULTS[apply], values, strict=False))  # inputs behind the contract's keep their defaults


def compose(full: Sequence[bytes], fast: Sequence[bytes], trace: Mapping[str, Any], name: str) -> Image.Image:
    """Two rows of pictures with their headings, and the steps of one cached run."""
    canvas = Image.new("RGB", (SIDE, SIDE), GROUND)
    draw = ImageDraw.Draw(canvas)
    typeface = ImageFont.load_default(LETTERS)
    for heading, top, row in zip(("every step", name), TOPS, (full, fast), strict=True):
        draw.text((SIDE / 2, top), heading, INK, font=typeface, anchor="mt")
        for i, png in enumerate(row):
            picture = Image.open(io.BytesIO(png)).convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            canvas.paste(picture, (MARGIN + i * (CELL + MARGIN), top + HEADING))
    words = f"{trace['steps']} steps, {trace['skipped']} skipped"
    draw.text((SIDE / 2, TOPS[1] + HEADING + CELL + 16), words, INK, font=typeface, anchor="mt")
    _strip(draw, [evaluation["action"] for evaluation in trace["evaluations"]])
    return canvas


def _strip(draw: ImageDraw.ImageDraw, actions: Sequence[str]) -> None:
    """One cell a step: computed is tall and bright, skipped low and dark."""
    left, top, right, bottom = STRIP
    pitch = (right - left) / len(actions)
    for i, action in enumerate(actions):
        skipped = action == "skipped"
        box = (left + i * pitch, bottom - LOW if skipped else top, left + (i + 1) * pitch - 4, bottom)
        draw.rectangle(box, SKIPPED if skipped else COMPUTED)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as base, Server(base_directory(base)) as server:

        def make(graph: Graph) -> tuple[bytes, dict[str, Any]]:
            outputs = server.run(graph)["outputs"]
            return server.image(outputs["save"]["images"][0]), outputs

        full = [make(uncached(picture))[0] for picture in PICTURES]
        for workflow, apply in WORKFLOWS.items():
            params = settings(workflow, apply)
            fast, outputs = zip(*(make(cached(picture, params, apply)) for picture in PICTURES), strict=True)
            out = workflow.with_suffix(".jpg")
            trace = json.loads(outputs[0]["stats"]["trace"][0])
            compose(full, fast, trace, NAMES[apply]).save(out, quality=QUALITY, optimize=True)
            print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
