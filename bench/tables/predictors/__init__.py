"""What stands in for skipped evaluations and where the computed ones lie, at equal budgets, against both controls."""

from __future__ import annotations

import argparse

from bench.lab import fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.tables.predictors.grid import grid
    from bench.tables.predictors.report import report

    groups = grid(options.pairs, options.quick)
    return fill.carry_out(options, "predictors", groups, report, fill.quick_folder(options))
