"""Seconds of computed and skipped evaluations, overhead, memory, device reads, measured against expected speed-up."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.fill import command_line
from bench.provision import say
from bench.tables import text_table, write_csv

ROOT = Path(__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--model", choices=("moderate", "flux1", "qwen-image"), default="moderate", help="the last two need a GPU"
    )
    parser.add_argument("--hidden", type=int, default=512, help="width of the moderate model (default: %(default)s)")
    parser.add_argument("--double", type=int, default=4, help="its double blocks (default: %(default)s)")
    parser.add_argument("--single", type=int, default=8, help="its single blocks (default: %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="its latent's height and width (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--cfg", type=float, default=1.0, help="above 1: two lanes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs/")


def run(options: argparse.Namespace) -> int:
    import torch

    from bench.big_models import REAL, moderate
    from bench.lab import Lab
    from bench.speed import measure
    from bench.speed_report import figures, report, row, summary

    if options.threads > 1 and options.device == "cpu":
        say("Processor time counts every thread, so seconds of several threads are their sum.")
    with torch.inference_mode():
        lab = Lab(options.device, options.threads)
        size = REAL.get(options.model) or moderate(options.hidden, options.double, options.single, options.side)
        measured = measure(lab, size, options.steps, options.rounds, options.cfg, say)
    lines = figures(measured)
    print(text_table(("", "value", "95 % interval", "target", ""), [row(line) for line in lines]))
    print(f"\n{summary(lines, measured)}")
    name = "speed" if options.model == "moderate" else f"speed-{options.model}"
    write_csv(options.out / f"{name}.csv", [line.record() for line in lines])
    path = options.out / f"{name}.md"
    path.write_text(report(lines, measured, lab.about(), command_line()), encoding="utf-8")
    print(f"{path}")
    return 0
