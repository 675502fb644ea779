"""How the small FLUX behaves from step to step, beside what the papers found: where it may be skipped, and why.

SpectralCache §3.1 to 3.3 (forced reuse at one step, of neighbouring blocks, change by frequency), FreqCa's similarity
and continuity of bands, TeaCache's relation of input and output change. Finished pairs are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.host.provision import cache_folder, say
from bench.lab import fill

PAIRS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    parser.add_argument("--pairs", type=int, metavar="N", help=f"prompt and seed pairs (default: {PAIRS})")
    parser.add_argument("--report", action="store_true", help="make no runs: page and plot from the CSV as it is")
    parser.add_argument("--side", type=int, metavar="N", help="side of the latent, even (default: 24, as trained)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: docs/, for --quick out/bench/ here")


def run(options: argparse.Namespace) -> int:
    from bench.lab.table import read_csv
    from bench.tables.dynamics.report import report

    out = options.out or fill.quick_folder(options) or fill.ROOT / "docs"
    table, page = out / "dynamics.csv", out / "dynamics.md"
    about = fill.provenance(page) if options.report else measured(options, table)
    rows = read_csv(table)
    text = report(rows, about)
    page.write_text(text, encoding="utf-8")
    try:
        from bench.tables.dynamics.plot import draw

        draw(rows, out / "dynamics.png")
    except ImportError as error:
        say(f"bench dynamics: dynamics.png is not drawn ({error}); --report draws it elsewhere")
    print(text)
    return 0


def measured(options: argparse.Namespace, table: Path) -> str:
    """Runs and CSV; returns the line on where the figures are from."""
    import torch

    from bench.lab import Lab, Studio
    from bench.lab.pairs import prompts
    from bench.lab.store import digest
    from bench.lab.studio import SIDE
    from bench.lab.table import read_csv, write_csv
    from bench.tables.dynamics.measure import measure

    with torch.inference_mode():
        studio = Studio(Lab(), options.side or SIDE)
        about = studio.lab.about()
        code = (Path(__file__).parent / "measure.py").read_text("utf-8")
        rows: list[dict[str, str]] = []
        for text, seed in prompts(options.pairs or (1 if options.quick else PAIRS)):
            known = digest([code, studio.identity, about["versions"], str(studio.shape), str(options.quick), text])
            file = cache_folder() / "bench" / f"dynamics-{known}-{seed}.csv"
            if not file.exists():
                say(f"bench dynamics: {text}")
                write_csv(file.with_suffix(".part"), list(measure(studio, text, seed, options.quick)))
                file.with_suffix(".part").replace(file)
            rows += read_csv(file)
        write_csv(table, rows)
    return fill.origin(about, ())
