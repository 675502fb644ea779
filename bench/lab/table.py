"""Tables as CSV and as Markdown. Every Markdown table of docs/ can be made again from its CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.lab.intervals import paired

Record = Mapping[str, object]


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One line a record; the first record's keys are the columns. Floats are written in full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in record.items()} for record in records)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _plain(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def number(text: str) -> float:
    """A CSV cell as a number; NaN where it is empty."""
    return float(text) if text else math.nan


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *(["---:"] * (len(heading) - 1))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *rows))


def text_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal."""
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def fixed(value: float, places: int, sign: bool = False) -> str:
    """A number for people: blank for NaN, "identical" for an infinite PSNR."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "identical"
    return f"{value:+.{places}f}" if sign else f"{value:.{places}f}"


def parted(rows: Iterable[Mapping[str, str]], *columns: str) -> dict[tuple[str, ...], list[Mapping[str, str]]]:
    """A CSV's rows by what they have in these columns, in the order of the file."""
    found: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def ways(rows: Iterable[Mapping[str, str]], *names: str) -> Iterator[list[float]]:
    """The PSNR of each of these ways, pair by pair."""
    found = parted(rows, "way")
    return ([number(row["psnr"]) for row in found.get((name,), [])] for name in names)


def document(*parts: str) -> str:
    """A Markdown file from its paragraphs."""
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def gained(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean gain of one over the other, pair by pair, and its interval where there is more than one pair."""
    gain = paired(ours, theirs)
    if len(ours) < 2:
        return fixed(gain.mean, 1, sign=True)
    return f"{fixed(gain.mean, 1, sign=True)} ({fixed(gain.low, 1, sign=True)} to {fixed(gain.high, 1, sign=True)})"
