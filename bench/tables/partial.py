"""SpectralCache Auto on part of a run: a picture to start from (denoise below 1), or two nodes that share a run.

Image to image starts from another caption's picture and noise over it, as KSampler does with denoise; fewer steps are
as many as Auto computed, with the same denoise. Two nodes share a run as models of two experts have it: the first one's
result goes on into the second one, each with its own budget; fewer steps are shared at the same place of the run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.lab import Pair, Studio, fill
from bench.lab.arms import method_version
from bench.lab.easel import Easel, Seen
from bench.lab.pairs import SHOWN, cases
from bench.lab.table import document, fixed, gained, markdown, number, parted, ways
from cache_core import methods
from cache_core.metrics import psnr

STEPS, COUNTS, PAIRS = 20, (5, 10), 6
GUIDANCE = (1.0, 3.0)
SAMPLERS = ("euler", "dpmpp_2m")
DENOISE = (0.3, 0.5, 0.75)
SHARED = (6, 10)
"""Steps of the first of two nodes, of STEPS in all."""
OTHER = 5
"""How far on in the captions the picture is taken that image to image starts from."""
SOURCE = "dpmpp_2m"
AUTO, FEWER = "Auto", "fewer steps"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a run, or a run in parts. denoise: below 1 for image to image; first: steps of the first node of two,
    of STEPS; 0 for one node.
    """

    denoise: float = 1.0
    first: int = 0

    @property
    def name(self) -> str:
        if self.first:
            return f"two nodes, {self.first} + {STEPS - self.first} steps"
        return f"image to image, denoise {self.denoise:g}"

    def split(self, steps: int) -> int:
        """The first node's steps, of so many."""
        return min(max(round(steps * self.first / STEPS), 2), steps - 2) if self.first else steps


PARTS = (*(Part(denoise=each) for each in DENOISE), *(Part(first=each) for each in SHARED))


class Partial(Easel):
    """Runs of one small model."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio, "partial", f"{STEPS} steps, {SOURCE}, {OTHER} on")
        self._code = method_version(("auto",))
        self._shown: dict[str, Tensor] = {}

    def source(self, pair: Pair) -> Tensor:
        """The latent of another caption's picture."""
        caption = SHOWN[(SHOWN.index(pair.prompt) + OTHER) % len(SHOWN)]
        other = replace(pair, prompt=caption, cfg=self.studio.guided(GUIDANCE)[-1])
        (latent,) = self.latents([other], SOURCE, self.studio.sigmas(STEPS))
        return latent

    def outcome(self, pair: Pair, sampler: str, part: Part, count: int, cached: bool) -> Seen:
        """Auto with so many computed steps of STEPS, or so many plain steps, against all plain steps."""
        parts = [self._code if cached else "", repr(pair), sampler, repr(part), str(count)]
        return self.kept(parts, lambda: self._measure(pair, sampler, part, count, cached))

    def _measure(self, pair: Pair, sampler: str, part: Part, count: int, cached: bool) -> Seen:
        latent, ran = self.run(pair, sampler, part, STEPS if cached else count, count if cached else 0)
        return Seen(ran, STEPS if cached else count, self._closeness(latent, pair, sampler, part))

    def _closeness(self, latent: Tensor, pair: Pair, sampler: str, part: Part) -> float:
        name = f"{pair} {sampler} {part}"
        if name not in self._shown:
            full, _ = self.run(pair, sampler, part, STEPS, 0)
            self._shown = {name: self.studio.picture(full)}
        return psnr(self.studio.picture(latent), self._shown[name])

    def run(self, pair: Pair, sampler: str, part: Part, steps: int, computed: int) -> tuple[Tensor, float]:
        """1 c h w, and how many evaluations were computed; computed: so many by Auto, 0 for plain steps."""
        studio = self.studio
        if not part.first:
            sigmas = studio.sigmas(int(steps / part.denoise))[-(steps + 1) :]
            return self._node(pair, sampler, sigmas, computed, self.source(pair), True)
        sigmas, at = studio.sigmas(steps), part.split(steps)
        mine = part.split(computed) if computed else 0
        begun, ran = self._node(pair, sampler, sigmas[: at + 1], mine, torch.zeros(studio.shape), True)
        latent, more = self._node(pair, sampler, sigmas[at:], computed - mine, begun, False)
        return latent, ran + more

    def _node(
        self, pair: Pair, sampler: str, sigmas: Tensor, computed: int, latent: Tensor, noisy: bool
    ) -> tuple[Tensor, float]:
        """One node's run: from `latent`, with noise of the pair's seed over it or as it is."""
        studio = self.studio
        model = studio.model
        if computed:
            model = studio.lab.attach(model, methods()["auto"](quality="Custom", computed=computed))
        run = studio.make(model, pair, len(sigmas) - 1, sigmas.clone(), sampler, latent, noisy)
        return run.latent, float(run.trace["computed"]) if run.trace else float(sum(run.computed))


