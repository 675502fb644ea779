"""What `bench mine` leaves in its folder: the CSV, the page and the contact sheet of whatever is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.lab.grid import Group
from bench.lab.pairs import Pair
from bench.lab.reading import Row
from bench.lab.table import read_csv, write_csv
from bench.tables.mine.grid import FULL, FURTHER, counts
from bench.tables.mine.making import Keeper, Made, records
from bench.tables.mine.report import SHEET, report
from bench.tables.mine.sheet import QUALITY, Column, sheet

PAGE = "mine.md"
ROWS = 4
"""Prompts on the contact sheet."""
SHOWN = (FULL, "Auto {two}x", "{half} steps", "Auto {three}x", "{third} steps", "SpectralCache 0.4", "FreqCa N=3",
         "EasyCache 0.2")  # fmt: skip
"""Its columns, by the names of the arms."""


def write(out: Path, runner: Keeper, group: Group, made: Made, about: Mapping[str, str]) -> None:
    """Table, page and contact sheet of what there is."""
    found = records(runner, group, made)
    if not found:
        return
    write_csv(out / "mine.csv", found)
    rows = read_csv(out / "mine.csv")
    pairs = made.done or list(group.pairs[:1])
    notes = [f"{name}: left out, {why}" for name, why in made.failed.items()]
    if made.stopped:
        notes.append(f"Stopped after {len(made.done)} of {len(group.pairs)} prompts.")
    prompts = [pair.prompt for pair in pairs]
    (out / PAGE).write_text(report(rows, about["model"], about, prompts, notes), encoding="utf-8")
    columns = chosen(runner, group, made, {row["name"]: row for row in rows}, pairs[:ROWS])
    if columns:
        picture = sheet(f"SpectralCache on {about['model']}: {about['settings']}", prompts[:ROWS], columns)
        picture.save(out / SHEET, quality=QUALITY, optimize=True)


def chosen(runner: Keeper, group: Group, made: Made, rows: Mapping[str, Row], pairs: Sequence[Pair]) -> list[Column]:
    """The columns of the contact sheet."""
    steps = group.steps
    half, third = (counts(steps, (budget,))[0] for budget in FURTHER)
    fill = {"two": f"{steps / half:.2g}", "three": f"{steps / third:.2g}", "half": half, "third": third}
    arms = {arm.name: arm for arm in group.arms}
    columns = []
    for name in (pattern.format(**fill) for pattern in SHOWN):
        if name not in rows:
            continue
        pictures = [
            (runner.file(arms[name], pair, steps), runner.outcome(arms[name], pair, steps).psnr)
            if (pair, name) in made.finished
            else None
            for pair in pairs
        ]
        row = rows[name]
        columns.append(Column(name, f"{float(row['computed']):.3g} computed, {float(row['speedup']):.2f}x", pictures))
    return columns
