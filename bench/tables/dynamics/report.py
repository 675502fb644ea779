"""docs/dynamics.md from docs/dynamics.csv alone: each measurement beside the published figures, and what agrees.

The published figures: SpectralCache (arXiv 2603.05315v1) §3.1 to 3.3, FLUX.1-schnell, 20 steps, 512 x 512, 5 samples;
FreqCa (2510.08669) states the directions alone in its abstract; TeaCache's fit by third parties, its issue 20.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.lab.table import document, fixed, markdown, number

Row = Mapping[str, str]
Curve = dict[float, float]
SENSITIVITY = {1: 48.6, 5: 13.5, 14: 2.6, 15: 2.9, 18: 6.4}
BANDS = {1: 0.09, 2: 0.09, 7: 0.065, 8: 0.065}
OBJECTS = ("middle block", "last block", "residual")
LATE = 16
"""From this step on the last quarter."""
DEGREE = 4
"""TeaCache's polynomial."""


def curve(rows: Sequence[Row], part: str, series: str) -> Curve:
    """x to the mean over pairs and repeats."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["part"] == part and row["series"] == series:
            found.setdefault(number(row["x"]), []).append(number(row["value"]))
    return {x: statistics.fmean(values) for x, values in sorted(found.items())}


def points(rows: Sequence[Row], series: str) -> list[tuple[float, float]]:
    """Of the relation of input and output change."""
    own = [row for row in rows if row["part"] == "relation" and row["series"] == series]
    return [(number(row["x"]), number(row["value"])) for row in own]


def fit(pairs: Sequence[tuple[float, float]], degree: int = DEGREE) -> tuple[list[float], float]:
    """Polynomial by least squares, highest power first, and its R²."""
    import numpy as np

    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    coefficients = np.polyfit(x, y, min(degree, len(set(x.tolist())) - 1))
    left = y - np.polyval(coefficients, x)
    spread = float(((y - y.mean()) ** 2).sum())
    return coefficients.tolist(), 1 - float((left**2).sum()) / spread if spread else math.nan


def ranked(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation."""
    sides = []
    for side in zip(*pairs, strict=True):
        order = sorted(range(len(side)), key=side.__getitem__)
        place = [0] * len(side)
        for rank, i in enumerate(order):
            place[i] = rank
        sides.append([float(rank) for rank in place])
    return statistics.correlation(*sides) if len(sides[0]) > 1 else math.nan


# the parts ------------------------------------------------------------------------------------------------------------


def sensitivity(rows: Sequence[Row]) -> tuple[str, str]:
    outputs, residual = (curve(rows, "sensitivity", series) for series in ("outputs", "residual"))
    first, most = outputs[1], SENSITIVITY[1]
    heading = ["step", "outputs reused", "of step 1", "published", "of step 1", "residual reused"]
    body = [
        [f"{x:g}", fixed(value, 2), f"{value / first:.3f}",
         f"{SENSITIVITY[int(x)]:g}" if int(x) in SENSITIVITY else "",
         f"{SENSITIVITY[int(x)] / most:.3f}" if int(x) in SENSITIVITY else "", fixed(residual[x], 2)]
        for x, value in outputs.items()
    ]  # fmt: skip
    return markdown(heading, body), f"{arms('Outputs', outputs)} {arms('The residual', residual)}"


def arms(name: str, found: Curve) -> str:
    """Whether there is a U, and where its lowest point is."""
    lowest = min(found, key=found.__getitem__)
    late = max((x for x in found if x >= LATE), key=found.__getitem__, default=lowest)
    early = found[1] / found[lowest]
    rise = found[late] / found[lowest]
    shape = "a U with the steeper arm early" if early > rise > 1.2 else "no U" if rise <= 1.2 else "a U, steeper late"
    return (
        f"{name}: {shape}; lowest at step {lowest:g}, the first step {early:.1f} times that (published 18.7 times, at "
        f"step 14), the worst of the last quarter {rise:.1f} times (2.5)."
    )


def depth(rows: Sequence[Row]) -> tuple[str, str]:
    start, near, spread = (curve(rows, "depth", series) for series in ("from the start", "neighbours", "spread"))
    heading = ["blocks", "from the start", "neighbours elsewhere", "spread", "start / spread", "neighbours / spread"]
    body, more, others = [], [], []
    for k, value in spread.items():
        beyond, elsewhere = start[k] / value - 1, near[k] / value - 1 if k in near else math.nan
        more.append(beyond)
        others += [] if math.isnan(elsewhere) else [elsewhere]
        body.append([
            f"{k:g}", fixed(start[k], 1), fixed(near.get(k, math.nan), 1), fixed(value, 1), f"{100 * beyond:+.0f} %",
            "" if math.isnan(elsewhere) else f"{100 * elsewhere:+.0f} %",
        ])  # fmt: skip
    told = (
        f"From the first block on, {sum(m > 0 for m in more)} of {len(more)} numbers of blocks cost more than as many "
        f"anywhere ({100 * min(more):+.0f} to {100 * max(more):+.0f} %; published +28 % at 1 of 19, +20 % at 5, +8 % "
        "at 10, none from 14). Neighbours that do not begin at the first block cost more in "
        f"{sum(o > 0 for o in others)} of {len(others)}: where that is few, the early blocks matter, not that they are "
        "neighbours."
    )
    return markdown(heading, body), told


