"""The exact picture: who comes closest to the converged ODE with so many evaluations, solver or cache.

Every deterministic sampler of ComfyUI on every noise schedule with so few plain steps, and SpectralCache Auto on many
steps of which so few are computed, against heun with 201 evaluations. The plain combinations are screened on a few
pairs first; the best of them, and Auto, are then measured on all pairs. Finished runs are kept: the command goes on
where it was stopped, and --pairs adds pairs to a table that is there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.lab import fill
from bench.tables.exact.grid import Size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    parser.add_argument("--screened", type=int, metavar="N", help="of these pairs, the first N screen (default: 2)")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long: the table of what is there")
    parser.add_argument("--plain", action="store_true", help="no feature distance (its network is fetched from PyPI)")
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.tables.exact.measure import measure
    from bench.tables.exact.report import report

    size = Size.quick() if options.quick else Size()
    size = size.of(options.pairs, options.screened)
    features = not (options.plain or options.quick)

    def make(table: Path) -> str:
        return measure(size, table, options.minutes, features, options.side, options.share, options.model)

    return fill.written(options, "exact", make, report, fill.quick_folder(options), None, options.model)
