"""What SpectralCache Auto saves where a ControlNet runs in every evaluation: the whole run's processor time.

The net is a copy of the small FLUX with half of its blocks; it is run for what it costs, and adds a little to the image
tokens. Whole model calls are skipped inside an evaluation in which the net still runs; whole evaluations (what Auto
chooses by itself there) leave the net out too.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bench.lab import Pair, Sampled, Studio, fill
from bench.lab.arms import Cached
from bench.lab.pairs import cases
from bench.lab.table import document, fixed, markdown, number
from cache_core.metrics import psnr

STEPS, COUNT, PAIRS = 20, 10, 3
GUIDANCE = (1.0, 3.0)
STRENGTH = 0.02
FULL = "no cache"
WAYS = {FULL: None, "Auto, whole model calls": "model", "Auto": "auto"}


def net(studio: Studio, made: list[int]) -> Any:
    """A ControlNet of half the blocks, which says in `made` when it runs."""
    base = importlib.import_module("comfy.controlnet").ControlBase
    model = copy.deepcopy(studio.model.model.diffusion_model)
    for name in ("double_blocks", "single_blocks"):
        blocks = getattr(model, name)
        setattr(model, name, blocks[: len(blocks) // 2])
    width = model.hidden_size

    class Half(base):  # type: ignore[misc, valid-type]
        def get_control(self, x: Any, t: Any, cond: Any, batched: int, options: Any) -> Any:
            made.append(1)
            y = cond["y"] if "y" in cond else None
            out = model(x, t.to(x), cond["c_crossattn"], y, None, transformer_options={})
            tokens = x.shape[-1] * x.shape[-2] // model.patch_size**2
            level = out.float().flatten(1).std(1)[:, None, None].to(x.dtype)
            return {"input": [STRENGTH * level.expand(-1, tokens, width)], "output": []}

        def copy(self) -> Any:
            return self

        def get_models(self) -> list[Any]:
            return []

    made_net = Half()
    made_net.timestep_percent_range = (0.0, 1.0)
    return made_net


def sample(studio: Studio, pair: Pair, site: str | None, control: Any) -> Sampled:
    """One run with the net on both sides of the guidance."""
    method = Cached("", "", method="auto", params={"computed": COUNT, "site": site}).made() if site else None
    model = studio.model if method is None else studio.lab.attach(studio.model, method)
    sides = [
        [[tokens, {**options, "control": control, "control_apply_to_uncond": False}]]
        for text in (pair.prompt, "")
        for tokens, options in studio.conditioning(text)
    ]
    noise = studio.lab.comfy.sample.prepare_noise(torch.zeros(1, 16, studio.side, studio.side), pair.seed)
    return studio.lab.sample(model, noise, *sides, pair.cfg, STEPS, seed=pair.seed)


def measure(studio: Studio, pairs: int) -> Iterator[dict[str, object]]:
    """One record a guidance, pair and way."""
    made: list[int] = []
    control = net(studio, made)
    sample(studio, Pair("", 0, 1.0), None, control)  # loads the model, not timed
    for cfg in studio.guided(GUIDANCE):
        for pair in cases(pairs, cfg):
            full = None
            for way, site in WAYS.items():
                made.clear()
                run = sample(studio, pair, site, control)
                full = full or run
                ran = run.trace["computed"] if run.trace else STEPS
                yield {
                    "cfg": cfg, "seed": pair.seed, "way": way, "steps": STEPS, "computed": ran, "nets": len(made),
                    "seconds": run.total, "speedup": full.total / run.total,
                    "stats": run.trace["speedup"]["wall"] if run.trace else None,
                    "psnr": psnr(studio.picture(run.latent), studio.picture(full.latent)),
                }  # fmt: skip


def line(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Medians of times, means of the rest."""
    first = rows[0]
    cells = [f"{first['computed']} of {first['steps']}", first["nets"]]
    cells += [f"{fixed(statistics.median(number(row[name]) for row in rows), 2)}{unit}"
              for name, unit in (("seconds", " s"), ("speedup", "x"))]  # fmt: skip
    if first["way"] == FULL:
        return [*cells, "", ""]
    stats = statistics.median(number(row["stats"]) for row in rows)
    return [*cells, f"{fixed(stats, 2)}x", fixed(statistics.fmean(number(row["psnr"]) for row in rows), 1)]


def report(rows: Sequence[Mapping[str, str]], about: str) -> str:
    """docs/controlnet.md."""
    heading = ["", "steps computed", "runs of the net", "sampling", "speed-up", "Cache Stats says", "PSNR"]
    parts = []
    for cfg in dict.fromkeys(row["cfg"] for row in rows):
        own = [row for row in rows if row["cfg"] == cfg]
        body = [[way, *line([row for row in own if row["way"] == way])] for way in dict.fromkeys(r["way"] for r in own)]
        parts += [f"## CFG {number(cfg):g}", markdown(heading, body)]
    pairs = len({row["seed"] for row in rows})
    return document(
        "# With a ControlNet",
        f"The small FLUX with a ControlNet of half its blocks, euler, {STEPS} steps, {COUNT} of them computed, "
        f"prompt and seed pairs: {pairs}. Speed-up is the processor time of a whole run with everything in it (model, "
        "net, our own work) against the run without a cache; Cache Stats says the same of the evaluations, from its "
        f"own clock. At most {STEPS / COUNT:g}x is to be had. Where only model calls are skipped, the net runs on "
        "every step.",
        *parts,
        about,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fill.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    def records(studio: Studio) -> Iterator[dict[str, object]]:
        return measure(studio, options.pairs or PAIRS)

    return fill.carry_out_records(options, "controlnet", records, ["auto"], report)
