"""The README's table from docs/quality.csv: every family at matched budgets, controls included."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import ROOT
from bench.host.provision import say
from bench.lab.reading import main_group, matched, title
from bench.lab.table import markdown, read_csv

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "quality.csv", metavar="FILE")


def section(csv: Path) -> str:
    """What stands between the markers."""
    group = main_group(read_csv(csv))
    words = (
        f"PSNR (dB) against the full run at equal work, {title(group)}, on the small FLUX of this repository; higher "
        "is closer. Blank: no preset computes so little or so much. Where fewer steps stand above a method, simply "
        "using fewer steps is the better choice on this model. All figures: [docs/quality.md](docs/quality.md)."
    )
    return f"{BEGIN}\n\n{markdown(*matched(group))}\n\n{words}\n\n{END}"


def renewed(text: str, table: str) -> str:
    """The README with the marked section replaced. Raises `ValueError` where the markers are not there, once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"needs one {BEGIN} and, behind it, one {END}")
    return text[: text.index(BEGIN)] + table + text[text.index(END) + len(END) :]


def run(options: argparse.Namespace) -> int:
    try:
        before = options.readme.read_text("utf-8")
        after = renewed(before, section(options.csv))
    except (OSError, ValueError) as error:
        say(f"bench readme: {options.readme} {error}")
        return 1
    if options.check:
        if before != after:
            say(f"{options.readme} is out of date; run python dev.py bench readme")
        return int(before != after)
    options.readme.write_text(after, encoding="utf-8")
    return 0
