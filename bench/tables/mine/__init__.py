"""Your own model on your own ComfyUI: fewer steps, other solvers, Auto, the published caches; a page to show.

With COMFYUI_PATH (and COMFYUI_PYTHON) it runs on your installation, into which nothing is installed. Files are paths,
or names as ComfyUI's loaders list them. It says how long it will take and asks; stopped by Ctrl-C it writes what it
has, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.host.provision import say
from bench.lab.fill import command_line
from bench.tables.mine.families import OWN, Family
from bench.tables.mine.loading import Files, Unusable, load, painter, require

if TYPE_CHECKING:
    from bench.lab.painter import Painter
    from bench.lab.pairs import Pair

PROMPTS = (
    "A lighthouse on a rocky coast at dusk, warm light in its windows, waves breaking below, photograph, fine detail",
    "Portrait of an old fisherman with a grey beard, weathered face, soft window light",
    "A red bicycle leaning against a yellow brick wall, a cat asleep in its basket, midday sun",
    'A wooden sign that reads "Harbour 1 mile" beside a gravel road, green hills behind it',
)
FIRST_SEED = 1000
METHODS = ("auto", "spectralcache", "freqca")
"""Of ours, whose code the figures rest on."""
PAIRS, EXACT = 4, 50
PROBE = 4
"""Evaluations that are timed before anything else, behind a first run that loads the model."""
FEW = 9
"""Steps from which on skipping is worth looking at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the loaders, of the family's settings, and of how much is measured."""
    many: dict[str, Any] = {"nargs": "+", "default": (), "metavar": "FILE"}
    parser.add_argument("--unet", default="", metavar="FILE", help="the diffusion model")
    parser.add_argument("--clip", **many, help="its text encoders, one to three")
    parser.add_argument("--vae", default="", metavar="FILE", help="its decoder")
    parser.add_argument("--checkpoint", default="", metavar="FILE", help="all three in one file")
    parser.add_argument("--clip-type", default="", metavar="TYPE", help="as in CLIPLoader (default: the family's)")
    parser.add_argument("--weight-dtype", default="default", metavar="TYPE", help="as in Load Diffusion Model")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where torch sees a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU (default: %(default)s)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line (default: four of ours)")
    parser.add_argument("--pairs", type=int, metavar="N", help=f"prompts (default: {PAIRS}, or all of --prompts)")
    parser.add_argument("--steps", type=int, metavar="N", help="of the full run; these six default to the family's")
    parser.add_argument("--cfg", type=float, help="1 for models with embedded guidance")
    parser.add_argument("--guidance", type=float, help="embedded guidance, as FluxGuidance sets it")
    parser.add_argument("--shift", type=float, help="of a flow model's schedule, as ModelSamplingAuraFlow sets it")
    parser.add_argument("--size", metavar="WxH", help="of the picture, 1024x1024 for example")
    parser.add_argument("--exact", type=int, default=EXACT, metavar="N",
                        help="steps of heun for the converged picture, 0 for none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one prompt, few settings, no converged picture")
    parser.add_argument("--yes", action="store_true", help="do not ask before it begins")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: out/mine/NAME here")


