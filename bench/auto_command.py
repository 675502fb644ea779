"""SpectralCache Auto over budgets, guidance, steps and samplers, against both controls, and its parts."""

from __future__ import annotations

import argparse

from bench import fill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.auto import grid, method_of, report

    return fill.carry_out(options, "auto", grid(options.pairs), report, method_of=method_of)
