"""What stands in for skipped evaluations and where the computed ones lie, at equal budgets, against both controls."""

from __future__ import annotations

import argparse

from bench import fill
from bench.store import digest
from bench.tables import read_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.predictors import grid, method_of, report

    out = options.out or fill.ROOT / "docs"
    if options.report:
        about = fill.provenance(out / "predictors.md")
    else:
        code = digest([(fill.ROOT / "bench" / "predictor_parts.py").read_text("utf-8")])
        about = fill.measure(grid(options.pairs), out / "predictors.csv", options.share, method_of, code)
    if about:
        text = report(read_csv(out / "predictors.csv"), about)
        (out / "predictors.md").write_text(text, encoding="utf-8")
        print(text)
    return 0
