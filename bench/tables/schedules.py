"""SpectralCache Auto on other noise levels: shifts, schedulers and lists by hand, against fewer steps.

Fewer steps are as many as Auto computed, on the same curve: the scheduler's or the list's own shorter form. Every
sampler that takes one evaluation a step and adds no noise, so that both aim at the same picture.

On some lists a solver of high order breaks down by itself; how far its full run lies from the exact picture says so.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from bench.lab import Pair, Studio, fill
from bench.lab.arms import method_version
from bench.lab.easel import CONVERGED, Easel, Seen
from bench.lab.pairs import cases
from bench.lab.presets import auto
from bench.lab.table import document, fixed, gained, markdown, number, parted, ways

STEPS, COUNT, PAIRS = 20, 10, 6
GUIDANCE = (1.0, 3.0)
SAMPLERS = ("euler", "dpmpp_2m", "res_multistep", "deis", "ipndm", "uni_pc_bh2", "gradient_estimation")
GAP, TURNS = "a gap of 0.2, then a step of 0.001", "narrow and wide by turns"
AUTO, FEWER, FULL = "Auto", "fewer steps", "all steps"
EXACT = 75
"""Steps of heun that stand for the exact picture."""
BROKEN = 30.0
"""A full run with fewer dB than this to the exact picture is no picture to come close to."""

Levels = Callable[[int], torch.Tensor]
"""So many steps on a curve: T + 1 noise levels from 1 (or near it) to 0."""


def gap(steps: int) -> torch.Tensor:
    """Even levels but for one gap with a narrow step behind it; fewer steps are read off the same curve."""
    full = torch.cat((torch.linspace(1.0, 0.7, 7), torch.tensor([0.5]), torch.linspace(0.499, 0.0, 13)))
    return full[torch.linspace(0, len(full) - 1, steps + 1).round().long()]


def turns(steps: int) -> torch.Tensor:
    """Steps in the ratio 1 to 3 by turns, whatever their number."""
    widths = torch.tensor([1.0, 3.0]).repeat(steps)[:steps]
    return 1 - torch.cat((torch.zeros(1), widths.cumsum(0))) / widths.sum()


def optimal(model: str, steps: int) -> torch.Tensor:
    """The lists of the host's OptimalStepsScheduler."""
    node: Any = importlib.import_module("comfy_extras.nodes_optimalsteps").OptimalStepsScheduler
    made: torch.Tensor = node.execute(model, steps, 1.0)[0]
    return made


def curves(studio: Studio) -> dict[str, tuple[Any, Levels]]:
    """Every curve by name: the model whose shift it has, and its levels."""
    shifting: Any = importlib.import_module("comfy_extras.nodes_model_advanced")
    made: dict[str, tuple[Any, Levels]] = {}
    for shift in (3.0, 8.0, 13.0):
        (model,) = shifting.ModelSamplingAuraFlow().patch_aura(studio.model, shift)
        made[f"simple, shift {shift:g}"] = model, partial(studio.sigmas, model=model)
    shifted = made["simple, shift 3"][0]
    made["normal, shift 3"] = shifted, partial(studio.sigmas, scheduler="normal", model=shifted)
    own = studio.model
    for scheduler in ("beta", "karras"):
        made[f"{scheduler}, shift {studio.shift:g}"] = own, partial(studio.sigmas, scheduler=scheduler)
    lists = {GAP: gap, TURNS: turns, "OptimalSteps, FLUX": partial(optimal, "FLUX")}
    return made | {name: (own, levels) for name, levels in lists.items()}


class Curve(Easel):
    """Runs on one curve."""

    def __init__(self, studio: Studio, name: str, model: Any, levels: Levels) -> None:
        super().__init__(studio, "schedules")
        self.name, self.model, self.levels = name, model, levels
        self._method, self._code = auto(COUNT, STEPS).made(), method_version(("auto",))

    def against_full(self, pair: Pair, sampler: str, steps: int | None = None) -> Seen:
        """Auto on the whole curve, or so many plain steps, against all plain steps."""
        sigmas = self.levels(steps or STEPS)
        code = self._code if steps is None else ""
        parts = [code, repr(pair), sampler, self.name, str(sigmas.tolist())]
        return self.kept(parts, lambda: self._measure(pair, sampler, steps is None, sigmas))

    def against_exact(self, pair: Pair, sampler: str) -> Seen:
        """All plain steps against the exact picture, from the noise level that the curve starts at."""
        full, below = self.levels(STEPS), self.studio.sigmas(EXACT)
        finest = torch.cat((full[:1], below[below < full[0]]))
        parts = [f"{CONVERGED} {EXACT}", repr(pair), sampler, self.name, str(full.tolist())]
        return self.kept(parts, lambda: self._true(pair, sampler, full, finest))

    def _true(self, pair: Pair, sampler: str, full: torch.Tensor, finest: torch.Tensor) -> Seen:
        latent, _ = self.plain(pair, sampler, full)
        return self.seen(latent, self.plain(pair, CONVERGED, finest)[1], None, STEPS)

    def _measure(self, pair: Pair, sampler: str, cached: bool, sigmas: torch.Tensor) -> Seen:
        _, wanted = self.plain(pair, sampler, self.levels(STEPS))
        if not cached:
            return self.seen(self.plain(pair, sampler, sigmas)[0], wanted, None, len(sigmas) - 1)
        model = self.studio.lab.attach(self.model, self._method)
        run = self.studio.make(model, pair, STEPS, sigmas, sampler)
        return self.seen(run.latent, wanted, run.trace, STEPS)


