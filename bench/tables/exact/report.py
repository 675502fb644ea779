"""docs/exact.md from docs/exact.csv alone, also where we lose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.lab.intervals import at
from bench.lab.reading import Row, families
from bench.lab.table import document, fixed, markdown, number
from bench.tables.exact.grid import BUDGETS, PLACES, RECOMMENDED, Auto

MUST = {1.0: (2.0, 3.5, 5.0, 4.0, 3.0), 3.0: (2.5, 4.0, 8.0, 7.0, 7.0)}
"""Asked of Auto: dB over the best plain combination, at each of `BUDGETS`."""
SHOWN = 15
"""Screened plain combinations that the page lists; the CSV has all."""


def budgets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["budget"] for row in rows))


def picked(rows: Sequence[Row], **which: str) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in which.items())]


def grid(rows: Sequence[Row], what: str, places: int = 1) -> str:
    """One line a way, one column a budget; blank lines are left out."""
    columns = budgets(rows)
    body = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = {row["budget"]: fixed(number(row[what]), places) for row in rows if row["name"] == name}
        if any(cells.values()):
            body.append([name, *(cells.get(column, "") for column in columns)])
    return markdown(["", *columns], body)


def told(row: Row) -> str:
    mean, low, high = (number(row[f"margin{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(mean):
        return ""
    return f"{fixed(mean, 1, sign=True)} ({fixed(low, 1, sign=True)} to {fixed(high, 1, sign=True)})"


def margins(rows: Sequence[Row]) -> str:
    """The best plain combination of each column, and what each of Auto's set-ups has over it."""
    columns = budgets(rows)
    rivals = {row["budget"]: row["rival"] for row in rows}
    body = [["best plain combination", *(rivals[column] for column in columns)]]
    for name in dict.fromkeys(row["name"] for row in rows if row["kind"] == "Auto"):
        own = {row["budget"]: told(row) for row in rows if row["name"] == name}
        body.append([name, *(own.get(column, "") for column in columns)])
    return markdown(["", *columns], body)


def reached(rows: Sequence[Row], cfg: float) -> str:
    """Of the recommended set-up: what was asked, and what is there."""
    own = picked(rows, name=Auto(*RECOMMENDED).name)
    asked = dict(zip(BUDGETS, MUST[cfg], strict=True))
    parts, behind = [], []
    for row in own:
        gain, goal = number(row["margin"]), asked.get(int(row["budget"]))
        if goal is not None:
            parts.append(f"{row['budget']}: {gain:+.1f} dB ({'' if gain >= goal else 'NOT '}the {goal:g} asked)")
        if gain < 0:
            behind.append(row["budget"] + (" (undecided)" if number(row["margin_high"]) > 0 else ""))
    if not own:
        return ""
    lost = f"It is behind the best plain combination at {', '.join(behind)}." if behind else "It is behind nowhere."
    sentences = (
        f"{own[0]['name']}, over the best plain combination: {'; '.join(parts)}.", lost, without_places(rows, own),
        with_no_more(rows, own),
    )  # fmt: skip
    return " ".join(filter(None, sentences))


def without_places(rows: Sequence[Row], own: Sequence[Row]) -> str:
    """The same against what ComfyUI can do without this pack."""
    gaps = []
    for row in own:
        plain = [each for each in picked(rows, kind="plain", budget=row["budget"]) if each["schedule"] != PLACES]
        if plain:
            best = max(plain, key=lambda each: number(each["psnr"]))
            gaps.append(f"{row['budget']}: {number(row['psnr']) - number(best['psnr']):+.1f} dB ({best['name']})")
    if len(gaps) < len(own) or all(row["schedule"] != PLACES for row in picked(rows, kind="plain")):
        return ""
    return f"Over the best of those on ComfyUI's own schedules: {'; '.join(gaps)}."


def with_no_more(rows: Sequence[Row], own: Sequence[Row]) -> str:
    """The same against what has no more evaluations than the column says, where the best has one more."""
    plain, gaps = picked(rows, kind="plain"), []
    for row in own:
        budget = float(row["budget"])
        rival = next((each for each in picked(plain, budget=row["budget"]) if each["name"] == row["rival"]), None)
        within = [each for each in plain if number(each["computed"]) <= budget]
        if rival is None or number(rival["computed"]) <= budget or not within:
            continue
        best = max(within, key=lambda each: number(each["psnr"]))
        gain = number(row["psnr"]) - number(best["psnr"])
        gaps.append(f"{row['budget']}: {gain:+.1f} dB ({best['name']}, {number(best['computed']):g})")
    if not gaps:
        return ""
    return f"Where the best has one evaluation more, over the best that has none more: {'; '.join(gaps)}."


