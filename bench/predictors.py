"""`bench predictors`: what stands in on a skipped evaluation, and where the computed ones lie, at equal budgets.

Controls: the plain sampler with as many steps, evenly, and on the same early-dense noise levels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.predictor_parts import At, BackTested
from bench.presets import FEWER, Arm, dense, fewer, places
from bench.quality import Group, group
from bench.quality_report import Row, over, sign
from bench.tables import document, fixed, markdown, number
from cache_core.predictors import bands, hermite, hold, linear, newton, taylor
from cache_core.types import TRUNK, Method, Predictor, Rule, Signal

STEPS, PAIRS = 28, 6
GUIDANCE = (1.0, 3.0)
BUDGETS = {12: 3, 10: 4, 8: 6}
"""Computed evaluations, and the N with which three warm-up steps and then every N-th, with the last, give so many."""
WARM, EVEN = "warm-up, every N", "even"
POWERS = (1.3, 1.6)
DAMPINGS = (0.5, 0.75, 1.0)

PREDICTORS: Mapping[str, Callable[[], Predictor]] = {
    "hold": hold,
    **{f"linear in sigma × {d:g}": (lambda d=d: linear(d)) for d in DAMPINGS},  # type: ignore[misc]
    **{f"linear in step × {d:g}": (lambda d=d: linear(d, "step")) for d in (1.0,)},  # type: ignore[misc]
    "Newton 2 in sigma": lambda: newton(2),
    "Hermite 2": lambda: hermite(2),
    "Taylor 2": lambda: taylor(2),
    "FreqCa's bands": lambda: bands(hold(), hermite(2), "dct", 0.1),
    "back-tested, 3 bands": BackTested,
}
SHORT = ("hold", "linear in sigma × 1", "Newton 2 in sigma", "Hermite 2")
"""Measured on the other two features too, and with even placement."""
FEATURES = ("residual", "absolute", "output")


def anchors(placement: str, count: int) -> list[int]:
    """The computed steps of a placement."""
    if placement == WARM:
        interval = BUDGETS[count]
        return sorted({0, 1, *range(2, STEPS, interval), STEPS - 1})
    return places(STEPS, count, power(placement))


def power(placement: str) -> float:
    return 1.0 if placement == EVEN else float(placement.rsplit("=", 1)[1])


def placement_names() -> list[str]:
    return [WARM, EVEN, *(f"early-dense p={p:g}" for p in POWERS)]


def arm(feature: str, placement: str, predictor: str, count: int) -> Arm:
    params = {"feature": feature, "placement": placement, "predictor": predictor, "count": count}
    if feature == "output":
        params["site"] = "model"
    return Arm(f"{feature} | {placement} | {predictor}", f"{count}", "bench", params=params)


def method_of(wanted: Arm) -> Method:
    """The composition of an arm."""
    params = wanted.params
    gate = At(frozenset(anchors(str(params["placement"]), int(params["count"]))))
    rule = Rule(TRUNK, Signal(), gate, PREDICTORS[str(params["predictor"])]())
    feature = "absolute" if params["feature"] == "absolute" else "residual"
    return Method(wanted.family, (rule,), feature, {**params})  # type: ignore[arg-type]


def arms() -> list[Arm]:
    found: list[Arm] = []
    for count in BUDGETS:
        found.append(fewer(count))
        found += [dense(count, p) for p in POWERS]
        for placement in placement_names():
            names = [*SHORT, "back-tested, 3 bands"] if placement == EVEN else PREDICTORS
            found += [arm("residual", placement, name, count) for name in names]
        for feature in FEATURES[1:]:
            for placement in (WARM, f"early-dense p={POWERS[0]:g}"):
                found += [arm(feature, placement, name, count) for name in SHORT]
    return found


def grid(pairs: int | None) -> list[Group]:
    return [group(STEPS, cfg, pairs or PAIRS, arms()) for cfg in GUIDANCE]


# the report -----------------------------------------------------------------------------------------------------------


def label(row: Row) -> str:
    """A row's name across budgets: the controls' budget is in their name."""
    return row["family"]


def budget(row: Row) -> int:
    return round(number(row["computed"]))


def table(rows: Sequence[Row], cfgs: Sequence[str]) -> str:
    """PSNR by family over guidance and budget, as in the prototype's table."""
    heading = ["PSNR", *(f"CFG {number(cfg):g}: {count}" for cfg in cfgs for count in BUDGETS)]
    body = []
    for name in dict.fromkeys(label(row) for row in rows):
        own = {(row["cfg"], budget(row)): row for row in rows if label(row) == name}
        cells = [own.get((cfg, count)) for cfg in cfgs for count in BUDGETS]
        body.append([name.replace("|", "·"), *("" if r is None else fixed(number(r["psnr"]), 1) for r in cells)])
    return markdown(heading, body)


