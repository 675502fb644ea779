"""The demo: pictures with and without SpectralCache through a real ComfyUI, what was gained, and what it cost.

For every prompt and guidance it makes the picture uncached, with each setting of `ROWS`, and, as the control of each,
uncached with as many steps as that run computed. `python dev.py demo` starts it in the host's Python.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: the folder on the path is bench/demo/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from PIL import Image

from bench.demo.files import as_json, by_cfg, surroundings, write_markdown, write_sheets
from bench.demo.table import (
    Fewer,
    Quality,
    Result,
    Trace,
    Variant,
    as_text,
    cost,
    gained,
    legend,
    lost_time,
    steadiness,
    summarize,
    title,
    untouched,
)
from bench.host.graphs import AUTO, FREQCA_APPLY, Graph, Picture, cached, uncached
from bench.host.server import HostError, Server, base_directory
from cache_core.metrics import psnr, ssim

STEPS = 28
GUIDANCE = (1.0, 3.0)
PROMPTS = (
    "a large strawberry on green",
    "a bus on green to purple",
    "a light bulb on dusk",
    "a coconut on blue",
    "a strawberry left of a pear on white",
    "a beer mug on brick",
    "a watermelon on sky",
    "a mushroom on grass",
)
FIRST_SEED = 5

TEACACHE_BASE = {"tads_min": 1.0, "tads_max": 1.0, "max_consecutive": 1000, "gamma_low": 1000.0, "gamma_high": 1000.0}
UNCACHED = Variant("uncached", {"threshold": 0.0})
DEFAULT = Variant("SpectralCache 0.6", {"threshold": 0.6})
ROWS = (
    Variant("Auto 2x", {"quality": "Custom", "speedup": 2.0}, AUTO),
    Variant("Auto 2.8x", {"quality": "Custom", "speedup": 2.8}, AUTO),
    Variant("Auto 3.5x", {"quality": "Custom", "speedup": 3.5}, AUTO),
    Variant("SpectralCache 0.15", {"threshold": 0.15}),
    Variant("SpectralCache 0.25", {"threshold": 0.25}),
    Variant("SpectralCache 0.4", {"threshold": 0.4}),
    DEFAULT,
    Variant("SpectralCache 0.8, up to 4", {"threshold": 0.8, "max_consecutive": 4}),
    Variant("TeaCache base 0.4", {"threshold": 0.4, **TEACACHE_BASE}),
    Variant("TeaCache base 0.6", {"threshold": 0.6, **TEACACHE_BASE}),
    Variant("FreqCa, every 2nd", {"interval": 2}, FREQCA_APPLY),
    Variant("FreqCa, every 4th", {"interval": 4}, FREQCA_APPLY),
    Variant("both: decision 0.6 + FreqCa", {"schedule": "adaptive", "threshold": 0.6}, FREQCA_APPLY),
)
QUICK_ROWS = (ROWS[1], DEFAULT)
QUICK_PROMPTS = 2


class Progress:
    """One line that updates itself on a terminal; elsewhere one line per prompt."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._what = "Loading the models"
        self._live = sys.stdout.isatty()
        self._started = time.monotonic()

    def prompt(self, picture: Picture) -> None:
        self._done += 1
        self._what = f"[{self._done}/{self._total}] CFG {picture.cfg:g}, {picture.prompt}"
        if not self._live:
            print(f"{self._what} ({time.monotonic() - self._started:.0f} s so far)", flush=True)

    def show(self, detail: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + f"{self._what}: {detail}"[:width].ljust(width), end="", flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


class Studio:
    """Makes pictures through the server; a plain one that was made before is not made again."""

    def __init__(self, server: Server, progress: Progress) -> None:
        self._server = server
        self._progress = progress
        self._plain: dict[Picture, bytes] = {}

    def plain(self, picture: Picture) -> bytes:
        """The picture as PNG, from a graph without any node of this pack."""
        if picture not in self._plain:
            self._plain[picture], _ = self._run(uncached(picture), f"uncached, {picture.steps} steps")
        return self._plain[picture]

    def cached(self, picture: Picture, variant: Variant) -> tuple[bytes, Trace]:
        """The picture as PNG and what Cache Stats says about its run."""
        png, outputs = self._run(cached(picture, variant.settings, variant.node), variant.name)
        trace = json.loads(outputs["stats"]["trace"][0])
        if trace["state"] != "done" or len(trace["evaluations"]) < picture.steps:
            notes = "; ".join(trace["notes"]) or "no reason given"
            raise HostError(f"{variant.name} did not run on {picture.prompt!r}: {trace['state']} ({notes}).")
        return png, trace

    def _run(self, graph: Graph, what: str) -> tuple[bytes, Mapping[str, Any]]:
        def on_progress(step: int, steps: int) -> None:
            self._progress.show(f"{what}, step {step}/{steps}")

        outputs = self._server.run(graph, on_progress=on_progress)["outputs"]
        return self._server.image(outputs["save"]["images"][0]), outputs


def quality(png: bytes, reference: bytes) -> Quality:
    a, b = pixels(png), pixels(reference)
    return Quality(psnr(a, b), ssim(a, b))


def pixels(png: bytes) -> torch.Tensor:
    """h w c in float64, 0 to 1."""
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float64) / 255.0)


