"""docs/quality.md from docs/quality.csv alone: tables, matched budgets, and what they show, also where we lose."""

from __future__ import annotations

from collections.abc import Sequence

from bench.lab.fill import MEASURED
from bench.lab.reading import HEADING, LOOKS, Row, cells, controls, groups, looks, matched, title
from bench.lab.table import document, markdown
from bench.lab.verdict import showing

ABOUT_LOOKS = (
    "Feature distance (EfficientNet-Lite0, channels of unit length over five stages; not LPIPS) and FLIP's mean error, "
    "of the picture against the full run's, in thousandths: lower is closer."
)


def report(rows: Sequence[Row], about: str) -> str:
    """docs/quality.md."""
    parts = [
        "# Quality",
        "Euler, scheduler simple, against the full run of the same prompt and seed. It tells methods apart under equal "
        "conditions; it does not say how a large model looks at these settings.",
        "![PSNR and SSIM over computed evaluations](quality.png)",
    ]
    for group in groups(rows):
        parts += [f"## {title(group)}", showing(group)]
        if any(controls(row["family"]) for row in group):
            parts += ["At matched budgets (computed evaluations; interpolated, blank where no preset brackets it):",
                      markdown(*matched(group))]  # fmt: skip
        shown = LOOKS.values() if any(any(looks(row)) for row in group) else ()
        parts.append(markdown([*HEADING, *shown], [[*cells(row), *(looks(row) if shown else ())] for row in group]))
        if group[0].get(MEASURED):
            parts.append(f"These rows: {group[0][MEASURED]}")
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
        ABOUT_LOOKS if any(any(looks(row)) for row in rows) else "",
        "Where its rows are from stands below each table." if all(row.get(MEASURED) for row in rows) else about,
    ]
    return document(*parts)
