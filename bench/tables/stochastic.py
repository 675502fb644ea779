"""SpectralCache Auto on samplers that add noise, against fewer steps on the same noise, with its corrector and without.

Every run of a pair walks on one Brownian path, whatever its steps are: so a run with fewer steps aims at the same
picture, which it does not where each step draws noise of its own. Samplers of which the host asks for no noise (or asks
in another way) cannot be compared like that and are not in the table.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.lab import Studio, fill
from bench.lab.intervals import paired
from bench.lab.pairs import prompts
from bench.lab.presets import auto
from bench.lab.table import document, fixed, markdown, number
from cache_core.metrics import psnr
from cache_core.types import Method

STEPS, COUNT, PAIRS = 28, 14, 4
GUIDANCE = (1.0, 3.0)
DEEP = 20_000
"""Calls in each other: the tree of a Brownian path is deep where a sampler's stages lie close together."""
QUICK = ("euler_ancestral", "lcm")
AUTO, UNCORRECTED, FEWER = "Auto", "without the corrector", "fewer steps"
STOOD_DOWN = "stood down"


@dataclass(frozen=True, slots=True)
class Painted:
    """One run: its picture, how many evaluations it had and how many were computed, and why it was not cached."""

    picture: torch.Tensor
    evaluations: int
    computed: int
    note: str = ""


def stochastic(comfy: Any) -> list[str]:
    """The host's samplers that take a noise sampler and give another picture with another one."""
    sampling = importlib.import_module("comfy.k_diffusion.sampling")
    found = []
    for name in comfy.samplers.KSAMPLER_NAMES:
        function = getattr(sampling, f"sample_{name}", None)
        if function is not None and "noise_sampler" in inspect.signature(function).parameters:
            found.append(name)
    return [name for name in found if not name.endswith(("_gpu", "_cfg_pp"))]  # the same steps as their namesakes


def uncorrected() -> Method:
    """Auto, never paying back what the sampler drifted by."""
    method = auto(COUNT, STEPS).made()
    return replace(method, rules=tuple(replace(rule, correction=None) for rule in method.rules))


class Easel:
    """Runs of one pair with one sampler."""

    def __init__(self, studio: Studio, sampler: str, text: str, seed: int, cfg: float) -> None:
        self.studio, self.sampler, self.cfg, self.seed = studio, sampler, cfg, seed
        self.sides = studio.conditioning(text), studio.conditioning("")
        latent = torch.zeros(1, 16, studio.side, studio.side)
        self.noise = studio.lab.comfy.sample.prepare_noise(latent, seed)

    def paint(self, steps: int, method: Method | None = None) -> Painted:
        lab, studio = self.studio.lab, self.studio
        model = studio.model if method is None else lab.attach(studio.model, method)
        sampler = lab.comfy.samplers.ksampler(self.sampler, {"noise_sampler": self._path()})
        made, before = [], lab.pack.RUNS.newest(lambda _: True)
        counter = studio.model.model.diffusion_model.double_blocks[0].register_forward_hook(lambda *_: made.append(1))
        try:
            latent = lab.comfy.sample.sample_custom(
                model, self.noise, self.cfg, sampler, studio.sigmas(steps), *self.sides, torch.zeros_like(self.noise),
                disable_pbar=True, seed=self.seed,
            )  # fmt: skip
        finally:
            counter.remove()
        trace = lab.pack.RUNS.newest(lambda _: True)
        picture = studio.picture(latent)
        if method is None or trace is before or trace is None:
            return Painted(picture, len(made), len(made))
        note = "; ".join(trace["notes"]) if trace["state"] == STOOD_DOWN else ""
        return Painted(picture, len(trace["evaluations"]), trace["computed"] + trace["partial"], note)

    def _path(self) -> Any:
        """One path of noise, whatever steps are taken on it."""
        sampling = importlib.import_module("comfy.k_diffusion.sampling")
        levels = self.studio.sigmas(STEPS)
        least, most = levels[levels > 0].min() / 2, levels.max()
        return sampling.BrownianTreeNoiseSampler(self.noise, least, most, seed=self.seed, cpu=True)


def measure(studio: Studio, pairs: int, quick: bool) -> Iterator[dict[str, object]]:
    """One record a sampler, guidance, pair and way."""
    names = stochastic(studio.lab.comfy)
    sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEP))
    for sampler in [name for name in names if name in QUICK] if quick else names:
        for cfg in GUIDANCE[:1] if quick else GUIDANCE:
            for text, seed in prompts(pairs):
                easel = Easel(studio, sampler, text, seed, cfg)
                full = easel.paint(STEPS)
                ours = easel.paint(STEPS, auto(COUNT, STEPS).made())
                runs = {AUTO: ours, UNCORRECTED: easel.paint(STEPS, uncorrected())}
                steps = max(round(STEPS * ours.computed / ours.evaluations), 1) if ours.evaluations else STEPS
                runs[FEWER] = easel.paint(STEPS if ours.note else steps)
                for way, run in runs.items():
                    yield {
                        "sampler": sampler, "cfg": cfg, "seed": seed, "way": way, "computed": run.computed,
                        "evaluations": full.evaluations, "psnr": psnr(run.picture, full.picture), "note": run.note,
                    }  # fmt: skip


def line(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """PSNR of the three, and the gain of both kinds of Auto over fewer steps."""
    own = {way: [row for row in rows if row["way"] == way] for way in (AUTO, UNCORRECTED, FEWER)}
    values = {way: [number(row["psnr"]) for row in found] for way, found in own.items()}
    computed = statistics.fmean(number(row["computed"]) for row in own[AUTO])
    if any(row["note"] for row in own[AUTO]):
        return [f"{computed:.0f}", STOOD_DOWN, "", "", ""]
    gain, without = paired(values[AUTO], values[FEWER]), paired(values[UNCORRECTED], values[FEWER])
    same = values[AUTO] == values[UNCORRECTED]
    return [
        f"{computed:.0f} of {number(rows[0]['evaluations']):.0f}",
        *(fixed(statistics.fmean(values[way]), 1) for way in (AUTO, FEWER)),
        f"{fixed(gain.mean, 1, sign=True)} ({fixed(gain.low, 1, sign=True)} to {fixed(gain.high, 1, sign=True)})",
        "it is off" if same else fixed(without.mean, 1, sign=True),
    ]


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/stochastic.md."""
    heading = ["", "computed", "Auto, PSNR", "fewer steps, PSNR", "Auto over fewer steps, dB", "without the corrector"]
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        own = [row for row in rows if row["cfg"] == cfg]
        names = list(dict.fromkeys(row["sampler"] for row in own))
        body = [[name, *line([row for row in own if row["sampler"] == name])] for name in names]
        parts += [f"## CFG {number(cfg):g}", markdown(heading, body)]
    pairs = len({row["seed"] for row in rows})
    return document(
        "# Samplers that add noise",
        f"SpectralCache Auto, {COUNT} of {STEPS} steps computed, on the small FLUX: {pairs} prompt and seed pairs, "
        "each on one Brownian path of noise, so that fewer steps lead to the same picture. PSNR is to the full run of "
        "the same sampler; in brackets the 95 % interval over pairs. Auto's corrector is off by itself where the "
        "sampler was seen to add noise. Where a run stood down it is sampled uncached, and Cache Stats says why.",
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_quick(parser)
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    def records(studio: Studio) -> Iterator[dict[str, object]]:
        return measure(studio, options.pairs or (1 if options.quick else PAIRS), options.quick)

    return fill.carry_out_records(options, "stochastic", records, ["auto"], report, fill.quick_folder(options))
