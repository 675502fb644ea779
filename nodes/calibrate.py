"""Cache Calibrate: samples a model in full a few times and hands on what it learned to the methods that ask for it.

Each sample is one full run that is watched (`watcher`), and one in which modules are tried apart (`calibration`), which
takes longer; `record` leaves one of them out. The first is made again in parts, to see what an error of one step does
to the picture (`amplifier`). Or each is one run in full and one with the cache that is on the model (`comparer`). The
profile is stored when everything is done: an interrupt leaves nothing behind.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..cache_core.gains import Learner, settings
from ..cache_core.profile import Profile
from ..cache_core.types import CacheError, Method
from . import host, shelf
from .amplifier import Amplifier
from .calibration import Calibrator
from .calibration_report import report
from .comparer import Comparer
from .plots import plots
from .schema import ADVANCED, PROFILE, schema
from .watcher import Watcher, joined

NAME = "Cache Calibrate"
DESCRIPTION = (
    "Samples this model in full a few times and learns how it changes from step to step, as a whole and attention and "
    "MLP apart. Connect the profile to an Apply node or to Cache Method; it is also stored, for Cache Profile to load. "
    "It takes the time of samples x (2 + lags) pictures and four more, once: the result stays until an input changes."
)
FEWEST, MOST_SAMPLES = 5, 8
MORE = ("positive_2", "positive_3", "positive_4")
EVERYTHING, RUN, APART, GAIN = "everything", "whole run", "modules", "gain"


class SpectralCacheCalibrate(io.ComfyNode):
    """PROFILE and a report out, and the profile in the user folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheCalibrate",
            display_name=NAME,
            description=DESCRIPTION,
            search_aliases=["calibrate", "profile", "learn", "cache calibration", "校准", "校正"],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn, with the same LoRAs and patches as in the run: "
                               "FLUX.1, Qwen-Image or Wan; of others the course of whole runs is learned, for "
                               "SpectralCache Auto. A cache on it is left out while it learns, but for record gain."),
                io.Conditioning.Input("positive", tooltip="The prompt. Off the others below, every sample has this one "
                                      "with another seed."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: it only counts at a cfg above 1."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size to learn at. Smaller: faster, and "
                                "less memory; half the usual side is typical."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF - MOST_SAMPLES,
                             control_after_generate=False,  # a new seed at every run would learn everything anew
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
                io.Combo.Input("record", options=[EVERYTHING, RUN, APART, GAIN], default=EVERYTHING, optional=True,
                               extra_dict=dict(ADVANCED), tooltip="What is learned. everything (typical); whole run: "
                               "only what SpectralCache Auto, TeaCache, MagCache and their kin use, in a fraction of "
                               "the time and on every model; modules: only what methods that reuse attention and MLP "
                               "apart use; gain: what the cache that is on this model does to the noise and to each "
                               "channel, for the same method's gain."),
                io.String.Input("name", default="", optional=True, extra_dict=dict(ADVANCED), tooltip="By which Cache "
                                "Profile lists it. Empty (typical): model, sampler, steps and day. A name that is "
                                "taken gets a number behind it."),
            ],
            outputs=[
                io.Custom(PROFILE).Output(display_name="profile", tooltip="What was learned, for Apply nodes and "
                                          "Cache Method."),
                io.String.Output(display_name="report", tooltip="What was learned, in words: how the model changes, "
                                 "how well each fit fits, and what the methods would make of it."),
                io.Image.Output(display_name="plots", tooltip="The same as curves."),
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
        record: str = EVERYTHING,
        name: str = "",
        **more: Any,
    ) -> io.NodeOutput:
        family, dimensions = host.fingerprint(model)
        described = family != dimensions
        if record == APART and not described:
            raise CacheError(f"{NAME}: record is {APART}, but the blocks of {family} are not described here, so its "
                             f"modules cannot be told apart; use {RUN}")  # fmt: skip
        cache = _cache(model) if record == GAIN else None
        recorders = _recorders(record, described, cfg > 1, lags, lambda: bar.update(1))
        if cache is not None:
            learner, flow = Learner(), host.flow(model)
            recorders = [Comparer(learner, method, flow, lambda: bar.update(1)) for method in (None, cache)]
        amplifier = None if record in (APART, GAIN) else Amplifier(steps, lambda: bar.update(1))
        total = samples * steps * sum(recorder.trials for recorder in recorders)
        bar = comfy.utils.ProgressBar(total + (amplifier.evaluations if amplifier else 0))
        prompts = [positive, *(prompt for prompt in more.values() if prompt is not None)]
        empty = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])

        def sampled(watching: Recorder | Amplifier, number: int) -> torch.Tensor:
            """One run that is looked at."""
            latent: torch.Tensor = comfy.sample.sample(
                host.calibrating(model, watching.method, watching.observe, watching.around),
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
            return latent

        for number in range(samples):
            for recorder in recorders:
                recorder.begin()
                sampled(recorder, number)
        while amplifier is not None and amplifier.left:
            amplifier.finish(sampled(amplifier, 0))
        tables = joined([recorder.tables() for recorder in recorders])
        if amplifier is not None and "course.gram" in tables:
            tables["course.amplified"] = amplifier.table(len(tables["sigmas"]))
        if not tables:
            raise CacheError(f"{NAME}: nothing was recorded: {sampler_name} tells nothing of its steps; use euler")
        about = {
            "model": dimensions,
            "family": family,
            "sampler": sampler_name,
            "scheduler": scheduler,
            "cfg": float(cfg),
            "samples": samples,
            "steps": len(tables["sigmas"]),
            "shift": host.shift(model),
            "size": " x ".join(str(side) for side in empty.shape[2:]),
            "date": datetime.date.today().isoformat(),
            "pack": _version(),
            "name": "",
            "gained": "" if cache is None else settings(cache),
        }
        profile, said = _stored(Profile(about, tables), name)
        return io.NodeOutput(profile, f"{said}\n{report(profile)}", plots(profile))


Recorder = Watcher | Calibrator | Comparer


def _cache(model: Any) -> Method:
    """The method that is on the model. Raises `CacheError` where its gain cannot be learned."""
    attachment = host.attachment_of(model)
    if attachment is None:
        raise CacheError(f"{NAME}: record is {GAIN}, but no cache is on this model; connect that of Cache Method")
    if attachment.method.output is not None:
        raise CacheError(f"{NAME}: record is {GAIN}, but {attachment.method.name} has a gain or scaling on already; "
                         "switch that off on the model that is learned")  # fmt: skip
    return attachment.method


def _recorders(record: str, described: bool, guided: bool, lags: int, ticked: Callable[[], None]) -> list[Recorder]:
    """Who looks on, in runs of its own each."""
    recorders: list[Recorder] = []
    if record != APART:
        recorders.append(Watcher(described, guided, ticked))
    if record != RUN and described:
        recorders.append(Calibrator(lags, ticked))
    return recorders


def _stored(profile: Profile, name: str) -> tuple[Profile, str]:
    """The profile under its name, and what to say of that. One that cannot be stored is as good for this run."""
    try:
        named = shelf.put(profile, name)
    except CacheError as error:
        return profile, f"Not stored: {error}."
    return named, f"Stored as {named.about['name']}."


def _version() -> str:
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    found = re.search(r'^version = "(.+)"', file.read_text("utf-8"), re.MULTILINE) if file.is_file() else None
    return found[1] if found else "unknown"
