"""The README's table from docs/exact.csv: the best solver, the usual ones and Auto, by computed evaluations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from bench.host.provision import say
from bench.lab.models import MODELS, of
from bench.lab.reading import Row
from bench.lab.table import fixed, markdown, number, read_csv

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MAIN, PLAIN, AUTO = "main", "plain", "Auto"
"""Words of that CSV."""
BEST = "best sampler and schedule"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "exact.csv", metavar="FILE")


def table(rows: Sequence[Row]) -> str:
    """One guidance: in each column the plain combination that is best there, the usual ones, Auto."""
    columns = list(dict.fromkeys(row["budget"] for row in rows))
    body = [[BEST, *(_best(rows, column) for column in columns)]]
    usual = {f"{row['sampler']} + simple" for row in rows if row["kind"] == AUTO}
    for name in dict.fromkeys(row["name"] for row in rows if row["kind"] == AUTO or row["name"] in usual):
        own = {row["budget"]: fixed(number(row["psnr"]), 1) for row in rows if row["name"] == name}
        body.append([name, *(own.get(column, "") for column in columns)])
    return markdown([f"CFG {number(rows[0]['cfg']):g}, computed:", *columns], body)


def _best(rows: Sequence[Row], budget: str) -> str:
    best = max(
        (row for row in rows if row["budget"] == budget and row["kind"] == PLAIN), key=lambda row: number(row["psnr"])
    )
    return f"{fixed(number(best['psnr']), 1)} ({best['name']})"


def section(csv: Path) -> str:
    """What stands between the markers."""
    rows = [row for row in read_csv(csv) if row["stage"] == MAIN]
    if not rows:
        raise ValueError(f"{csv} has no measured rows; make them with python dev.py bench exact")
    screened = len({row["name"] for row in read_csv(csv) if row["stage"] == "screened" and row["kind"] == PLAIN})
    by_cfg = [table([row for row in rows if row["cfg"] == cfg]) for cfg in dict.fromkeys(row["cfg"] for row in rows)]
    words = (
        f"PSNR (dB) to the exact picture by computed evaluations, {rows[0]['pairs']} prompt and seed pairs; higher is "
        f"closer. {MODELS[of(rows)].says} The best of {screened} screened combinations stands first, column by column. "
        "A small model is followed more closely than FLUX.1, so do not put these figures beside "
        "published ones. All figures, intervals and the other caches: [docs/exact.md](docs/exact.md); every "
        "method against the full run of its own sampler: [docs/quality.md](docs/quality.md)."
    )
    return "\n\n".join([BEGIN, *by_cfg, f"{margins(rows)} {words}", END])


def margins(rows: Sequence[Row]) -> str:
    """The last of Auto's set-ups, which is the recommended one, against the best of each column."""
    name = next((row["name"] for row in reversed(rows) if row["kind"] == AUTO), "")
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        own = [number(row["margin"]) for row in rows if (row["name"], row["cfg"]) == (name, cfg)]
        parts.append(f"{min(own):+.1f} to {max(own):+.1f} dB at CFG {number(cfg):g}")
    return f"{name}, against the best of each column: {', '.join(parts)}."


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
