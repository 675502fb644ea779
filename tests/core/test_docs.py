"""The documents say what the tests show."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def claims() -> set[tuple[str, str]]:
    """(area, what) of every `claim` marker in the host tests."""
    found = set()
    for path in sorted((ROOT / "tests" / "host").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.claim":
                found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return found


def test_the_compatibility_table_holds_exactly_what_is_tested() -> None:
    """Written by a run of the host tests; a claim without its row, or a row without its test, is out of date."""
    area, rows = "", set()
    for line in (ROOT / "docs" / "compatibility.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            area = line[3:]
        elif line.startswith("| ") and not line.startswith("| |"):
            rows.add((area, line.split(" | ")[0][2:]))
    assert rows == claims()
    assert len(rows) > 40
