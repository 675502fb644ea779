"""Every method at every budget against the full run, simply using fewer steps, and the caches that ComfyUI ships."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.host.provision import say
from bench.lab import fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser, "four pairs")
    parser.add_argument("--steps", type=int, default=28, help="of --quick (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="every row at every number of steps and guidance: hours")
    fill.add_only(parser)
    parser.add_argument("--plain", action="store_true", help="no feature distance (its network is fetched from PyPI)")
    fill.add_minutes(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.lab.presets import MissingPresets
    from bench.tables.quality.grid import grid
    from bench.tables.quality.report import report
    from cache_core import methods

    try:
        groups = fill.only(options, grid(methods(), options.full, options.quick, options.pairs, options.steps))
    except MissingPresets as error:
        say(f"bench quality: {error}")
        return 1
    folder = fill.quick_folder(options)
    looks = not (options.plain or options.quick)
    return fill.carry_out(
        options, "quality", groups, report, folder, also=with_plot, beside=bool(options.only), looks=looks
    )


def with_plot(rows: fill.Rows, folder: Path) -> None:
    """The picture of the page; where matplotlib was not carried along, hours of runs are not lost for it."""
    from bench.tables.quality.plot import draw

    try:
        draw(rows, folder / "quality.png")
    except ImportError as error:
        say(f"bench quality: quality.png is not drawn ({error}); --report draws it elsewhere")
