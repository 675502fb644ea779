"""The bench: `python dev.py bench COMMAND` starts it in the host's Python.

Every table is a file or folder of bench/tables; its docstring says what it measures.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "bench" / "tables"
EVERYWHERE = ("methods", "readme")
"""What needs no ComfyUI."""


def tables() -> dict[str, str]:
    """Every table with its docstring; nothing is imported for it."""
    files = {path.stem: path for path in TABLES.glob("*.py") if path.stem != "__init__"}
    files.update({path.parent.name: path for path in TABLES.glob("*/__init__.py")})
    return {name: ast.get_docstring(ast.parse(files[name].read_text("utf-8"))) or "" for name in sorted(files)}


def overview() -> str:
    """What there is to measure, a line each."""
    return "\n".join(f"{name:<12} {says.splitlines()[0]}" for name, says in tables().items())


def find_modules() -> None:
    """Make `bench` importable, and nothing of the repository by a bare name: `nodes` is ComfyUI's. See lab/lab.py."""

    def ours(entry: str) -> bool:
        path = Path(entry or ".").resolve()
        return path == ROOT or ROOT / "bench" in (path, *path.parents)

    sys.path[:] = [entry for entry in sys.path if not ours(entry)]
    comfyui = os.environ.get("COMFYUI_PATH")
    if comfyui:
        sys.path.insert(0, comfyui)
    tools = os.environ.get("SPECTRALCACHE_TOOLS")
    if tools:
        sys.path.append(tools)  # behind the host's packages
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

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, says in tables().items():
        command = commands.add_parser(name, help=says.splitlines()[0], description=says)
        if name in arguments:  # the others are not even imported
            module = import_module(f"bench.tables.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    if options.command not in EVERYWHERE and "COMFYUI_PATH" not in os.environ:
        parser.error("start it with python dev.py bench, which finds or fetches a ComfyUI")
    logging.getLogger("SpectralCache").setLevel(logging.WARNING)
    return int(options.run(options) or 0)


if __name__ == "__main__":
    find_modules()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
