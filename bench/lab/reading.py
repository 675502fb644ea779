"""Rows of a table's CSV, as `grid.rows` wrote them: parted, named, and as cells of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bench.lab.intervals import Interval, at, paired
from bench.lab.presets import FEWER
from bench.lab.table import fixed, number, parted

Row = Mapping[str, str]
BUDGETS = (1.5, 2.0, 3.0, 4.0, 5.0)
HEADING = (
    "", "computed", "speed-up", "PSNR", "SSIM", "latent PSNR", "latent SSIM", "PSNR over fewer steps",
    "SSIM over fewer steps", "cache MB",
)  # fmt: skip
LOOKS = {"feature": "feature distance", "flip": "FLIP"}
"""Column of the CSV to heading."""


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each number of steps, guidance and sampler, in the order of the file."""
    return list(parted(rows, "steps", "cfg", "sampler").values())


def main_group(rows: Sequence[Row]) -> list[Row]:
    """The group that rests on the most pairs; of equals the one with the most rows."""
    return max(groups(rows), key=lambda group: (int(group[0]["pairs"]), len(group)))


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {family: found for (family,), found in parted(rows, "family").items()}


def title(rows: Sequence[Row]) -> str:
    first = rows[0]
    return f"{first['steps']} steps, CFG {number(first['cfg']):g}, {first['pairs']} prompt and seed pairs"


def controls(name: str) -> bool:
    """Whether a family is a control without any cache."""
    return name.startswith(FEWER)


def sign(row: Row, what: str = "psnr_over_fewer") -> int:
    """1 better than fewer steps, -1 worse, 0 undecided: by the bootstrap interval."""
    low, high = number(row[f"{what}_low"]), number(row[f"{what}_high"])
    return 1 if low > 0 else -1 if high < 0 else 0


def over(row: Row, what: str, places: int) -> str:
    """The mean difference with its interval; of a single pair there is none."""
    mean, low, high = (number(row[f"{what}{end}"]) for end in ("", "_low", "_high"))
    if not math.isfinite(mean):  # no control, or one that is the full run itself
        return ""
    if int(row["pairs"]) == 1:
        return fixed(mean, places, sign=True)
    return f"{fixed(mean, places, sign=True)} ({fixed(low, places, sign=True)} to {fixed(high, places, sign=True)})"


def between(ours: Row, theirs: Row) -> Interval:
    """PSNR of one line over another's of the same group, pair by pair."""
    return paired(*([number(each) for each in row["psnr_each"].split()] for row in (ours, theirs)))


def cells(row: Row) -> list[str]:
    part = 0 < int(row["skipping"]) < int(row["pairs"])
    name = row["name"] + (f" (skips in {row['skipping']} of {row['pairs']})" if part else "")
    held = number(row["cache_bytes"]) / 1e6
    return [
        name,
        fixed(number(row["computed"]), 1),
        f"{fixed(number(row['speedup']), 2)}x",
        fixed(number(row["psnr"]), 1),
        fixed(number(row["ssim"]), 3),
        fixed(number(row["latent_psnr"]), 1),
        fixed(number(row["latent_ssim"]), 3),
        over(row, "psnr_over_fewer", 1),
        over(row, "ssim_over_fewer", 3),
        fixed(held, 2),
    ]


def looks(row: Row) -> list[str]:
    """How its pictures look, in thousandths; blank where nobody looked."""
    return [fixed(1000 * number(row.get(name, "")), 2) for name in LOOKS]


def curve(rows: Sequence[Row], what: str = "psnr") -> list[tuple[float, float]]:
    """Points (computed evaluations, quality) of rows that belong together."""
    return [(number(row["computed"]), number(row[what])) for row in rows]


def curve_of(rows: Sequence[Row], family: str) -> list[tuple[float, float]]:
    return curve([row for row in rows if row["family"] == family])


def matched(
    rows: Sequence[Row], places: Mapping[str, float] | None = None, heading: str = "PSNR at"
) -> tuple[list[str], list[list[str]]]:
    """PSNR of every family where so many evaluations are computed, by interpolation between its presets, else blank; a
    family that reaches no place has no line. places: by what the columns are called; as given, the budgets.
    """
    steps = int(rows[0]["steps"])
    places = places or {f"{budget:g}x ({steps / budget:.1f} computed)": steps / budget for budget in BUDGETS}
    body = []
    for family, members in families(rows).items():
        values = [at(curve(members), place) for place in places.values()]
        if any(value is not None for value in values):
            body.append([family, *("" if value is None else f"{value:.1f}" for value in values)])
    return [heading, *places], body