def settings(family: Family, options: argparse.Namespace) -> Family:
    """The family's, with what the command line says instead. Raises `Unusable`."""
    given = {name: getattr(options, name) for name in ("steps", "cfg", "guidance", "shift")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.size:
        try:
            width, height = (int(side) for side in options.size.lower().split("x"))
        except ValueError as error:
            raise Unusable(f"--size: {options.size} is no size; write 1024x1024") from error
        given["size"] = (width, height)
    made = replace(family, **given)
    if made.steps < 2:
        raise Unusable(f"--steps {made.steps}: give 2 steps or more")
    return made


def pairs_of(options: argparse.Namespace, family: Family) -> list[Pair]:
    """The prompts with their seeds. Raises `Unusable`."""
    from bench.lab.pairs import Pair, cases

    if options.prompts:
        try:
            lines = options.prompts.read_text("utf-8").splitlines()
        except OSError as error:
            raise Unusable(f"--prompts: {error}") from error
        texts = [line.strip() for line in lines if line.strip()]
    elif family.name in OWN:
        texts = [pair.prompt for pair in cases(options.pairs or PAIRS, family.cfg)]
    else:
        texts = list(PROMPTS)
    count = options.pairs or (1 if options.quick else len(texts))
    if not texts or count < 1:
        raise Unusable("--prompts, --pairs: not one prompt to measure with")
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    return [Pair(texts[i % len(texts)], seed, family.cfg) for i, seed in enumerate(seeds)]


def run(options: argparse.Namespace) -> int:
    import torch

    try:
        with torch.inference_mode():
            return measure(options)
    except Unusable as error:
        say(f"bench mine: {error}")
        return 1


def measure(options: argparse.Namespace) -> int:
    """Load, estimate, ask, make, write."""
    import torch

    from bench.lab import Lab
    from bench.lab.grid import Group
    from bench.lab.store import code_version
    from bench.tables.mine import grid
    from bench.tables.mine.making import Keeper, duration, make
    from bench.tables.mine.pages import PAGE, SHEET, write

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    require(device)
    files = Files(options.unet, tuple(options.clip), options.vae, options.checkpoint, options.clip_type,
                  options.weight_dtype)  # fmt: skip
    lab = Lab(device, options.threads)
    loaded = load(lab, files)
    family = settings(loaded.family, options)
    pairs = pairs_of(options, family)
    exact = 0 if options.quick else options.exact
    out = options.out or Path("out/mine") / Path(files.unet or files.checkpoint).stem
    say(f"{family.name}: {describe(family)}")
    if family.steps < FEW:
        say(f"{family.steps} steps leave little to skip: a cache is for models that need 20 and more.")
    own = painter(lab, loaded, family, [pair.prompt for pair in pairs])
    del loaded
    runner = Keeper(own, out / "runs", exact)
    every = grid.arms(family.steps, options.quick)
    second, decode = probe(own, pairs[0])
    work = grid.evaluations(every, family.steps, exact)
    expected = len(pairs) * (work * second + (len(every) + 2) * decode)
    say(f"{len(pairs)} prompt{'s' * (len(pairs) > 1)}, {len(every)} ways each, {second:.2f} s an evaluation: about "
        f"{duration(expected)}, less what is already there.")  # fmt: skip
    if not (options.yes or agreed()):
        return 1
    group = Group(family.steps, family.cfg, tuple(pairs), tuple(every))
    about = {"model": f"{family.name}, {', '.join(file.name for file in own_files(files))}",
             "settings": describe(family), **lab.about(), "pack": f"code {code_version(METHODS)[:8]}",
             "command": f"`{command_line()}`"}  # fmt: skip

    made = make(runner, group, second, say, lambda made: write(out, runner, group, made, about))
    if not made.finished:
        say("Nothing was measured.")
        return 130 if made.stopped else 1
    say(f"{out / PAGE}, {out / SHEET}")
    return 130 if made.stopped else 0


def own_files(files: Files) -> list[Path]:
    return [Path(name) for name in (files.checkpoint, files.unet, *files.clip, files.vae) if name]


def describe(family: Family) -> str:
    """The settings in words."""
    said = [f"{family.steps} steps", f"CFG {family.cfg:g}", f"{family.size[0]} x {family.size[1]}"]
    said += [f"guidance {family.guidance:g}"] if family.guidance is not None else []
    said += [f"shift {family.shift:g}"] if family.shift is not None else []
    return ", ".join([*said, "euler, scheduler simple"])


def probe(own: Painter, pair: Pair) -> tuple[float, float]:
    """Seconds of an evaluation and of decoding, on the wall clock."""
    import importlib

    out_of_memory = importlib.import_module("comfy.model_management").OOM_EXCEPTION
    say("Loading the model, and timing it.")
    try:
        own.make(own.model, pair, 2)
        run = own.make(own.model, pair, PROBE)
        begun = time.monotonic()
        own.picture(run.latent)
    except out_of_memory as error:
        raise Unusable("out of memory: a smaller --size, or --weight-dtype fp8_e4m3fn") from error
    return run.wall / PROBE, time.monotonic() - begun


def agreed() -> bool:
    """Whether to go on."""
    if not sys.stdin.isatty():
        raise Unusable("nobody to ask here; --yes begins without asking")
    print("Begin? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
