"""How true SpectralCache Auto's estimated error is: each skipped evaluation computed as well.

For the ruler alone: the relative error of what stood in, beside what the back-test had said of it before.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import spearmanr

from bench.lab import Lab, Studio, fill
from bench.lab.pairs import cases
from bench.lab.presets import auto
from bench.lab.table import document, fixed, markdown, number
from cache_core.track import Seen
from cache_core.types import ESTIMATE, Method

STEPS, PAIRS = 28, 6
GUIDANCE = (1.0, 3.0)
COUNTS = (14, 10, 7)


@dataclass
class Ruler:
    """Computes each skipped call too, beside the run, and writes down how far off what stood in was."""

    lab: Lab
    told: list[Seen] = field(default_factory=list)
    found: list[dict[str, object]] = field(default_factory=list)

    def attach(self, model: Any, method: Method) -> Any:
        """`model` with the method, and the ruler around both: the first wrapper is the outermost."""
        clone = model.clone()
        clone.add_wrapper_with_key(self.lab.comfy.patcher_extension.WrappersMP.APPLY_MODEL, "ruler", self)
        return self.lab.attach(clone, method, self.told.append)

    def __call__(self, executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL, outside the pack's own: the pack passes a call on whose options do not carry its run."""
        self.told.clear()
        answer = executor(x, sigma, *args, **kwargs)
        leading = next((seen for seen in self.told if seen.skipped), None)
        if leading is not None:
            *before, options = args
            plain = {name: value for name, value in options.items() if name != self.lab.pack.KEY}
            levels = sigma.view(-1, *(1,) * (x.dim() - 1))
            truth, said = (x - executor(x, sigma, *before, plain, **kwargs)) / levels, (x - answer) / levels
            rows = len(leading.feature.value)  # of the leading lane, whose estimate it is
            error = (said - truth)[:rows].norm() / truth[:rows].norm()
            estimate = leading.scores.get(ESTIMATE)
            self.found.append({"step": leading.feature.at.index, "estimate": estimate, "error": float(error)})
        return answer


def measure(studio: Studio, pairs: int | None, quick: bool = False) -> Iterator[dict[str, object]]:
    """One record for each skipped evaluation; `quick`: of one pair, without guidance."""
    for cfg in GUIDANCE[:1] if quick else studio.guided(GUIDANCE):
        for pair in cases(pairs or (1 if quick else PAIRS), cfg):
            for count in COUNTS:
                ruler = Ruler(studio.lab)
                studio.make(ruler.attach(studio.model, auto(count).made()), pair, STEPS)
                for record in ruler.found:
                    yield {"cfg": cfg, "computed": count, "seed": pair.seed, **record}


def line(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rank correlation, and quantiles of the true error over its estimate."""
    pairs = [(number(row["estimate"]), number(row["error"])) for row in rows if row["estimate"]]
    ratios = [error / estimate for estimate, error in pairs if estimate > 0]
    tenths = statistics.quantiles(ratios, n=10)
    means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
    return [
        f"{len(pairs)} of {len(rows)}",
        fixed(float(spearmanr(*zip(*pairs, strict=True)).statistic), 2),
        *(f"{fixed(100 * mean, 1)} %" for mean in means),
        fixed(statistics.median(ratios), 2),
        f"{fixed(tenths[0], 2)} to {fixed(tenths[-1], 2)}",
    ]


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/estimate.md."""
    heading = ["", "with an estimate", "rank correlation", "mean estimate", "mean error", "error / estimate",
               "in 8 of 10 cases"]  # fmt: skip
    body = [
        [f"CFG {number(cfg):g}, {count} of {STEPS} computed", *line(own)]
        for cfg in dict.fromkeys(row["cfg"] for row in rows)
        for count in COUNTS
        if (own := [row for row in rows if row["cfg"] == cfg and int(row["computed"]) == count])
    ]
    body.append(["all together", *line(rows)])
    return document(
        "# How true the estimated error is",
        "SpectralCache Auto says of every skipped evaluation how far off what stood in may be: the misfit of its last "
        "back-test, scaled to the distance. Here each skipped evaluation of the small model was computed as well "
        f"(site model, euler, {STEPS} steps, {len({row['seed'] for row in rows})} prompt and seed pairs, none of which "
        "the method was made with): the relative error of the derivative, L2. There is no estimate before the third "
        "computed step.",
        "The estimate tells good skips from bad ones. It is the error of single skipped evaluations before the "
        "corrector, not of the finished picture, which is much smaller.",
        markdown(heading, body),
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    def records(studio: Studio) -> Iterator[dict[str, object]]:
        return measure(studio, options.pairs, options.quick)

    return fill.carry_out_records(options, "estimate", records, ["auto"], report, fill.quick_folder(options))
