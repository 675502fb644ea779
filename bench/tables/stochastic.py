"""SpectralCache Auto on samplers that add noise, against fewer steps on the same noise, and without its corrector.

Every run of a pair walks on one Brownian path, whatever its steps are: so a run with fewer steps aims at the same
picture, which it does not where each step draws noise of its own. Samplers of which the host asks for no noise (or asks
in another way) cannot be compared like that and are not in the table.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.lab import Pair, Studio, fill, noise
from bench.lab.arms import method_version
from bench.lab.easel import STOOD_DOWN, Easel, Seen
from bench.lab.pairs import cases
from bench.lab.presets import auto
from bench.lab.table import document, fixed, gained, markdown, number
from cache_core.types import Method

STEPS, COUNT, PAIRS = 28, 14, 4
GUIDANCE = (1.0, 3.0)
QUICK = ("euler_ancestral", "lcm")
OTHERS = ("dpm_fast", "dpm_adaptive", "res_multistep")
"""Two choose their own noise levels, one takes a noise sampler and adds none. (Samplers for a GPU and of CFG++ make the
same steps as their namesakes.)
"""
AUTO, WITHOUT, FEWER = "Auto", "without the corrector", "fewer steps"
NOISE = Path(noise.__file__).read_text("utf-8")
"""The code of the noise, on which uncached runs depend too."""


def stochastic(comfy: Any) -> list[str]:
    """The host's samplers that take a noise sampler and use it at every step."""
    sampling = importlib.import_module("comfy.k_diffusion.sampling")
    found = []
    for name in comfy.samplers.KSAMPLER_NAMES:
        function = getattr(sampling, f"sample_{name}", None)
        if function is not None and "noise_sampler" in inspect.signature(function).parameters:
            found.append(name)
    return [name for name in found if name not in OTHERS and not name.endswith(("_gpu", "_cfg_pp"))]


def ways() -> dict[str, Method]:
    """Auto as it is, and without its corrector."""
    method = auto(COUNT, STEPS).made()
    bare = tuple(replace(rule, correction=None) for rule in method.rules)
    return {AUTO: method, WITHOUT: replace(method, rules=bare)}


class OnePath(Easel):
    """Runs on one Brownian path of a pair, whatever their steps are."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio, "stochastic", NOISE)
        self.ways, self._code = ways(), method_version(("auto",))
        self._full: tuple[tuple[str, Pair], torch.Tensor] | None = None

    def outcome(self, sampler: str, pair: Pair, way: str, steps: int = STEPS) -> Seen:
        """A run with this many steps, in one of the ways, against the full one."""
        code = self._code if way in self.ways else ""
        parts = [code, sampler, repr(pair), way, str(steps)]
        return self.kept(parts, lambda: self._measure(sampler, pair, self.ways.get(way), steps))

    def _measure(self, sampler: str, pair: Pair, method: Method | None, steps: int) -> Seen:
        if self._full is None or self._full[0] != (sampler, pair):
            self._full = (sampler, pair), self.studio.picture(self._sample(sampler, pair, STEPS)[0])
        latent, ran = self._sample(sampler, pair, steps, method)
        trace = self.studio.lab.pack.RUNS.newest(lambda _: True) if method is not None else None
        return self.seen(latent, self._full[1], trace, ran)

    def _sample(self, sampler: str, pair: Pair, steps: int, method: Method | None = None) -> tuple[torch.Tensor, int]:
        """A run's latent, and how often the model ran in it."""
        lab, studio = self.studio.lab, self.studio
        model = studio.model if method is None else lab.attach(studio.model, method)
        start = lab.comfy.sample.prepare_noise(torch.zeros(studio.shape), pair.seed)
        path = noise.Path(tuple(start.shape), 0.0, float(studio.sigmas(STEPS).max()), pair.seed)
        moves = lab.comfy.samplers.ksampler(sampler, {"noise_sampler": path})
        sides = studio.conditioning(pair.prompt), studio.conditioning("")
        made: list[int] = []
        counter = studio.model.model.diffusion_model.register_forward_hook(lambda *_: made.append(1))
        try:
            latent = lab.comfy.sample.sample_custom(
                model, start, pair.cfg, moves, studio.sigmas(steps), *sides, torch.zeros_like(start),
                disable_pbar=True, seed=pair.seed,
            )  # fmt: skip
        finally:
            counter.remove()
        return latent, len(made)


