"""The documents say what the tests show."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from bench.run import tables
from tests.claims import parsed, stated

ROOT = Path(__file__).resolve().parents[2]


def test_the_compatibility_table_holds_exactly_what_is_tested() -> None:
    """Written by a run of the host tests; a claim without its row, or a row without its test, is out of date."""
    rows = set(parsed((ROOT / "docs" / "compatibility.md").read_text("utf-8")))
    assert rows == stated(ROOT / "tests" / "host")
    assert len(rows) > 40


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_what_a_document_names_is_there(document: str) -> None:
    """Files and folders in backquotes, and linked ones: an answer that points nowhere is worse than none."""
    text = (ROOT / document).read_text("utf-8")
    tops = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = set(re.findall(rf"`((?:{tops})/[\w./-]+)`", text)) | set(re.findall(r"\]\(((?!http)[\w./-]+)\)", text))
    assert len(named) >= 4 and not [name for name in named if not (ROOT / name).exists()]


def answers() -> dict[str, str]:
    """The questions of CONTRIBUTING.md that a newcomer asks, each with its answer."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Five questions")[1].split("\n## ")[0]
    return dict(re.findall(r"^\*\*(.+?)\*\* (.+)$", text, re.MULTILINE))


def defined(path: Path) -> set[str]:
    """Functions, methods, classes and constants of a file, or of all files of a folder."""
    found: set[str] = set()
    for file in path.glob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("question", answers())
def test_an_answer_is_true(question: str) -> None:
    """What it says to look for is defined in a file that it names, and the commands it names are there."""
    quoted = re.findall(r"`([^`]+)`", answers()[question])
    places = [ROOT / name for name in quoted if re.fullmatch(r"[\w-]+/[\w./-]*|dev\.py", name)]
    assert places and all(place.exists() for place in places)
    sources = [place for place in places if place.is_dir() or place.suffix == ".py"]
    known = set().union(*map(defined, sources))
    assert not {name for name in quoted if name.isidentifier()} - known
    commands = [name.split()[-1] for name in quoted if name.startswith("python dev.py bench ")]
    assert set(commands) <= set(tables())


def test_the_five_questions_are_answered() -> None:
    asked = " ".join(answers())
    for word in ("skip decided", "PSNR made", "add a method", "add a model", "add a table"):
        assert word in asked


def node_classes() -> list[str]:
    """The ids of the pack's nodes, which are the names of their classes."""
    sources = sorted((ROOT / "nodes").glob("*.py"))
    trees = [ast.parse(path.read_text("utf-8")) for path in sources]
    classes = [each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.ClassDef)]
    extension = "ComfyExtension"
    ours = [each for each in classes if each.name.startswith("SpectralCache")]
    return [each.name for each in ours if extension not in map(ast.unparse, each.bases)]


@pytest.mark.parametrize("node", node_classes())
def test_a_node_has_its_help_and_its_words_in_three_languages(node: str) -> None:
    """A host test says more; this one needs no host, so that a new node hears of it in seconds."""
    pages = [ROOT / "web" / "docs" / name for name in (f"{node}.md", f"{node}/zh.md", f"{node}/ja.md")]
    assert all(page.read_text("utf-8").startswith("# ") for page in pages)
    for language in ("en", "zh", "ja"):
        words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        assert {"display_name", "description", "inputs", "outputs"} == set(words[node])
