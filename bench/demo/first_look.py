"""The picture at the top of the README: every step, SpectralCache Auto at two speeds, and simply fewer steps.

    COMFYUI_PATH=<a ComfyUI> python bench/demo/first_look.py

in that ComfyUI's Python. Everything in it comes from a real server and the stand-in model: pictures, seconds of
sampling (the fastest of three runs), computed steps, and the PSNR to the picture with every step. A run with the node
switched off is bit-identical to one without it, so it stands for the plain ones and tells its seconds.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: the folder on the path is bench/demo/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from bench import ROOT
from bench.demo.thumbnail import GROUND, INK, QUIET
from bench.host.graphs import AUTO, Picture, cached, defaults
from bench.host.server import Server, base_directory
from cache_core.metrics import psnr

OUT = ROOT / "docs" / "first-look.jpg"
PICTURES = (
    Picture("a watermelon on sky", cfg=3.0, seed=3),
    Picture("a bus on green to purple", cfg=3.0, seed=6),
)
OFF = {"quality": "Custom", "speedup": 1.0}
RUNS = 3
SIDE, GAP, HEAD, FOOT = 288, 16, 76, 44
LARGE, SMALL = 26, 20


def arms(picture: Picture) -> dict[str, tuple[Picture, dict[str, Any]]]:
    """Column by column: the picture to make and what is set on the node."""
    return {
        "every step": (picture, OFF),
        "Auto, Balanced": (picture, {"quality": "Balanced"}),
        "Auto, Draft": (picture, {"quality": "Draft"}),
        "simply 12 steps": (replace(picture, steps=12), OFF),
    }


def made(server: Server, picture: Picture, settings: dict[str, Any]) -> tuple[bytes, int, float]:
    """The picture, how many steps were computed, and the seconds of sampling of the fastest run."""
    graph = cached(picture, {**defaults(AUTO), **settings}, AUTO)
    seconds = []
    for _ in range(RUNS):
        server._request("/free", {"unload_models": False, "free_memory": True})  # else the host has the result already
        outputs = server.run(graph)["outputs"]
        trace = json.loads(outputs["stats"]["trace"][0])
        seconds.append(sum(evaluation["seconds"] for evaluation in trace["evaluations"]))
    return server.image(outputs["save"]["images"][0]), trace["computed"], min(seconds)


def pixels(png: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).double() / 255


def main() -> None:
    names = list(arms(PICTURES[0]))
    with tempfile.TemporaryDirectory() as base, Server(base_directory(base)) as server:
        made(server, *arms(PICTURES[0])[names[0]])  # loads the model
        rows = [[made(server, *arm) for arm in arms(picture).values()] for picture in PICTURES]
    size = (GAP + len(names) * (SIDE + GAP), HEAD + len(rows) * (SIDE + FOOT))
    canvas = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(LARGE), ImageFont.load_default(SMALL)
    for column, name in enumerate(names):
        middle = GAP + column * (SIDE + GAP) + SIDE / 2
        computed, mean = rows[0][column][1], sum(row[column][2] for row in rows) / len(rows)
        pen.text((middle, 34), name, INK, font=large, anchor="ms")
        pen.text((middle, 62), f"{computed} computed · {mean:.1f} s", QUIET, font=small, anchor="ms")
        for line, row in enumerate(rows):
            png = row[column][0]
            picture = Image.open(io.BytesIO(png)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            top = HEAD + line * (SIDE + FOOT)
            canvas.paste(picture, (round(middle - SIDE / 2), top))
            words = "the original" if column == 0 else f"{psnr(pixels(row[0][0]), pixels(png)):.1f} dB to the original"
            pen.text((middle, top + SIDE + 26), words, QUIET, font=small, anchor="ms")
    canvas.save(OUT, quality=90, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
