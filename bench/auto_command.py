"""SpectralCache Auto over budgets, guidance, steps and samplers, against both controls, and its parts."""

from __future__ import annotations

import argparse

from bench import fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.auto import grid, method_of, report

    groups = grid(options.pairs, options.quick)
    return fill.carry_out(options, "auto", groups, report, fill.quick_folder(options), method_of)