def measure(studio: Studio, pairs: int, quick: bool) -> Iterator[dict[str, object]]:
    """One record a curve, sampler, guidance, pair and way."""
    found = curves(studio)
    easels = [Curve(studio, name, *found[name]) for name in (list(found)[:1] if quick else found)]
    guidance = GUIDANCE[:1] if quick else studio.guided(GUIDANCE)
    for guided in zip(*(cases(pairs, cfg) for cfg in guidance), strict=True):  # a pair at every guidance
        for easel in easels:
            for sampler in SAMPLERS[:2] if quick else SAMPLERS:
                for pair in guided:
                    ours = easel.against_full(pair, sampler)
                    fewer = easel.against_full(pair, sampler, max(round(ours.computed), 1))
                    runs = {AUTO: ours, FEWER: fewer, FULL: easel.against_exact(pair, sampler)}
                    for way, run in runs.items():
                        yield {
                            "curve": easel.name, "sampler": sampler, "cfg": pair.cfg, "seed": pair.seed, "way": way,
                            "computed": run.computed, "psnr": run.psnr, "note": run.note,
                        }  # fmt: skip


def behind(cells: Mapping[tuple[str, ...], Sequence[Mapping[str, str]]]) -> str:
    """Which combinations are behind fewer steps, in every pair or in the mean."""
    certain, mean = [], []
    for (curve, sampler), rows in cells.items():
        gains = [ours - fewer for ours, fewer in zip(*ways(rows, AUTO, FEWER), strict=True)]
        if sum(gains) < 0:
            (own,) = ways(rows, FULL)
            far = f" (its full run is {fixed(statistics.fmean(own), 0)} dB from the exact picture)" if own else ""
            name = f"{sampler} on {curve}"
            (certain if max(gains) < 0 else mean).append(name + far if own and statistics.fmean(own) < BROKEN else name)
    total = f"Of {len(cells)} combinations Auto is ahead of fewer steps in the mean in "
    text = total + f"{len(cells) - len(certain) - len(mean)}"
    text += f"; behind in the mean alone: {'; '.join(mean)}" if mean else ""
    return text + (f". Behind in every pair: {'; '.join(certain)}." if certain else ". Nowhere behind in every pair.")


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/schedules.md."""
    parts = []
    for (cfg,), guided in parted(rows, "cfg").items():
        cells = parted(guided, "curve", "sampler")
        names, own = dict.fromkeys(curve for curve, _ in cells), dict.fromkeys(sampler for _, sampler in cells)
        body = [[name, *(gained(*ways(cells[name, sampler], AUTO, FEWER)) for sampler in own)] for name in names]
        parts += [f"## CFG {number(cfg):g}", behind(cells), markdown(["", *own], body)]
    pairs = len({row["seed"] for row in rows})
    mine = [row for row in rows if row["way"] == AUTO]
    computed = statistics.fmean(number(row["computed"]) for row in mine)
    return document(
        "# Other noise levels",
        f"SpectralCache Auto on the small FLUX, {STEPS} steps, {fixed(computed, 1)} of them computed in the mean; "
        f"prompt and seed pairs: {pairs}. How many dB its picture is nearer to the full run's (same sampler, same "
        "levels) than that of as many plain steps on the same curve; in brackets the 95 % interval over pairs. The "
        "list of OptimalSteps is searched for ten steps of FLUX.1, which is what as many plain steps are there. Where "
        f"a full run has less than {fixed(BROKEN, 0)} dB to the exact picture (heun, {2 * EXACT} evaluations), the "
        "sampler breaks down on those levels by itself; the page says so where Auto is behind.",
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out_pairs(options, "schedules", measure, PAIRS, report)
