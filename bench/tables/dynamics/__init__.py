"""How a small model behaves from step to step, beside what the papers found: where it may be skipped, and why.

SpectralCache §3.1 to 3.3 (forced reuse at one step, of neighbouring blocks, change by frequency), FreqCa's similarity
and continuity of bands, TeaCache's relation of input and output change. Finished pairs are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.host.provision import cache_folder, say
from bench.lab import fill
from bench.lab.pairs import cases
from bench.lab.table import Record, read_csv, write_csv

if TYPE_CHECKING:
    from bench.lab import Studio

PAIRS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from bench.tables.dynamics.report import report

    def records(studio: Studio) -> Iterator[Record]:
        return measured(studio, options.pairs or (1 if options.quick else PAIRS), options.quick)

    return fill.carry_out_records(options, "dynamics", records, (), report, fill.quick_folder(options), also=with_plot)


def measured(studio: Studio, pairs: int, quick: bool) -> Iterator[Record]:
    """Pair by pair; what was measured before comes from the cache folder."""
    from bench.lab.store import digest
    from bench.tables.dynamics.measure import measure

    code = Path(__file__).with_name("measure.py").read_text("utf-8")
    ground = [code, studio.identity, studio.lab.about()["versions"], str(studio.shape), str(quick)]
    for pair in cases(pairs, 1.0):
        text, seed = pair.prompt, pair.seed
        file = cache_folder() / "bench" / f"dynamics-{digest([*ground, text, str(seed)])}.csv"
        if not file.exists():
            say(f"bench dynamics: {text}")
            write_csv(file.with_suffix(".part"), list(measure(studio, text, seed, quick)))
            file.with_suffix(".part").replace(file)
        yield from read_csv(file)


def with_plot(rows: fill.Rows, folder: Path) -> None:
    """The curves of the page; without matplotlib the tables are still worth having."""
    try:
        from bench.tables.dynamics.plot import draw

        draw(rows, folder / "dynamics.png")
    except ImportError as error:
        say(f"bench dynamics: dynamics.png is not drawn ({error}); --report draws it elsewhere")