def screened(rows: Sequence[Row]) -> list[str]:
    plain = sorted(picked(rows, kind="plain"), key=lambda row: -number(row["latent_psnr"]))
    auto = picked(rows, kind="Auto")
    parts = []
    if plain:
        first = plain[0]
        body = [[row["name"], fixed(number(row["computed"]), 1), fixed(number(row["latent_psnr"]), 1)] for row in plain]
        parts += [
            f"Screening: {len(plain)} plain combinations at {first['budget']} evaluations on {first['pairs']} pairs, "
            "by the latent; the first go on to the table above.",
            markdown(["", "computed", "PSNR of the latent"], body[:SHOWN]),
        ]
    if auto:
        parts += [f"Auto on other samplers and numbers of steps, by the latent, {auto[0]['pairs']} pairs:",
                  grid(auto, "latent_psnr")]  # fmt: skip
    return parts


def caches(rows: Sequence[Row], main: Sequence[Row]) -> list[str]:
    """Every other cache at the budgets, between its presets."""
    if not rows:
        return []
    body = []
    for family, members in families(rows).items():
        curve = [(number(row["computed"]), number(row["psnr"])) for row in members]
        values = [at(curve, float(budget)) for budget in budgets(main)]
        body.append([family, *("" if value is None else fixed(value, 1) for value in values)])
    return [
        f"Other caches on euler, {rows[0]['steps']} steps, {rows[0]['pairs']} pairs, read between their settings at as "
        "many computed evaluations (blank: no setting brackets it):",
        markdown(["", *budgets(main)], body),
    ]


def section(rows: Sequence[Row], cfg: str) -> list[str]:
    """One guidance."""
    own = picked(rows, cfg=cfg)
    main = picked(own, stage="main")
    if not main:
        return [f"## CFG {number(cfg):g}", "Screened only.", *screened(picked(own, stage="screened"))]
    parts = [
        f"## CFG {number(cfg):g}, {main[0]['pairs']} prompt and seed pairs", reached(main, number(cfg)),
        "PSNR to the exact picture, dB, by computed evaluations:", grid(main, "psnr"),
        "Over the best plain combination of the column, with the 95 % bootstrap interval of the paired differences:",
        margins(main), "The worst tenth of the pairs, dB:", grid(main, "psnr_worst_tenth"),
    ]  # fmt: skip
    if any(row["feature"] for row in main):
        parts += ["EfficientNet-Lite0 feature distance to the exact picture, in thousandths (lower is closer):",
                  grid([{**row, "feature": _thousand(row["feature"])} for row in main], "feature", 2)]  # fmt: skip
    if any(row.get("flip") for row in main):
        parts += ["FLIP's mean error to the exact picture, in thousandths (lower is closer):",
                  grid([{**row, "flip": _thousand(row["flip"])} for row in main], "flip", 2)]  # fmt: skip
    if any(row["own_psnr"] for row in main):
        parts += ["PSNR to the full run of the same sampler with as many steps:", grid(main, "own_psnr")]
    return [*parts, *caches(picked(own, stage="cache"), main), *screened(picked(own, stage="screened"))]


def _thousand(text: str) -> str:
    return str(1000 * float(text)) if text else ""


def reference(rows: Sequence[Row]) -> str:
    found = picked(rows, stage="reference")
    if not found:
        return ""
    values = ", ".join(f"{fixed(number(row['psnr']), 1)} dB at CFG {number(row['cfg']):g}" for row in found)
    steps = (int(found[0]["budget"]) + 1) // 2
    return (
        f"The exact picture is heun's on {steps} steps of the scheduler simple, {2 * steps - 1} evaluations. It is "
        f"converged: with twice as many it lies {values} from itself ({found[0]['pairs']} pairs)."
    )


def report(rows: Sequence[Row], about: str) -> str:
    """docs/exact.md."""
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        parts += section(rows, cfg)
    return document(
        "# The exact picture",
        "A sampler solves a differential equation; the more evaluations of the model, the closer it comes to the exact "
        "solution. So a cache should be measured against that solution, and against what the best solver makes of as "
        "many evaluations. Plain rows compute every step; samplers with two evaluations a step (dpm_2, heun, "
        "exp_heun_2_x0) cannot have an even number and have one more than the column says. Auto's rows sample many "
        "steps, of which exactly as many are computed as the column says (`computed`); the others cost next to "
        "nothing. *Auto's places* are the noise levels that Auto's plan computes of 28 steps: a schedule of this "
        "pack, on which a plain sampler is a stronger rival. What was tried to come closer still, and did not: "
        "[tried.md](tried.md).",
        reference(rows),
        *parts,
        about,
    )
