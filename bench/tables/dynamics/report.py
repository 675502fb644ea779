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
CACHED = "last block"
"""What FreqCa caches: the stream behind it."""
OBJECTS = ("middle block", CACHED, "residual")
LATE = 16
"""From this step on the last quarter."""
EARLY = "a U with the steeper arm early"
DEGREE = 4
"""TeaCache's polynomial."""
TIGHT = 0.5
"""Rank correlation from which on the input is said to tell the output's change."""
MOST = 0.75
"""Share of the numbers of blocks at which neighbours must cost more."""
EVEN = 0.01
"""Difference of two cosines that four pairs do not show."""


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


Part = tuple[str, str, dict[str, bool]]
"""A table, what it shows, and what was published with whether it is so here."""


def sensitivity(rows: Sequence[Row]) -> Part:
    outputs, residual = (curve(rows, "sensitivity", series) for series in ("outputs", "residual"))
    first, most = outputs[1], SENSITIVITY[1]
    heading = ["step", "outputs reused", "of step 1", "published", "of step 1", "residual reused"]
    body = [
        [f"{x:g}", fixed(value, 2), f"{value / first:.3f}",
         f"{SENSITIVITY[int(x)]:g}" if int(x) in SENSITIVITY else "",
         f"{SENSITIVITY[int(x)] / most:.3f}" if int(x) in SENSITIVITY else "", fixed(residual[x], 2)]
        for x, value in outputs.items()
    ]  # fmt: skip
    told = arms("Outputs", outputs)
    says = {f"{EARLY} (SpectralCache §3.1)": EARLY in told}
    return markdown(heading, body), f"{told} {arms('The residual', residual)}", says


def arms(name: str, found: Curve) -> str:
    """Whether there is a U, and where its lowest point is."""
    lowest = min(found, key=found.__getitem__)
    late = max((x for x in found if x >= LATE), key=found.__getitem__, default=lowest)
    early = found[1] / found[lowest]
    rise = found[late] / found[lowest]
    shape = EARLY if early > rise > 1.2 else "no U" if rise <= 1.2 else "a U, steeper late"
    return (
        f"{name}: {shape}; lowest at step {lowest:g}, the first step {early:.1f} times that (published 18.7 times, at "
        f"step 14), the worst of the last quarter {rise:.1f} times (2.5)."
    )


def depth(rows: Sequence[Row]) -> Part:
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
    dearer, first = sum(o > 0 for o in others), sum(m > 0 for m in more)
    told = (
        f"Neighbouring blocks cost more than as many anywhere at {dearer} of {len(others)} numbers of blocks "
        f"({100 * min(others):+.0f} to {100 * max(others):+.0f} %; published +28 % at 1 of 19, +20 % at 5, +8 % at 10, "
        f"none from 14), those from the first block on, as the paper's text has them, at {first} of {len(more)} "
        f"({100 * min(more):+.0f} to {100 * max(more):+.0f} %)."
    )
    return markdown(heading, body), told, {"neighbouring blocks cost more (§3.2)": dearer >= MOST * len(others)}


def bands(rows: Sequence[Row]) -> Part:
    found = {name: curve(rows, "bands", name) for name in OBJECTS}
    heading = ["band, coarse to fine", *(str(band) for band in range(1, 9))]
    body = [[name, *(fixed(value, 3) for value in values.values())] for name, values in found.items()]
    body.append(["published (middle block)", *(f"{BANDS[b]:g}" if b in BANDS else "" for b in range(1, 9))])
    over = {name: (values[1] + values[2]) / (values[7] + values[8]) - 1 for name, values in found.items()}
    told = ", ".join(f"{name} {100 * share:+.0f} %" for name, share in over.items())
    return (
        markdown(heading, body),
        f"Coarse bands (1, 2) change more than fine ones (7, 8) by: {told} (published, middle block: +38 %).",
        {"coarse bands of a middle block change more (§3.3)": over[OBJECTS[0]] > 0},
    )


def frequencies(rows: Sequence[Row]) -> Part:
    heading = ["", *(f"alike, {lag} apart" for lag in (1, 3, 5)), "goes on as it went", "left of a step by a slope"]
    body, told, says = [], [], {}
    for name in OBJECTS:
        figures = {}
        for side in ("low", "high"):
            series = f"{side}, {name}"
            alike = curve(rows, "similarity", series)
            onward, left = curve(rows, "continuity", series)[1], curve(rows, "forecast", series)[1]
            figures[side] = (alike[1], onward)
            body.append([series, *(fixed(alike[lag], 3) for lag in (1, 3, 5)), fixed(onward, 2), fixed(left, 2)])
        (alike_low, on_low), (alike_high, on_high) = figures["low"], figures["high"]
        if name == CACHED:
            says = {"low bands are more alike (FreqCa)": alike_low > alike_high,
                    "high bands go on more steadily (FreqCa)": on_high > on_low + EVEN}  # fmt: skip
        told.append(f"{name} {alike_low:.3f} and {alike_high:.3f}, {on_low:.2f} and {on_high:.2f}")
    words = "From step to step, low and high bands: how alike (published: low more), how steady (published: high more)"
    return markdown(heading, body), f"{words}: {'; '.join(told)}.", says


def relation(rows: Sequence[Row]) -> Part:
    heading = ["change of", "points", "rank correlation", "R² of degree 4", "R² of a line"]
    body, told, ranking = [], [], {}
    for series in ("output", "residual"):
        pairs = points(rows, series)
        (_, quartic), (_, line) = fit(pairs), fit(pairs, 1)
        ranks = ranking[series] = ranked(pairs)
        body.append([series, str(len(pairs)), fixed(ranks, 2), fixed(quartic, 2), fixed(line, 2)])
        told.append(f"{series} {quartic:.2f} (rank correlation {ranks:.2f})")
    return (
        markdown(heading, body),
        "The modulated input's change explains the change by a polynomial of degree 4 with R² of "
        f"{', '.join(told)}; third parties found no clear relation for FLUX, and R² 0.09 for another model.",
        {"the input's change tells the output's (TeaCache)": ranking["output"] > TIGHT},
    )


PARTS = (
    ("Reuse at one step (SpectralCache §3.1)", sensitivity, "‖x₀ cached − x₀ full‖₂ of the latent."),
    ("Neighbouring blocks (§3.2)", depth,
     "Chosen blocks add at every step what they added at the first; the same norm. At most all blocks but one here; "
     "the paper has 19 blocks."),
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
    sections = [text for title, table, _, _, says in made for text in (f"## {title}", says, table)]
    claims = {claim: holds for _, _, _, says, _ in made for claim, holds in says.items()}
    alike, other = ([claim for claim, holds in claims.items() if holds is kind] for kind in (True, False))
    verdict = f"As published: {', '.join(alike) or 'nothing'}. Not as published: {', '.join(other) or 'nothing'}."
    return document(
        "# Dynamics",
        f"Does this model behave as those of the papers do? Euler, 20 steps, CFG 1, "
        f"{seeds} prompt and seed pairs (the paper: FLUX.1-schnell, 20 steps, 5 samples). Few pairs: directions can be "
        "read, second digits cannot.",
        "![The same as curves](dynamics.png)",
        verdict,
        "\n".join(f"- {told}" for _, _, told, _, _ in made),
        *sections,
        about,
    )
