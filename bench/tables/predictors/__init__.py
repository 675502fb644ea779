"""What stands in for skipped evaluations and where the computed ones lie, at equal budgets, against both controls."""

from __future__ import annotations

import argparse

from bench.lab import fill
from bench.lab.store import digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.tables.predictors.grid import grid
    from bench.tables.predictors.parts import method_of
    from bench.tables.predictors.report import report

    parts = (fill.ROOT / "bench" / "tables" / "predictors" / "parts.py").read_text("utf-8")
    groups = grid(options.pairs, options.quick)
    folder = fill.quick_folder(options)
    return fill.carry_out(options, "predictors", groups, report, folder, method_of, digest([parts]))