def measure(studio: Studio, pairs: int, quick: bool, minutes: float) -> Iterator[dict[str, object]]:
    """One record a sampler, guidance, pair and way; none are begun after so many minutes."""
    end, easel = time.monotonic() + 60 * minutes, OnePath(studio)
    names = [name for name in stochastic(studio.lab.comfy) if name in QUICK or not quick]
    guidance = GUIDANCE[:1] if quick else studio.guided(GUIDANCE)
    for guided in zip(*(cases(pairs, cfg) for cfg in guidance), strict=True):  # a pair at every guidance
        for sampler in names:
            for pair in guided:
                if time.monotonic() > end:
                    return
                runs = {way: easel.outcome(sampler, pair, way) for way in (AUTO, WITHOUT)}
                ours = runs[AUTO]
                steps = max(round(STEPS * ours.computed / ours.evaluations), 1)
                runs[FEWER] = easel.outcome(sampler, pair, FEWER, STEPS if ours.note else steps)
                for way, run in runs.items():
                    yield {
                        "sampler": sampler, "cfg": pair.cfg, "seed": pair.seed, "way": way, "computed": run.computed,
                        "evaluations": ours.evaluations, "psnr": run.psnr, "note": run.note,
                    }  # fmt: skip


def line(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """PSNR of Auto and of fewer steps, and the gain over these with the corrector and without."""
    own = {way: [row for row in rows if row["way"] == way] for way in (AUTO, WITHOUT, FEWER)}
    values = {way: [number(row["psnr"]) for row in found] for way, found in own.items()}
    computed = statistics.fmean(number(row["computed"]) for row in own[AUTO])
    if any(row["note"] for row in own[AUTO]):
        return [f"{computed:.0f}", str(len(own[AUTO])), STOOD_DOWN, *[""] * 3]
    return [
        f"{computed:.0f} of {number(rows[0]['evaluations']):.0f}",
        str(len(own[AUTO])),
        *(fixed(statistics.fmean(values[way]), 1) for way in (AUTO, FEWER)),
        *(gained(values[way], values[FEWER]) for way in (AUTO, WITHOUT)),
    ]


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Over all samplers: how Auto stands, and what its corrector is worth there."""
    psnr = {way: [number(row["psnr"]) for row in rows if row["way"] == way] for way in (AUTO, WITHOUT, FEWER)}
    skipped = [runs for runs in zip(*psnr.values(), strict=True) if math.isfinite(runs[0])]
    if not skipped:
        return "Every run stood down."
    gains, repaid = [ours - fewer for ours, _, fewer in skipped], [ours - bare for ours, bare, _ in skipped]
    return (
        f"Over all {len(skipped)} runs that skipped, Auto is {fixed(statistics.fmean(gains), 1, sign=True)} dB over "
        f"fewer steps in the mean and closer in {sum(gain > 0 for gain in gains)}. Its corrector adds "
        f"{fixed(statistics.fmean(repaid), 1, sign=True)} dB to that and helps in {sum(gain > 0 for gain in repaid)}, "
        "so it is on whatever the sampler does."
    )


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/stochastic.md."""
    heading = ["", "computed", "pairs", "Auto, PSNR", "fewer steps, PSNR", "Auto over fewer steps, dB",
               "without its corrector"]  # fmt: skip
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        own = [row for row in rows if row["cfg"] == cfg]
        names = list(dict.fromkeys(row["sampler"] for row in own))
        body = [[name, *line([row for row in own if row["sampler"] == name])] for name in names]
        parts += [f"## CFG {number(cfg):g}", markdown(heading, body)]
    return document(
        "# Samplers that add noise",
        f"SpectralCache Auto, {COUNT} of {STEPS} steps computed, on the small FLUX; every prompt and seed pair has "
        "its one Brownian path of noise, so that fewer steps lead to the same picture. PSNR is to the full run of "
        "the same sampler; in brackets the 95 % interval over pairs. The last column is the gain over fewer steps of "
        "the same runs if nothing were paid back. Where a run stood down it is sampled uncached, and Cache Stats says "
        "why.",
        summary(rows),
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        metavar="N",
        help="begin nothing after so long; called again it goes on, and the page has what there is",
    )


def run(options: argparse.Namespace) -> int:
    def records(studio: Studio) -> Iterator[dict[str, object]]:
        return measure(studio, options.pairs or (1 if options.quick else PAIRS), options.quick, options.minutes)

    return fill.carry_out_records(options, "stochastic", records, ["auto"], report, fill.quick_folder(options))
