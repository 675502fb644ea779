"""docs/quality.md from docs/quality.csv alone: tables, matched budgets, and what they show, also where we lose."""

from __future__ import annotations

from collections.abc import Sequence

from bench.lab.intervals import at
from bench.lab.presets import FEWER
from bench.lab.reading import BUDGETS, HEADING, Row, cells, controls, curve, families, groups, matched, sign, title
from bench.lab.table import document, markdown

EVEN = 0.1
"""Differences in dB that the table's one decimal hardly shows."""


def showing(rows: Sequence[Row]) -> str:
    """The paragraph on one group, from its rows alone."""
    sentences = []
    for family, members in families(rows).items():
        if controls(family):
            continue
        skipping = [row for row in members if int(row["skipping"])]
        better, worse = ([row for row in skipping if sign(row) == s] for s in (1, -1))
        even = len(skipping) - len(better) - len(worse)
        parts = [f"{family}: closer to the full run than fewer steps in {len(better)} of {len(skipping)} settings"]
        if worse:
            parts.append(f"further away in {len(worse)} ({', '.join(row['name'] for row in worse)})")
        if even:
            parts.append(f"undecided in {even}")
        sentences.append(", ".join(parts) + ".")
    return " ".join([*sentences, *best(rows)])


def best(rows: Sequence[Row]) -> list[str]:
    """At each budget: who comes closest, and how far from both controls."""
    steps = int(rows[0]["steps"])
    sentences = []
    for budget in BUDGETS:
        place = steps / budget
        values = {family: at(curve(members), place) for family, members in families(rows).items()}
        known = {family: value for family, value in values.items() if value is not None}
        ours = {family: value for family, value in known.items() if not controls(family)}
        plain = known.get(FEWER)
        if not ours or plain is None:
            continue
        winner = max(ours, key=lambda family: ours[family])
        relation = "ahead of" if ours[winner] > plain else "BEHIND"
        level = [family for family in ours if family != winner and ours[winner] - ours[family] < EVEN]
        also = f" (level with {', '.join(level)})" if level else ""
        text = f"At {budget:g}x, {winner}{also} is closest of the caches ({ours[winner]:.1f} dB), {relation} fewer "
        text += f"steps ({plain:.1f} dB)"
        dense = {family: value for family, value in known.items() if controls(family) and family != FEWER}
        if dense:
            top = max(dense, key=lambda family: dense[family])
            verdict = "ahead of" if ours[winner] > dense[top] else "BEHIND"
            text += f"; {verdict} {top} without any cache ({dense[top]:.1f} dB)"
        sentences.append(text + ".")
    return sentences


def report(rows: Sequence[Row], about: str) -> str:
    """docs/quality.md."""
    parts = [
        "# Quality",
        "The small FLUX of this repository (13.4 M parameters, 144 image tokens), euler, scheduler simple, shift 1.5, "
        "against the full run of the same prompt and seed. It tells methods apart under equal conditions; it does not "
        "say how FLUX.1 looks at these settings.",
        "![PSNR and SSIM over computed evaluations](quality.png)",
    ]
    for group in groups(rows):
        parts += [f"## {title(group)}", showing(group)]
        if any(controls(row["family"]) for row in group):
            parts += ["At matched budgets (computed evaluations; interpolated, blank where no preset brackets it):",
                      markdown(*matched(group))]  # fmt: skip
        parts.append(markdown(HEADING, [cells(row) for row in group]))
    parts += [
        "PSNR in dB and SSIM of the decoded picture in float (identical pictures left out of the PSNR), then of the "
        "latent with its own range as the peak. PSNR and SSIM over fewer steps: the mean of paired differences to the "
        "plain sampler with as many steps as were computed for that pair, with its 95 % bootstrap interval over pairs. "
        "Early-dense: the plain sampler on a subset of the full run's noise levels. Speed-up: processor seconds of "
        "whole sampling calls, median over pairs; on a model this small a skip costs a far larger share than on "
        "FLUX.1 (speed.md). Cache: what the pack keeps for both guidance lanes. EasyCache adds its change to the "
        "model's input in place; in float32, as on this CPU, ComfyUI then forms the picture from the overwritten "
        "tensor. In half precision a cast copies that input first. Its rows are measured with such a copy, so as it "
        "works on a GPU; the row unrepaired shows it without.",
        about,
    ]
    return document(*parts)