def make(studio: Studio, picture: Picture, variant: Variant) -> Result:
    """One picture under one setting, compared with the uncached one, as is its control."""
    reference = studio.plain(picture)
    png, trace = studio.cached(picture, variant)
    fewer = control(studio, picture, len(trace["evaluations"]) - trace["skipped"]) if trace["skipped"] else None
    return Result(picture, variant, png, trace, quality(png, reference), fewer)


def control(studio: Studio, picture: Picture, steps: int) -> Fewer:
    png = studio.plain(replace(picture, steps=steps))
    return Fewer(steps, png, quality(png, studio.plain(picture)))


def make_all(
    server: Server, pictures: Sequence[Picture], variants: Sequence[Variant], progress: Progress
) -> Iterator[Result]:
    studio = Studio(server, progress)
    studio.cached(replace(pictures[0], seed=0), DEFAULT)  # loads the models, not timed
    for picture in pictures:
        progress.prompt(picture)
        for variant in variants:
            yield make(studio, picture, variant)


def arguments() -> argparse.Namespace:
    most = len(PROMPTS)
    parser = argparse.ArgumentParser(
        prog="dev.py demo", description="Pictures with and without SpectralCache, on a real ComfyUI."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("spectralcache-demo"), metavar="DIR", help="default: %(default)s, here"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and trace there")
    parser.add_argument("--prompts", type=int, choices=range(1, most + 1), metavar="N", help=f"1 to {most}")
    parser.add_argument("--quick", action="store_true", help="two prompts and two settings, to see that it works")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if "COMFYUI_PATH" not in os.environ:
        sys.exit("demo: start it with python dev.py demo, which finds or fetches a ComfyUI.")
    options.out = options.out.resolve()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"demo: cannot write to {options.out} ({error.strerror}); choose another folder with --out.")
    count = options.prompts or (QUICK_PROMPTS if options.quick else len(PROMPTS))
    chosen = [
        Picture(prompt, cfg=cfg, steps=STEPS, seed=FIRST_SEED + i)
        for cfg in GUIDANCE
        for i, prompt in enumerate(PROMPTS[:count])
    ]
    variants = (UNCACHED, *(QUICK_ROWS if options.quick else ROWS))
    started = time.monotonic()
    print("Starting ComfyUI ...", flush=True)
    progress = Progress(len(chosen))
    # Waiting threads sleep: where other programs use the processor, spinning ones make sampling up to 15 times slower.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with (
        tempfile.TemporaryDirectory(prefix="spectralcache-") as base,
        Server(base_directory(base), environment=environment) as server,
    ):
        results = list(make_all(server, chosen, variants, progress))
        about = surroundings(server)
    progress.clear()
    report(options, results, about, time.monotonic() - started)


def report(options: argparse.Namespace, results: Sequence[Result], about: Mapping[str, Any], seconds: float) -> None:
    """Writes the files and prints the tables; the last lines are the sheets, the gain and the cost."""
    rows = summarize(results, UNCACHED.name)
    lost = lost_time(results)
    sentences = (gained(rows, DEFAULT.name, STEPS, lost), cost(rows, DEFAULT.name))
    facts = f"{untouched(results, UNCACHED.name)} {steadiness(lost)}"
    sheets = write_sheets(options.out, results, rows, STEPS)
    write_markdown(options.out / "demo.md", rows, STEPS, about, (facts, *sentences))
    for table in by_cfg(rows):
        print(f"\n{title(table, STEPS)}\n\n{as_text(table)}")
    print(f"\n{legend(STEPS)}\n\n{facts}\n")
    print(f"Done in {seconds:.0f} s. The tables in Markdown: {options.out / 'demo.md'}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(as_json(results, rows, {**about, "seconds": seconds}), encoding="utf-8")
        print(f"All figures and traces: {options.json}")
    print("\nContact sheets: " + ", ".join(str(path) for path in sheets))
    print("\n".join(sentences))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except HostError as error:
        sys.exit(f"demo: {error}")
