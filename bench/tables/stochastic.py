"""SpectralCache Auto on samplers that add noise, against fewer steps on the same noise, with its corrector and without.

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
from typing import Any

import torch

from bench.lab import Studio, fill
from bench.lab.arms import method_version
from bench.lab.intervals import paired
from bench.lab.noise import Path
from bench.lab.pairs import prompts
from bench.lab.presets import auto
from bench.lab.runner import ground
from bench.lab.store import Outcome, Store, digest
from bench.lab.table import document, fixed, markdown, number
from cache_core.corrections import Repay
from cache_core.metrics import psnr, ssim
from cache_core.types import Correction, Method

STEPS, COUNT, PAIRS = 28, 14, 4
GUIDANCE = (1.0, 3.0)
QUICK = ("euler_ancestral", "lcm")
OTHERS = ("dpm_fast", "dpm_adaptive", "res_multistep")
"""Two choose their own noise levels, one takes a noise sampler and adds none. (Samplers for a GPU and of CFG++ make the
same steps as their namesakes.)
"""
AUTO, WITH, WITHOUT, FEWER = "Auto", "with the corrector", "without the corrector", "fewer steps"
STOOD_DOWN = "stood down"


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
    """Auto as it is, and with a corrector that repays whatever the sampler does, or never."""
    method = auto(COUNT, STEPS).made()

    def repaired(correction: Correction | None) -> Method:
        return replace(method, rules=tuple(replace(rule, correction=correction) for rule in method.rules))

    return {AUTO: method, WITH: repaired(Repay(through_noise=True)), WITHOUT: repaired(None)}


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
        key = digest(["stochastic", ground(self.studio), code, repr(self.case), way, str(steps)])
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
        picture, spread = self.studio.picture(latent), float(full.max() - full.min())
        return Outcome(
            computed=sum(e["work"] for e in trace["evaluations"]) if trace else ran,
            evaluations=len(trace["evaluations"]) if trace else ran,
            seconds=seconds,
            speedup=slowest / seconds,
            cache_bytes=trace["cache_bytes"] if trace else None,
            psnr=psnr(picture, wanted),
            ssim=ssim(picture, wanted),
            latent_psnr=psnr(latent, full, spread),
            latent_ssim=ssim(latent.movedim(1, -1), full.movedim(1, -1), spread),
            note="; ".join(trace["notes"]) if trace and trace["state"] == STOOD_DOWN else "",
        )

    def _sample(self, steps: int, method: Method | None = None) -> tuple[torch.Tensor, float, int]:
        """A run's latent, its seconds, and how often a block ran in it."""
        lab, studio, case = self.studio.lab, self.studio, self.case
        model = studio.model if method is None else lab.attach(studio.model, method)
        noise = lab.comfy.sample.prepare_noise(torch.zeros(1, 16, studio.side, studio.side), case.seed)
        path = Path(tuple(noise.shape), 0.0, float(studio.sigmas(STEPS).max()), case.seed)
        sampler = lab.comfy.samplers.ksampler(case.sampler, {"noise_sampler": path})
        sides = studio.conditioning(case.text), studio.conditioning("")
        made: list[int] = []
        counter = studio.model.model.diffusion_model.double_blocks[0].register_forward_hook(lambda *_: made.append(1))
        started = lab.clock()
        try:
            latent = lab.comfy.sample.sample_custom(
                model, noise, case.cfg, sampler, studio.sigmas(steps), *sides, torch.zeros_like(noise),
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
                it_is_on = ours.latent_psnr != runs[WITHOUT].latent_psnr
                runs[WITH] = ours if it_is_on or ours.note else easel.outcome(WITH)
                steps = max(round(STEPS * ours.computed / ours.evaluations), 1)
                runs[FEWER] = easel.outcome(FEWER, STEPS if ours.note else steps)
                for way, run in runs.items():
                    yield {
                        "sampler": sampler, "cfg": cfg, "seed": seed, "way": way, "computed": run.computed,
                        "evaluations": ours.evaluations, "psnr": run.psnr, "note": run.note,
                    }  # fmt: skip


def line(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """PSNR of Auto and of fewer steps, and the gain of all kinds of Auto over these."""
    own = {way: [row for row in rows if row["way"] == way] for way in (AUTO, WITH, WITHOUT, FEWER)}
    values = {way: [number(row["psnr"]) for row in found] for way, found in own.items()}
    computed = statistics.fmean(number(row["computed"]) for row in own[AUTO])
    if any(row["note"] for row in own[AUTO]):
        return [f"{computed:.0f}", str(len(own[AUTO])), STOOD_DOWN, *[""] * 5]
    gains = {way: paired(values[way], values[FEWER]) for way in (AUTO, WITH, WITHOUT)}
    gain, on = gains[AUTO], values[AUTO] != values[WITHOUT]
    return [
        f"{computed:.0f} of {number(rows[0]['evaluations']):.0f}",
        str(len(own[AUTO])),
        *(fixed(statistics.fmean(values[way]), 1) for way in (AUTO, FEWER)),
        f"{fixed(gain.mean, 1, sign=True)} ({fixed(gain.low, 1, sign=True)} to {fixed(gain.high, 1, sign=True)})",
        "on" if on else "off",
        *(fixed(gains[way].mean, 1, sign=True) for way in (WITH, WITHOUT)),
    ]


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/stochastic.md."""
    heading = ["", "computed", "pairs", "Auto, PSNR", "fewer steps, PSNR", "Auto over fewer steps, dB", "its corrector",
               "always with it", "never with it"]  # fmt: skip
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
        "the same sampler; in brackets the 95 % interval over pairs. Auto's corrector is off by itself where the "
        "sampler was seen to add noise; the last two columns are the gain over fewer steps if it always repaired, or "
        "never. Where a run stood down it is sampled uncached, and Cache Stats says why.",
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
