"""Seconds of computed and skipped evaluations, overhead, memory, device waits, measured against expected speed-up."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import ROOT
from bench.host.provision import say
from bench.lab.fill import command_line
from bench.lab.table import text_table, write_csv

if TYPE_CHECKING:
    from bench.lab.sizes import Size

MODERATE = "moderate"
HIDDEN, DOUBLE, SINGLE, SIDE = 512, 4, 8, 48
DEFAULTS = {"cpu": ([10], 9, None), "cuda": ([28, 50], 5, 8.0)}
"""Steps, rounds, minutes, by device. On a GPU all of it fits one command of ten minutes."""
IDLE_ROUNDS = 12
"""Rounds of the idle node for each of the others: its effect is far smaller, and so are its runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--model", choices=(MODERATE, "flux1", "qwen-image"), default=MODERATE,
        help="the last two whole need a GPU (24 and 41 GB of weights), with fewer blocks they run on a CPU",
    )  # fmt: skip
    parser.add_argument("--hidden", type=int, help=f"width (default: {HIDDEN}; real models 3072)")
    parser.add_argument("--double", type=int, help=f"double blocks (default: {DOUBLE}; flux1 19, qwen-image 60)")
    parser.add_argument("--single", type=int, help=f"single blocks (default: {SINGLE}; flux1 38; qwen-image has none)")
    parser.add_argument("--side", type=int, help=f"the latent's height and width (default: {SIDE}; real models 128)")
    parser.add_argument("--steps", type=positive, nargs="+", metavar="N", help="default: 10; on cuda 28 50")
    parser.add_argument("--rounds", type=positive, help="default: 9; on cuda 5")
    parser.add_argument(
        "--minutes", type=float, help="begin no second round that would end later (default: 0, no limit; on cuda 8)"
    )
    parser.add_argument(
        "--idle-rounds", type=positive, help=f"of the idle node (default: {IDLE_ROUNDS} times --rounds)"
    )
    parser.add_argument("--cfg", type=float, default=1.0, help="above 1: two lanes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs/")


def size_of(options: argparse.Namespace) -> Size:
    """The model that is asked for. Raises `ValueError` with the way out where there is none."""
    from bench.lab.sizes import HEAD, MOST_ON_CPU, REAL, moderate, reduced

    if options.hidden is not None and options.hidden % HEAD:
        raise ValueError(f"--hidden must be a multiple of {HEAD}, the width of an attention head")
    if options.model == MODERATE:
        asked = ((options.hidden, HIDDEN), (options.double, DOUBLE), (options.single, SINGLE), (options.side, SIDE))
        return moderate(*(default if given is None else given for given, default in asked))
    full = REAL[options.model]
    if options.single is not None and not full.singles:
        raise ValueError(f"{options.model} has no single blocks; leave out --single, --double counts its blocks")
    size = reduced(full, options.double, options.single, options.side, options.hidden)
    if options.device == "cpu" and size.gigabytes > MOST_ON_CPU:
        fewer = "--double 1 --single 2 --side 32" if full.singles else "--double 2 --side 32"
        raise ValueError(
            f"{options.model} with {size.doubles + size.singles} blocks has {size.gigabytes:.0f} GB of weights, too "
            f"many for a CPU; pass --device cuda, or fewer blocks: {fewer}"
        )
    return size


def require_gpu(size: Size) -> None:
    """Raises `ValueError` with the way out where no GPU can hold the model."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here; leave out --device cuda, or use a Python whose torch sees one")
    free, _ = torch.cuda.mem_get_info()
    if size.gigabytes > free / 1e9:
        raise ValueError(
            f"the model has {size.gigabytes:.0f} GB of weights and the GPU {free / 1e9:.0f} GB free; pass fewer blocks "
            "with --double and --single"
        )


def positive(text: str) -> int:
    """A count from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def file_name(options: argparse.Namespace, size: Size) -> str:
    """Of table and page: neither another size's nor a GPU's may look like another's."""
    from bench.lab.sizes import REAL, moderate

    if options.model == MODERATE:
        width = "" if size == moderate(HIDDEN, DOUBLE, SINGLE, SIDE) else f"-{size.hidden}"
        return f"speed{width}" if options.device == "cpu" else f"speed-moderate{width}-cuda"
    return f"speed-{options.model}" if size == REAL[options.model] else f"speed-{options.model}-reduced"


def run(options: argparse.Namespace) -> int:
    import torch

    from bench.lab import Lab
    from bench.tables.speed.measure import Plan, measure
    from bench.tables.speed.report import HEADING, report, row, sections, summary

    begun = time.monotonic()
    try:
        size = size_of(options)
        if options.device == "cuda":
            require_gpu(size)
    except ValueError as error:
        say(f"bench speed: {error}")
        return 1
    if options.threads > 1 and options.device == "cpu":
        say("Processor time counts every thread, so seconds of several threads are their sum.")
    steps, rounds, minutes = DEFAULTS[options.device]
    rounds = options.rounds or rounds
    minutes = minutes if options.minutes is None else options.minutes
    until = begun + 60 * minutes if minutes else float("inf")
    idle_rounds = options.idle_rounds or IDLE_ROUNDS * rounds
    plan = Plan(tuple(options.steps or steps), rounds, idle_rounds, options.cfg, until)
    with torch.inference_mode():
        lab = Lab(options.device, options.threads)
        about = lab.about()  # before the measurement, which it could otherwise lose
        speeds = measure(lab, size, plan, say)
    tables = sections(speeds)
    for table in tables:
        print(f"{table.heading}\n\n{text_table(HEADING, [row(line) for line in table.lines])}\n")
    print(summary(tables, speeds))
    name = file_name(options, size)
    write_csv(options.out / f"{name}.csv", [line.record(table.steps) for table in tables for line in table.lines])
    path = options.out / f"{name}.md"
    path.write_text(report(speeds, tables, about, command_line()), encoding="utf-8")
    print(f"{path}")
    return 0
