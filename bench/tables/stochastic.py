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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.lab import Studio, fill, noise
from bench.lab.arms import method_version
from bench.lab.pairs import prompts
from bench.lab.presets import auto
from bench.lab.runner import closeness, ground
from bench.lab.store import Outcome, Store, digest
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
STOOD_DOWN = "stood down"
PATH = Path(noise.__file__).read_text("utf-8")
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


@dataclass(frozen=True, slots=True)
class Case:
    """One picture, however it is made."""

    sampler: str
    cfg: float
    text: str
    seed: int


class Easel:
    """Runs of one case. Finished ones come from the store; the full run is made when something is compared with it."""

    def __init__(self, studio: Studio, store: Store, case: Case) -> None:
        self.studio, self.store, self.case = studio, store, case
        self.ways = ways()
        self._code = method_version(("auto",))
        self._full: tuple[torch.Tensor, torch.Tensor, float] | None = None

    def outcome(self, way: str, steps: int = STEPS) -> Outcome:
        """A run with this many steps, in one of the ways, against the full one."""
        code = self._code if way in self.ways else ""
        key = digest(["stochastic", PATH, ground(self.studio), code, repr(self.case), way, str(steps)])
        known = self.store.get(key)
        if known is None:
            known = self._measure(self.ways.get(way), steps)
            self.store.put(key, known)
        return known

    def _measure(self, method: Method | None, steps: int) -> Outcome:
        if self._full is None:
            latent, total, _ = self._sample(STEPS)
            self._full = (latent, self.studio.picture(latent), total)
        full, wanted, slowest = self._full
        latent, seconds, ran = self._sample(steps, method)
        trace = self.studio.lab.pack.RUNS.newest(lambda _: True) if method is not None else None
        return Outcome(
            computed=sum(e["work"] for e in trace["evaluations"]) if trace else ran,
            evaluations=len(trace["evaluations"]) if trace else ran,
            seconds=seconds,
            speedup=slowest / seconds,
            cache_bytes=trace["cache_bytes"] if trace else None,
            **closeness(self.studio.picture(latent), latent, wanted, full),
            note="; ".join(trace["notes"]) if trace and trace["state"] == STOOD_DOWN else "",
        )

    def _sample(self, steps: int, method: Method | None = None) -> tuple[torch.Tensor, float, int]:
        """A run's latent, its seconds, and how often a block ran in it."""
        lab, studio, case = self.studio.lab, self.studio, self.case
        model = studio.model if method is None else lab.attach(studio.model, method)
        start = lab.comfy.sample.prepare_noise(torch.zeros(1, 16, studio.side, studio.side), case.seed)
        path = noise.Path(tuple(start.shape), 0.0, float(studio.sigmas(STEPS).max()), case.seed)
        sampler = lab.comfy.samplers.ksampler(case.sampler, {"noise_sampler": path})
        sides = studio.conditioning(case.text), studio.conditioning("")
        made: list[int] = []
        counter = studio.model.model.diffusion_model.double_blocks[0].register_forward_hook(lambda *_: made.append(1))
        started = lab.clock()
        try:
            latent = lab.comfy.sample.sample_custom(
                model, start, case.cfg, sampler, studio.sigmas(steps), *sides, torch.zeros_like(start),
                disable_pbar=True, seed=case.seed,
            )  # fmt: skip
        finally:
            counter.remove()
        return latent, lab.clock() - started, len(made)


def measure(studio: Studio, pairs: int, quick: bool, minutes: float) -> Iterator[dict[str, object]]:
    """One record a sampler, guidance, pair and way; none are begun after so many minutes."""
    end = time.monotonic() + 60 * minutes
    names, store = stochastic(studio.lab.comfy), Store()
    for text, seed in prompts(pairs):
        for sampler in [name for name in names if name in QUICK] if quick else names:
            for cfg in GUIDANCE[:1] if quick else GUIDANCE:
                if time.monotonic() > end:
                    return
                easel = Easel(studio, store, Case(sampler, cfg, text, seed))
                runs = {way: easel.outcome(way) for way in (AUTO, WITHOUT)}
                ours = runs[AUTO]
                steps = max(round(STEPS * ours.computed / ours.evaluations), 1)
                runs[FEWER] = easel.outcome(FEWER, STEPS if ours.note else steps)
                for way, run in runs.items():
                    yield {
                        "sampler": sampler, "cfg": cfg, "seed": seed, "way": way, "computed": run.computed,
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
