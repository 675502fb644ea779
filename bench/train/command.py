"""`python dev.py train`: makes the small models from nothing, in order, going on from where each was.

data         fetch pictures and names, write a sheet of them
autoencoder  16-channel latents back to pictures
flux         FLUX class with dropped captions, for real guidance
flux-guided  a student of flux's guided output, with the guidance as a number, as FLUX.1-dev is
qwen         Qwen-Image class

Ctrl-C or SIGTERM ends with a checkpoint in the cache folder; the same command goes on. OMP_NUM_THREADS says how many
threads it may use.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: the folder on the path is bench/train/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from bench.host.provision import SetupError, say
from bench.train import checks, export, files, recipes

NAMES = ("data", *recipes.MODELS)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="dev.py train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("name", nargs="?", choices=NAMES, help="only this one (default: all, in order)")
    top.add_argument("--steps", type=int, metavar="N", help="end after N steps in all, to go on later")
    top.add_argument("--workers", type=int, metavar="N", help="painting processes (default: 0; with a GPU one a core)")
    top.add_argument("--check", action="store_true", help="judge what was trained instead of training it")
    top.add_argument("--export", type=Path, metavar="DIR", help="write weights and card instead of training")
    top.add_argument(
        "--captions", type=int, default=checks.COUNT, metavar="N", help="of --check (default: %(default)s)"
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = options.workers
    if workers is None:
        workers = 0 if device == "cpu" or options.check or options.export else (os.cpu_count() or 1)
    chosen = NAMES if options.name is None else (options.name,)
    for name in chosen:
        if name == "data":
            say(f"{len(recipes.data())} pictures with names; a sheet of captions is in {files.training_folder()}")
            continue
        run = recipes.MODELS[name](device, workers)
        say(f"{name}: step {run.step} of {run.settings.steps}, {run.folder}")
        if options.check:
            print(checks.report(run, options.captions))
        elif options.export:
            print("\n".join(map(str, export.write(run, options.export))))
        elif not run.done and not run.train(options.steps):
            say(f"Stopped at step {run.step}; the same command goes on.")
            return 130
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"dev.py train: {error}")
