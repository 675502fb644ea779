"""The bench: `python dev.py bench <command>` starts it in the host's Python.

speed        what skipped evaluations and the idle node cost
quality      every method at every budget against the full run, fewer steps and ComfyUI's own caches
auto         SpectralCache Auto over budgets, guidance, steps and samplers, and its parts
estimate     how true Auto's estimated error is
ablation     the paper's tables 3 and 4 on the small model
predictors   what stands in, and where the computed evaluations lie
readme       the README's table from docs/quality.csv
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("speed", "quality", "auto", "estimate", "ablation", "predictors", "readme")


def find_modules() -> None:
    """Make `bench` importable and this folder not: its server.py would be ComfyUI's. See bench/lab.py."""
    here = str(ROOT / "bench")
    sys.path[:] = [entry for entry in sys.path if str(Path(entry or ".").resolve()) not in (here, str(ROOT))]
    comfyui = os.environ.get("COMFYUI_PATH")
    if comfyui:
        sys.path.insert(0, comfyui)
    for name in ("bench", "cache_core"):
        folder = ROOT / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs one command; returns its exit code."""
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="dev.py bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        module = import_module(f"bench.{name}_command")
        command = commands.add_parser(name, help=str(module.__doc__).splitlines()[0], description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    if options.command != "readme" and "COMFYUI_PATH" not in os.environ:
        parser.error("start it with python dev.py bench, which finds or fetches a ComfyUI")
    logging.getLogger("SpectralCache").setLevel(logging.WARNING)
    return int(options.run(options) or 0)


if __name__ == "__main__":
    find_modules()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
