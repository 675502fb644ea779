"""What the tables of docs/ have measured of one method, from their CSVs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab.intervals import at
from bench.lab.presets import ELSEWHERE, FEWER, PARTS, PRESETS
from bench.lab.reading import Row, controls, curve, curve_of, families, groups
from bench.lab.table import number, read_csv
from bench.lab.verdict import standing

TABLES = ("quality", "guidance", "unet")
"""Where figures of a method are looked for, in this order."""
BUDGETS = (2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one table that can be compared with one another."""

    table: str
    rows: Sequence[Row]

    @property
    def places(self) -> list[float]:
        """So many evaluations are computed at each budget."""
        return [int(self.rows[0]["steps"]) / budget for budget in BUDGETS]


@dataclass(frozen=True, slots=True)
class Measured:
    """A method's rows of one group."""

    group: Group
    rows: Sequence[Row]

    @property
    def psnr(self) -> list[float | None]:
        """At each budget, the best of the method's families that reach it."""
        found = [[at(curve(own), place) for own in families(self.rows).values()] for place in self.group.places]
        return [max((value for value in values if value is not None), default=None) for values in found]

    @property
    def standing(self) -> str:
        return standing(self.rows, named=False)

    @property
    def megabytes(self) -> float:
        """The most that was held, of the model that was measured; NaN where nothing says."""
        held = [number(row["cache_bytes"]) / 1e6 for row in self.rows if row["cache_bytes"]]
        return max(held, default=float("nan"))


def widest(folder: Path) -> list[Group]:
    """Of each table that there is, the group with the most families."""
    found = []
    for name in TABLES:
        if (folder / f"{name}.csv").exists():
            parts = groups(read_csv(folder / f"{name}.csv"))
            found.append(Group(name, max(parts, key=lambda part: len(families(part)))))
    return found


def of(method: str, known: Sequence[Group]) -> Measured | None:
    """The first group that has rows of a method, by the families of its presets."""
    own = {arm.family for arm in {**PRESETS, **ELSEWHERE}.get(method, ())} - set(PARTS)
    for group in known:
        rows = [row for row in group.rows if row["family"] in own and not controls(row["family"])]
        if rows:
            return Measured(group, rows)
    return None


def fewer(group: Group) -> list[float | None]:
    """The plain sampler at each budget."""
    return [at(curve_of(group.rows, FEWER), place) for place in group.places]