def bands(rows: Sequence[Row]) -> tuple[str, str]:
    found = {name: curve(rows, "bands", name) for name in OBJECTS}
    heading = ["band, coarse to fine", *(str(band) for band in range(1, 9))]
    body = [[name, *(fixed(value, 3) for value in values.values())] for name, values in found.items()]
    body.append(["published (middle block)", *(f"{BANDS[b]:g}" if b in BANDS else "" for b in range(1, 9))])
    told = []
    for name, values in found.items():
        low, high = (values[1] + values[2]) / 2, (values[7] + values[8]) / 2
        told.append(f"{name} {100 * (low / high - 1):+.0f} %")
    return markdown(heading, body), (
        f"Coarse bands (1, 2) change more than fine ones (7, 8) by: {', '.join(told)} (published +38 %)."
    )


def frequencies(rows: Sequence[Row]) -> tuple[str, str]:
    heading = ["", *(f"alike, {lag} apart" for lag in (1, 3, 5)), "goes on as it went", "left of a step by a slope"]
    body, told = [], []
    for name in OBJECTS:
        figures = {}
        for side in ("low", "high"):
            series = f"{side}, {name}"
            alike = curve(rows, "similarity", series)
            onward, left = curve(rows, "continuity", series)[1], curve(rows, "forecast", series)[1]
            figures[side] = (alike[1], onward)
            body.append([series, *(fixed(alike[lag], 3) for lag in (1, 3, 5)), fixed(onward, 2), fixed(left, 2)])
        (alike_low, on_low), (alike_high, on_high) = figures["low"], figures["high"]
        told.append(f"{name}: low bands are {'more' if alike_low > alike_high else 'less'} alike from step to step "
                    f"({alike_low:.3f} and {alike_high:.3f}), high ones go on {'more' if on_high > on_low else 'less'} "
                    f"steadily ({on_high:.2f} and {on_low:.2f})")  # fmt: skip
    return markdown(heading, body), f"FreqCa: low more alike, high more steady. {'; '.join(told)}."


def relation(rows: Sequence[Row]) -> tuple[str, str]:
    heading = ["change of", "points", "rank correlation", "R² of degree 4", "R² of a line"]
    body, told = [], []
    for series in ("output", "residual"):
        pairs = points(rows, series)
        (_, quartic), (_, line) = fit(pairs), fit(pairs, 1)
        body.append([series, str(len(pairs)), fixed(ranked(pairs), 2), fixed(quartic, 2), fixed(line, 2)])
        told.append(f"{series} {quartic:.2f}")
    return markdown(heading, body), (
        "The modulated input's change explains the change by a polynomial of degree 4 with R² of "
        f"{', '.join(told)} (for FLUX a third party found no clear relation, for another model R² 0.09)."
    )


PARTS = (
    ("Reuse at one step (SpectralCache §3.1)", sensitivity, "‖x₀ cached − x₀ full‖₂ of the latent."),
    ("Neighbouring blocks (§3.2)", depth,
     "Chosen blocks add at every step what they added at the first; the same norm. Nine blocks here, 19 in the paper."),
    ("Change by frequency (§3.3)", bands,
     "Mean relative L2 change from step to step in eight radial DCT bands of the image tokens."),
    ("Alike and steady (FreqCa)", frequencies,
     "Cosine of a band with itself some steps before; cosine of two moves that follow each other; what is left of a "
     "move when the last one is taken for its forecast (below 1 a slope helps). Low is a radius of 0.1."),
    ("Input and output (TeaCache)", relation,
     "Relative L1 change of the first block's modulated input from step to step, against that of the model's output "
     "and of the trunk's residual."),
)  # fmt: skip


def report(rows: Sequence[Row], about: str) -> str:
    """docs/dynamics.md."""
    seeds = len({row["seed"] for row in rows})
    made = [(title, *part(rows), says) for title, part, says in PARTS]
    sections = [text for title, table, _, says in made for text in (f"## {title}", says, table)]
    return document(
        "# Dynamics",
        f"Does the small FLUX of this repository behave as the models of the papers do? Euler, 20 steps, CFG 1, "
        f"{seeds} prompt and seed pairs (the paper: FLUX.1-schnell, 20 steps, 5 samples). Few pairs: directions can be "
        "read, second digits cannot.",
        "![The same as curves](dynamics.png)",
        "\n".join(f"- {told}" for _, _, told, _ in made),
        *sections,
        about,
    )