def showing(rows: Sequence[Row], cfg: str) -> str:
    """The best of each budget, what placement and forecast are worth, and where fewer steps win."""
    own = [row for row in rows if row["cfg"] == cfg]
    sentences = []
    for count in BUDGETS:
        here = [row for row in own if budget(row) == count]
        cached = [row for row in here if not row["family"].startswith(FEWER)]
        if not cached:
            continue
        top = max(cached, key=lambda row: number(row["psnr"]))
        plain = max((row for row in here if row["family"].startswith(FEWER)), key=lambda row: number(row["psnr"]))
        losing = sum(sign(row) < 0 for row in cached)
        sentences.append(
            f"{count} computed: best {top['family'].replace('|', '·')} with {fixed(number(top['psnr']), 1)} dB, "
            f"{over(top, 'psnr_over_fewer', 1)} over fewer steps; best control {plain['family']} "
            f"{fixed(number(plain['psnr']), 1)} dB; {losing} of {len(cached)} rows are further away than fewer even "
            "steps."
        )
    return " ".join([f"CFG {number(cfg):g}:", *sentences, worth(own)])


def worth(rows: Sequence[Row]) -> str:
    """Means over budgets of the residual rows: placement at the same predictor, predictor at the same placement."""
    psnr = {(row["family"], budget(row)): number(row["psnr"]) for row in rows}

    def gain(family: str, over_: str) -> float:
        return statistics.fmean(psnr[family, count] - psnr[over_, count] for count in BUDGETS)

    base = f"residual | {WARM} | hold"
    names = [name for name in PREDICTORS if name != "hold"]
    forecast = {name: gain(f"residual | {WARM} | {name}", base) for name in names}
    placed = {name: gain(f"residual | {name} | hold", base) for name in placement_names()[1:]}
    told = ", ".join(f"{name} {value:+.1f}" for name, value in forecast.items())
    where = ", ".join(f"{name} {value:+.1f}" for name, value in placed.items())
    return f"Forecasts over hold at warm-up placement, mean dB: {told}. Placements over it with hold: {where}."


PROTOTYPE = {
    (WARM, "hold"): (33.5, 30.5, 26.7, 30.9, 27.9, 24.8),
    (WARM, "linear in sigma × 1"): (39.0, 33.9, 28.5, 32.6, 28.1, 21.1),
    (WARM, "back-tested, 3 bands"): (40.3, 35.7, 30.1, 33.9, 30.6, 25.7),
    ("early-dense p=1.3", "hold"): (36.8, 34.8, 32.1, 34.6, 29.4, 28.2),
    ("early-dense p=1.3", "back-tested, 3 bands"): (41.5, 39.2, 34.7, 35.6, 31.1, 30.0),
    ("early-dense p=1.6", "back-tested, 3 bands"): (45.3, 38.8, 33.5, 37.5, 33.1, 27.4),
}
"""The first look's table (10 prompts, one seed set): CFG 1 and 3, 12, 10 and 8 computed. Its fewer-steps row:"""
PROTOTYPE_FEWER = (35.1, 33.3, 30.9, 28.2, 25.9, 24.1)


def against_prototype(rows: Sequence[Row], cfgs: Sequence[str]) -> str:
    """Gains over fewer steps, then and now: the pictures differ, so only differences can be compared."""
    psnr = {(row["cfg"], label(row), budget(row)): number(row["psnr"]) for row in rows}
    columns = [(cfg, count) for cfg in cfgs for count in BUDGETS]
    heading = ["dB over fewer even steps: then → now", *(f"CFG {number(c):g}: {count}" for c, count in columns)]
    body, turned = [], []
    for (placement, predictor), then in PROTOTYPE.items():
        line = [f"{predictor}, {placement}"]
        for (cfg, count), old, old_fewer in zip(columns, then, PROTOTYPE_FEWER, strict=True):
            now = psnr[cfg, f"residual | {placement} | {predictor}", count] - psnr[cfg, FEWER, count]
            line.append(f"{old - old_fewer:+.1f} → {now:+.1f}")
            if (old > old_fewer) != (now > 0):
                turned.append(f"{predictor}, {placement}, CFG {number(cfg):g}, {count} computed")
        body.append(line)
    verdict = f"The sign turned in {len(turned)} of {len(PROTOTYPE) * len(columns)} cells"
    return f"{verdict}{': ' + '; '.join(turned) if turned else ''}.\n\n{markdown(heading, body)}"


def caution(pairs: int) -> str:
    """What so many rows and so few pairs allow to be said."""
    few = f" With {pairs} pairs an interval spans little more than the pairs themselves." if pairs < PAIRS else ""
    return (
        f"The best of dozens of rows is partly the luckiest: read the best rows as leads.{few} What many rows say "
        "together (a predictor over all placements, a placement over all predictors) weighs more."
    )


def report(rows: Sequence[Row], about: str) -> str:
    """docs/predictors.md."""
    cfgs = list(dict.fromkeys(row["cfg"] for row in rows))
    return document(
        "# Predictors and placements",
        f"The small FLUX, euler, {STEPS} steps, {rows[0]['pairs']} prompt and seed pairs: feature · placement of the "
        "computed evaluations · what stands in for the others. Residual and absolute are the trunk's, output is the "
        "whole model's (its ODE derivative).",
        caution(int(rows[0]["pairs"])),
        *(showing(rows, cfg) for cfg in cfgs),
        table(rows, cfgs),
        "## Against the first look (forecast_prototype.md)",
        against_prototype(rows, cfgs),
        about,
    )
