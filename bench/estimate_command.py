"""How true SpectralCache Auto's estimated error is: each skipped evaluation computed as well."""

from __future__ import annotations

import argparse

from bench import fill
from bench.tables import read_csv, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    from bench.estimate import measure, report
    from bench.lab import Lab, Studio

    out = options.out or fill.quick_folder(options) or fill.ROOT / "docs"
    table, page = out / "estimate.csv", out / "estimate.md"
    if options.report:
        about = fill.provenance(page)
    else:
        with torch.inference_mode():
            studio = Studio(Lab())
            write_csv(table, list(measure(studio, options.pairs, options.quick)))
        about = fill.origin(studio.lab.about(), ["auto"])
    page.write_text(report(read_csv(table), about), encoding="utf-8")
    print(page.read_text("utf-8"))
    return 0