def measure(studio: Studio, pairs: int, quick: bool) -> Iterator[dict[str, object]]:
    """One record a part, sampler, count, guidance, pair and way."""
    easel = Partial(studio)
    parts, samplers = (PARTS[1::2], SAMPLERS[:1]) if quick else (PARTS, SAMPLERS)
    guidance = GUIDANCE[:1] if quick else studio.guided(GUIDANCE)
    for guided in zip(*(cases(pairs, cfg) for cfg in guidance), strict=True):  # a pair at every guidance
        for pair in guided:
            for part in parts:
                for sampler in samplers:
                    for count in COUNTS:
                        for way in (AUTO, FEWER):
                            run = easel.outcome(pair, sampler, part, count, way == AUTO)
                            yield {
                                "part": part.name, "sampler": sampler, "count": count, "cfg": pair.cfg,
                                "seed": pair.seed, "way": way, "computed": run.computed, "psnr": run.psnr,
                            }  # fmt: skip


Rows = Sequence[Mapping[str, str]]


def verdict(cells: Mapping[tuple[str, ...], Rows]) -> str:
    """Where Auto is behind fewer steps in the mean."""
    behind = []
    for (part, sampler, count), rows in cells.items():
        ours, fewer = map(statistics.fmean, ways(rows, AUTO, FEWER))
        if ours < fewer:
            behind.append(f"{sampler}, {part}, {count} of {STEPS}")
    text = f"Auto is ahead of fewer steps in the mean in {len(cells) - len(behind)} of {len(cells)} settings"
    return f"{text}; behind: {'; '.join(behind)}." if behind else f"{text}."


def report(rows: Rows, about: str) -> str:
    """docs/partial.md."""
    text = []
    for (cfg,), guided in parted(rows, "cfg").items():
        cells = parted(guided, "part", "sampler", "count")
        columns = dict.fromkeys((sampler, count) for _, sampler, count in cells)
        names = dict.fromkeys(part for part, _, _ in cells)
        body = [[name, *(_cell(cells[name, sampler, count]) for sampler, count in columns)] for name in names]
        heading = ["", *(f"{sampler}, {count} of {STEPS}" for sampler, count in columns)]
        text += [f"## CFG {number(cfg):g}", verdict(cells), markdown(heading, body)]
    pairs = len({row["seed"] for row in rows})
    return document(
        "# Part of a run",
        f"SpectralCache Auto on {STEPS} steps that are not a whole run from noise to picture: image to image, which "
        "starts from another caption's picture with noise over it, and two nodes that share one run, as models of two "
        f"experts need it. Prompt and seed pairs: {pairs}. PSNR of the picture to that of all plain steps, the same "
        "way shared; behind it how many dB that is nearer than as many plain steps as Auto computed, in brackets the "
        "95 % interval over pairs.",
        *text,
        about,
    )


def _cell(rows: Rows) -> str:
    ours, fewer = ways(rows, AUTO, FEWER)
    return f"{fixed(statistics.fmean(ours), 1)}, {gained(ours, fewer)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    return fill.carry_out_pairs(options, "partial", measure, PAIRS, report)
