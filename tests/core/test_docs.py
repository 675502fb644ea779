"""The documents say what the tests show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_what_a_document_names_is_there(document: str) -> None:
    """Files and folders in backquotes, and linked ones: an answer that points nowhere is worse than none."""
    text = (ROOT / document).read_text("utf-8")
    tops = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = set(re.findall(rf"`((?:{tops})/[\w./-]+)`", text)) | set(re.findall(r"\]\(((?!http)[\w./-]+)\)", text))
    assert len(named) >= 4 and not [name for name in named if not (ROOT / name).exists()]
