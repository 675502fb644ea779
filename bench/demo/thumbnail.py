"""The thumbnails of the shipped workflows.

    COMFYUI_PATH=<a ComfyUI> python bench/demo/thumbnail.py [--drawn]

in that ComfyUI's Python. FLUX.1-dev: pictures of the full run over those of the cached run, and what it skipped; both
rows come from a real server, on the stand-in model, with the settings of the workflow. The others have no trained
stand-in, so theirs show no pictures: the model's path through the graph, with the values that the graph sets. `--drawn`
makes only these, without a server.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: the folder on the path is bench/demo/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from PIL import Image, ImageDraw, ImageFont

from bench import ROOT
from bench.host.graphs import APPLY, AUTO, FEB_APPLY, FREQCA_APPLY, Graph, Picture, cached, defaults, uncached
from bench.host.server import Server, base_directory

WORKFLOWS = {
    ROOT / "workflows" / "flux_dev_auto.json": AUTO,
    ROOT / "workflows" / "flux_dev_spectralcache.json": APPLY,
    ROOT / "workflows" / "flux_dev_freqca.json": FREQCA_APPLY,
}
DRAWN = {
    ROOT / "workflows" / f"{stem}_{suffix}.json": (title, detail)
    for stem, title, detail in (
        ("qwen_image", "Qwen-Image", "text to image"),
        ("qwen_image_edit", "Qwen-Image-Edit", "edit with reference pictures"),
        ("flux_kontext", "FLUX.1 Kontext", "edit with reference pictures"),
    )
    for suffix in ("auto", "spectralcache", "freqca")
}
DRAWN[ROOT / "workflows" / "qwen_image_compare_auto.json"] = ("Qwen-Image", "with and without, compared")
DRAWN[ROOT / "workflows" / "flux_dev_feb.json"] = ("FLUX.1-dev", "half steps")
COMPARED = ROOT / "workflows" / "flux_dev_compare_auto.json"
SPEEDS = ROOT / "workflows" / "flux_dev_speeds_auto.json"
MEASURED = ROOT / "workflows" / "flux_dev_measure_auto.json"
SHOWN: dict[str, tuple[str, Sequence[tuple[str, int]]]] = {
    "UNETLoader": ("Load Diffusion Model", (("", 0),)),
    "ModelSamplingAuraFlow": ("ModelSamplingAuraFlow", (("shift", 0),)),
    "CFGNorm": ("CFGNorm", (("strength", 0),)),
    AUTO: ("SpectralCache Auto", (("quality", 1),)),
    APPLY: ("SpectralCache Apply", (("threshold", 0), ("max_consecutive", 1))),
    FREQCA_APPLY: ("FreqCa Apply", (("interval", 0), ("warmup_steps", 1), ("transform", 3))),
    FEB_APPLY: ("FEB-Cache Apply", (("work", 0), ("scaling", 1))),
    "KSampler": ("KSampler", (("steps", 2), ("cfg", 3), ("", 4), ("", 5))),
}
"""Node class: the title it has in the graph, and (label, place among its widget values) of what is worth showing."""
NAMES = {AUTO: "SpectralCache Auto", APPLY: "SpectralCache", FREQCA_APPLY: "FreqCa", FEB_APPLY: "FEB-Cache"}
PICTURES = tuple(
    Picture(prompt, cfg=3.0, seed=3)
    for prompt in ("a light bulb on dusk", "a watermelon on sky", "a beer mug on brick")
)

SIDE, MARGIN, CELL = 512, 10, 157
TOPS = (8, 208)  # of the two rows
HEADING, LETTERS = 34, 24
STRIP = (MARGIN, 462, SIDE - MARGIN, 500)
LOW = 14
GROUND, INK, COMPUTED, SKIPPED = "#202225", "#f2f2f2", "#56b4e9", "#585e67"  # as in the node's timeline
NODE, OURS, WIRE, QUIET = "#35383d", "#3d6b4d", "#b39ddb", "#b8bcc4"
TITLE, LINE, SMALL = 44, 22, 17  # sizes of letters
CHAIN = (118, 500)  # from where to where the path goes
QUALITY = 90


def settings(workflow: Path, apply: str) -> dict[str, Any]:
    """What the graph sets on its Apply node."""
    nodes = json.loads(workflow.read_text("utf-8"))["nodes"]
    values = next(node["widgets_values"] for node in nodes if node["type"] == apply)
    return dict(zip(defaults(apply), values, strict=False))  # inputs behind the contract's keep their defaults


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


def split(full: bytes, fast: bytes, trace: Mapping[str, Any]) -> Image.Image:
    """One picture with an edge: at the left of it every step, at the right the cached run; below, that run's steps."""
    canvas = Image.new("RGB", (SIDE, SIDE), GROUND)
    pen = ImageDraw.Draw(canvas)
    side, typeface = STRIP[1] - TOPS[0] - HEADING - 12, ImageFont.load_default(LETTERS)
    left, top = (SIDE - side) // 2, TOPS[0] + HEADING
    for png, (start, end), words in ((full, (0, side // 2), "every step"), (fast, (side // 2, side), NAMES[AUTO])):
        picture = Image.open(io.BytesIO(png)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(picture.crop((start, 0, end, side)), (left + start, top))
        pen.text((left + (start + end) / 2, TOPS[0]), words, INK, font=typeface, anchor="mt")
    pen.line((SIDE // 2, top, SIDE // 2, top + side), "#ffffff", width=3)
    pen.ellipse((SIDE // 2 - 12, top + side // 2 - 12, SIDE // 2 + 12, top + side // 2 + 12), "#ffffff")
    _strip(pen, [evaluation["action"] for evaluation in trace["evaluations"]])
    return canvas


def quarters(pictures: Mapping[str, bytes]) -> Image.Image:
    """Four pictures, each under its name."""
    canvas = Image.new("RGB", (SIDE, SIDE), GROUND)
    pen, typeface = ImageDraw.Draw(canvas), ImageFont.load_default(LINE)
    side = SIDE // 2 - HEADING - MARGIN // 2
    for i, (words, png) in enumerate(pictures.items()):
        picture = Image.open(io.BytesIO(png)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        middle, top = SIDE * (1 + 2 * (i % 2)) // 4, (i // 2) * SIDE // 2
        pen.text((middle, top + 10), words, INK, font=typeface, anchor="mt")
        canvas.paste(picture, (middle - side // 2, top + HEADING))
    return canvas


def _strip(draw: ImageDraw.ImageDraw, actions: Sequence[str]) -> None:
    """One cell a step: computed is tall and bright, skipped low and dark."""
    left, top, right, bottom = STRIP
    pitch = (right - left) / len(actions)
    for i, action in enumerate(actions):
        skipped = action == "skipped"
        box = (left + i * pitch, bottom - LOW if skipped else top, left + (i + 1) * pitch - 4, bottom)
        draw.rectangle(box, SKIPPED if skipped else COMPUTED)


def path(graph: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The nodes through which the model goes, from its loader to a sampler; the longest way, if there are several."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    sources = {link[3]: nodes[link[1]] for link in graph["links"] if link[5] == "MODEL"}

    def way(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [*(way(sources[node["id"]]) if node["id"] in sources else []), node]

    return max((way(node) for node in graph["nodes"] if node["type"] == "KSampler"), key=len)


def draw(workflow: Path, title: str, detail: str) -> Image.Image:
    """The model's path as boxes, ours in green, each with what the graph sets on it."""
    canvas = Image.new("RGB", (SIDE, SIDE), GROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((SIDE / 2, 50), title, INK, font=ImageFont.load_default(TITLE), anchor="ms")
    pen.text((SIDE / 2, 90), detail, QUIET, font=ImageFont.load_default(LINE), anchor="ms")
    chain = path(json.loads(workflow.read_text("utf-8")))
    pitch = (CHAIN[1] - CHAIN[0]) / len(chain)
    for i, node in enumerate(chain):
        name, shown = SHOWN[node["type"]]
        top, bottom = CHAIN[0] + i * pitch, CHAIN[0] + (i + 1) * pitch - 18
        if i:
            pen.line((SIDE / 2, top - 18, SIDE / 2, top), WIRE, width=4)
        pen.rounded_rectangle((40, top, SIDE - 40, bottom), 10, OURS if node["type"] in NAMES else NODE)
        values = node["widgets_values"]
        line = "   ".join(f"{label} {values[place]}".strip() for label, place in shown)
        middle = (top + bottom) / 2
        pen.text((SIDE / 2, middle - 3), name, INK, font=ImageFont.load_default(LINE), anchor="ms")
        pen.text((SIDE / 2, middle + 19), line, QUIET, font=ImageFont.load_default(SMALL), anchor="ms")
    return canvas


def save(picture: Image.Image, workflow: Path) -> None:
    out = workflow.with_suffix(".jpg")
    picture.save(out, quality=QUALITY, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawn", action="store_true", help="only those that need no server")
    drawn_only = parser.parse_args().drawn
    for workflow, (title, detail) in DRAWN.items():
        save(draw(workflow, title, detail), workflow)
    if drawn_only:
        return
    with tempfile.TemporaryDirectory() as base, Server(base_directory(base)) as server:

        def make(graph: Graph) -> tuple[bytes, dict[str, Any]]:
            outputs = server.run(graph)["outputs"]
            return server.image(outputs["save"]["images"][0]), outputs

        full = [make(uncached(picture))[0] for picture in PICTURES]
        for workflow, apply in WORKFLOWS.items():
            params = settings(workflow, apply)
            fast, outputs = zip(*(make(cached(picture, params, apply)) for picture in PICTURES), strict=True)
            trace = json.loads(outputs[0]["stats"]["trace"][0])
            save(compose(full, fast, trace, NAMES[apply]), workflow)
        words = {
            word: make(cached(PICTURES[1], {**defaults(AUTO), "quality": word}, AUTO))
            for word in ("Quality", "Balanced", "Fast", "Draft")
        }
        trace = {word: json.loads(outputs["stats"]["trace"][0]) for word, (_, outputs) in words.items()}
        save(split(full[1], words["Balanced"][0], trace["Balanced"]), COMPARED)
        named = {
            word: (f"{word}: {trace[word]['computed']} of {trace[word]['steps']}", png)
            for word, (png, _) in words.items()
        }
        every = ("every step", full[1])
        save(quarters(dict([every, *(named[word] for word in ("Quality", "Balanced", "Draft"))])), SPEEDS)
        count = trace["Balanced"]["computed"]
        fewer = (f"{count} plain steps", make(uncached(replace(PICTURES[1], steps=count)))[0])
        save(quarters(dict([every, named["Balanced"], fewer, named["Fast"]])), MEASURED)


if __name__ == "__main__":
    main()
