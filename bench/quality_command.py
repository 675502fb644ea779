"""Every method at every budget against the full run, simply using fewer steps, and the caches that ComfyUI ships."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import fill
from bench.provision import say
from bench.tables import read_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="four pairs and a few rows, to see that it works")
    parser.add_argument("--steps", type=int, default=28, help="of --quick (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="every row at every number of steps and guidance: hours")
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.presets import MissingPresets
    from bench.quality import grid
    from cache_core import methods

    out = options.out or (Path("out/bench") if options.quick else fill.ROOT / "docs")
    try:
        groups = grid(methods(), options.full, options.quick, options.pairs, options.steps)
    except MissingPresets as error:
        say(f"bench quality: {error}")
        return 1
    if options.report:
        about = fill.provenance(out / "quality.md")
    else:
        about = fill.measure(groups, out / "quality.csv", options.share)
    if about:
        write(out, about)
    return 0


def write(out: Path, about: str) -> None:
    """quality.md and quality.png from quality.csv."""
    from bench.quality_plot import draw
    from bench.quality_report import report

    rows = read_csv(out / "quality.csv")
    text = report(rows, about)
    (out / "quality.md").write_text(text, encoding="utf-8")
    draw(rows, out / "quality.png")
    print(text)
