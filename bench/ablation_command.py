"""SpectralCache's components one by one, at equal thresholds and at equal computed evaluations."""

from __future__ import annotations

import argparse

from bench import fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.ablation import grid, report

    return fill.carry_out(options, "ablation", grid(options.pairs, options.quick), report, fill.quick_folder(options))
