"""Cache Calibrate: samples a model in full a few times and hands on what it learned to the methods that ask for it."""

from __future__ import annotations

import datetime
import math
import re
import statistics
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..cache_core.generators import Guided, smoothed
from ..cache_core.profile import Profile
from ..cache_core.tables import State
from ..cache_core.types import CacheError
from . import host
from .calibration import KINDS, Calibrator
from .schema import PROFILE, schema

NAME = "Cache Calibrate"
DESCRIPTION = (
    "Samples this model in full a few times and learns how its attention and MLP change from step to step. Connect the "
    "profile to FEB-Cache Apply or Cache Method. It takes the time of samples x (1 + lags) pictures, once: the result "
    "stays until an input changes."
)
LETTERS = ".amX"
FEWEST, MOST_SAMPLES = 5, 8
MORE = ("positive_2", "positive_3", "positive_4")


class SpectralCacheCalibrate(io.ComfyNode):
    """PROFILE and a report out. Nothing is written anywhere; an interrupt leaves nothing behind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheCalibrate",
            display_name=NAME,
            description=DESCRIPTION,
            search_aliases=["calibrate", "profile", "learn", "cache calibration", "校准", "校正"],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn: FLUX.1 or Qwen-Image, with the same LoRAs and "
                               "patches as in the run. A cache on it is left out while it learns."),
                io.Conditioning.Input("positive", tooltip="The prompt. Off the others below, every sample has this one "
                                      "with another seed."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: it only counts at a cfg above 1."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size to learn at. Smaller: faster, and "
                                "less memory; half the usual side is typical."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF - MOST_SAMPLES,
                             tooltip="Of the first sample: the next ones count up. Another seed learns other noise."),
                io.Int.Input("steps", default=28, min=FEWEST, max=1000, tooltip="As many as in the run that will use "
                             "the profile: a run of another number follows the stated default instead."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="As in the run. 1 for models "
                               "without guidance of their own, such as FLUX.1; higher takes twice as long."),
                io.Combo.Input("sampler_name", options=list(comfy.samplers.KSampler.SAMPLERS), default="euler",
                               tooltip="As in the run: euler is typical; another one sees another way."),
                io.Combo.Input("scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), default="simple",
                               tooltip="As in the run: on other noise levels the stated default counts instead."),
                io.Int.Input("samples", default=4, min=1, max=MOST_SAMPLES, tooltip="So many pictures are sampled. "
                             "Higher: slower, steadier figures. 4 is typical, 8 is the paper's."),
                io.Int.Input("lags", default=2, min=1, max=4, tooltip="Over how many steps changes are measured. "
                             "Higher: slower, more memory, better at low work. 2 is typical."),
                *(io.Conditioning.Input(name, optional=True, tooltip="Another prompt: samples take turns. More of "
                                        "them: the profile is less about one picture.") for name in MORE),
            ],
            outputs=[
                io.Custom(PROFILE).Output(display_name="profile", tooltip="What was learned, for FEB-Cache Apply and "
                                          "Cache Method."),
                io.String.Output(display_name="report", tooltip="What was learned, in words: changes of both "
                                 "modules, and what the methods would make of them."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        samples: int,
        lags: int,
        **more: Any,
    ) -> io.NodeOutput:
        family, dimensions = host.fingerprint(model)
        if family == dimensions:
            raise CacheError(f"{NAME}: the blocks of {family} are not described here, so its modules cannot be told "
                             "apart; use SpectralCache Auto, which needs no profile")  # fmt: skip
        trials = 1 + 2 * lags
        bar = comfy.utils.ProgressBar(samples * steps * trials)
        calibrator = Calibrator(lags, lambda: bar.update(1))
        watched = host.calibrating(model, calibrator.method, calibrator.observe, calibrator.around)
        prompts = [positive, *(prompt for prompt in more.values() if prompt is not None)]
        empty = comfy.sample.fix_empty_latent_channels(watched, latent_image["samples"])
        for number in range(samples):
            calibrator.begin()
            comfy.sample.sample(
                watched,
                comfy.sample.prepare_noise(empty, seed + number),
                steps,
                cfg,
                sampler_name,
                scheduler,
                prompts[number % len(prompts)],
                negative,
                torch.zeros_like(empty),
                seed=seed + number,
            )
        about = {
            "model": dimensions,
            "family": family,
            "sampler": sampler_name,
            "scheduler": scheduler,
            "cfg": float(cfg),
            "date": datetime.date.today().isoformat(),
            "pack": _version(),
        }
        profile = calibrator.profile(about)
        return io.NodeOutput(profile, report(profile))


def report(profile: Profile) -> str:
    """The profile in words."""
    about = profile.about
    lines = [
        f"{about['model']}; {about['sampler']}, {about['scheduler']}, {about['steps']} steps, CFG {about['cfg']:g}, "
        f"{about['samples']} samples",
        "",
        "Change of a module's output, in percent, mean over blocks: at the start, in the middle, at the end",
    ]
    for kind in KINDS:
        for lag, rows in enumerate(profile.tables[f"{kind}.change"].nanmean(dim=2).tolist(), 1):
            known = [value for value in rows if math.isfinite(value)]
            if len(known) >= FEWEST - 2:
                places = (known[0], known[len(known) // 2], known[-1])
                lines.append(f"{kind}, {lag} step{'s' * (lag > 1)}: " + ", ".join(f"{100 * v:.1f}" for v in places))
    lines += ["", "What the methods make of it (X both reused, m the MLP, a attention, . computed)"]
    guided = Guided(profile)
    for wanted in (0.7, 0.5, 0.35):
        table, gains = guided.table(wanted), guided.gains(wanted)
        off = [gain for gain, state in zip(gains, table, strict=True) if state]
        gain = f", noise times {statistics.fmean(off):.3f} in the mean" if off else ""
        lines.append(f"FEB-Cache, work {wanted:g}:  {''.join(LETTERS[state] for state in table)}{gain}")
    for state, kind in zip((State.ATTENTION, State.MLP), KINDS, strict=True):
        rests = smoothed(profile, state, 0.15, 3)
        shown = "".join("x" if step in rests else "." for step in range(profile.total))
        lines.append(f"SmoothCache, alpha 0.15, {kind}:  {shown}")
    return "\n".join(lines)


def _version() -> str:
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    found = re.search(r'^version = "(.+)"', file.read_text("utf-8"), re.MULTILINE) if file.is_file() else None
    return found[1] if found else "unknown"
