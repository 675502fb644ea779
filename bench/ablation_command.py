"""SpectralCache's components one by one, at equal thresholds and at equal computed evaluations."""

from __future__ import annotations

import argparse

from bench import fill
from bench.tables import read_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.ablation import grid, report

    out = options.out or fill.ROOT / "docs"
    if options.report:
        about = fill.provenance(out / "ablation.md")
    else:
        about = fill.measure(grid(options.pairs), out / "ablation.csv", options.share)
    if about:
        text = report(read_csv(out / "ablation.csv"), about)
        (out / "ablation.md").write_text(text, encoding="utf-8")
        print(text)
    return 0
