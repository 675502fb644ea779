"""The rooms of bench/: what may use what."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.run import tables

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
MAY_USE = {"host": {"host"}, "lab": {"host", "lab", "train"}, "demo": {"host", "lab", "demo"},
           "tables": {"host", "lab", "train"}, "train": {"host", "train"}}  # fmt: skip
"""A table uses no other table: what two of them need is in the lab. The network that looks at pictures is in train."""
COMMAND_LINE = sorted(path.stem for path in (BENCH / "host").glob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """What a file imports, as dotted names."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports in bench are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def climbing(file: Path) -> list[str]:
    """The imports of a file of bench that its room does not allow."""
    room, *inside = file.relative_to(BENCH).parts
    used = [name.split(".") for name in imports(file) if name.startswith("bench.")]
    rooms = {path.name for path in BENCH.iterdir() if path.is_dir()}
    own = inside[0].partition(".")[0]
    return [
        ".".join(name)
        for name in used
        if name[1] in rooms and name[1] not in MAY_USE[room] and not (room == "tables" and name[1:3] == ["tables", own])
    ]


@pytest.mark.parametrize("room", MAY_USE)
def test_imports_lead_downwards(room: str) -> None:
    files = list((BENCH / room).rglob("*.py"))
    assert files and not {str(file): found for file in files if (found := climbing(file))}


def test_what_climbs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BENCH", tmp_path)
    for room in MAY_USE:
        (tmp_path / room).mkdir()
    file = tmp_path / "lab" / "one.py"
    file.write_text("from bench.demo.files import x\ndef f():\n    import bench.tables.auto\n", "utf-8")
    assert climbing(file) == ["bench.demo.files.x", "bench.tables.auto"]
    file = tmp_path / "tables" / "auto.py"
    text = "from bench import ROOT\nfrom bench.tables.auto import grid\nfrom bench.tables import quality\n"
    file.write_text(text, "utf-8")
    assert climbing(file) == ["bench.tables.quality"]


@pytest.mark.parametrize("name", COMMAND_LINE)
def test_the_host_room_needs_the_standard_library_only(name: str) -> None:
    """dev.py runs before anything is installed."""
    tops = {found.split(".")[0] for found in imports(BENCH / "host" / f"{name}.py")} - {"bench"}
    assert tops <= {*sys.stdlib_module_names, *({"aiohttp"} if name == "server" else ())}


@pytest.mark.parametrize("name", tables())
def test_every_table_is_a_command(name: str) -> None:
    """`dev.py bench` walks the folder: what stands there needs no line elsewhere, and no ComfyUI to tell of itself."""
    table = importlib.import_module(f"bench.tables.{name}")
    table.add_arguments(argparse.ArgumentParser())
    assert callable(table.run) and tables()[name].splitlines()[0].endswith(".")


def test_the_lab_has_its_stated_name() -> None:
    """CONTRIBUTING.md states it."""
    from bench.lab import Lab, Studio

    assert {"sample", "attach"} <= set(dir(Lab)) and {"make", "picture"} <= set(dir(Studio))
