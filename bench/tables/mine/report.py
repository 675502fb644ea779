"""The page of `bench mine`: what was measured on whose machine, in one Markdown file that can be pasted anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.lab.intervals import at
from bench.lab.presets import AUTO, FEWER
from bench.lab.reading import Row, controls, curve, families, matched, over
from bench.lab.table import document, fixed, markdown, number
from bench.tables.mine.grid import AUTO_SOLVER, FULL, FURTHER, SOLVERS

SHEET = "sheet.jpg"
PLAIN = (FEWER, SOLVERS)


def best(rows: Sequence[Row], count: int, what: str) -> Row | None:
    """Of rows that compute no more than so many evaluations, but more than two fewer, the closest by this figure."""
    near = [row for row in rows if count - 2 < number(row["computed"]) <= count and row[what]]
    return max(near, key=lambda row: number(row[what]), default=None)


def showing(rows: Sequence[Row]) -> str:
    """What the table says at two and at three times fewer evaluations, from its rows alone."""
    steps = int(rows[0]["steps"])
    found = families(rows)
    told = []
    for budget in FURTHER:
        count = max(round(steps / budget), 2)
        own = at(curve(found.get(AUTO, [])), count)
        plain = at(curve(found.get(FEWER, [])), count)
        if own is None or plain is None:
            continue
        text = f"With {count} of {steps} evaluations computed, Auto is {own:.1f} dB from the full run, {count} plain "
        text += f"steps {plain:.1f} dB."
        others = [row for row in rows if not controls(row["family"]) and row["family"] not in (AUTO, AUTO_SOLVER, FULL)]
        rival = best(others, count, "psnr")
        if rival is not None:
            text += f" Closest other cache that computes as little: {rival['name']}, {number(rival['psnr']):.1f} dB."
        told.append(text + exactly(rows, count))
    return "\n\n".join(told)


def exactly(rows: Sequence[Row], count: int) -> str:
    """The same against the converged picture: there a solver may beat the full run itself."""
    full = next((row for row in rows if row["family"] == FULL and row["exact"]), None)
    plain = best([row for row in rows if row["family"] in PLAIN], count, "exact")
    ours = best([row for row in rows if row["family"] in (AUTO, AUTO_SOLVER)], count, "exact")
    if full is None or plain is None or ours is None:
        return ""
    return (
        f" From the converged picture: your full run {number(full['exact']):.1f} dB, the best plain solver "
        f"({plain['name']}) {number(plain['exact']):.1f} dB, {ours['name']} {number(ours['exact']):.1f} dB."
    )


def table(rows: Sequence[Row]) -> str:
    heading = ["", "computed", "seconds", "speed-up", "PSNR", "SSIM", "PSNR over fewer steps"]
    with_exact = any(row["exact"] for row in rows)
    heading += [*(["PSNR to the converged picture"] if with_exact else []), "cache MB"]
    body = []
    for row in rows:
        body.append([
            row["name"],
            fixed(number(row["computed"]), 1),
            fixed(number(row["seconds"]), 1),
            f"{fixed(number(row['speedup']), 2)}x",
            fixed(number(row["psnr"]), 1),
            fixed(number(row["ssim"]), 3),
            "" if row["family"] == FULL else over(row, "psnr_over_fewer", 1),
            *([fixed(number(row["exact"]), 1)] if with_exact else []),
            fixed(number(row["cache_bytes"]) / 1e6, 1),
        ])  # fmt: skip
    return markdown(heading, body)


def report(
    rows: Sequence[Row], title: str, settings: Mapping[str, str], prompts: Sequence[str], notes: Sequence[str]
) -> str:
    """The whole page; `notes` are what went wrong."""
    pairs = rows[0]["pairs"]
    few = "" if int(pairs) >= 4 else " With so few, single pictures decide: take it as a first look."
    exact = (
        "Euler's own error is part of your full run; the converged picture (heun, many steps) has none of it, so that "
        "another solver may come closer to it than your full run does. "
    )
    return document(
        f"# SpectralCache on {title}",
        f"![Pictures of each setting]({SHEET})",
        showing(rows),
        markdown(*matched([row for row in rows if row["family"] not in (FULL, SOLVERS)])),
        "Blank: no setting computes so little or so much. Setting by setting:",
        table(rows),
        f"{pairs} prompt and seed pair{'s' * (int(pairs) > 1)}.{few} "
        "PSNR in dB and SSIM of the decoded picture against the full run of the "
        "same prompt and seed, higher is closer; over fewer steps: the mean difference to as many plain steps as were "
        "computed, with its 95 % interval over pairs. The first row is the full run made once more: anything but "
        "identical is this machine's own noise. Speed-up: seconds of whole sampling runs, median over pairs, without "
        f"text encoding and decoding. {exact if any(row['exact'] for row in rows) else ''}",
        "\n".join(f"- {note}" for note in notes),
        markdown(("", "measured with"), [(name, value) for name, value in settings.items()]).replace("---:", "---"),
        "Prompts: " + "; ".join(f"*{prompt}*" for prompt in prompts) + ".",
    )
