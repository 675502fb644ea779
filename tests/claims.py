"""docs/compatibility.md: what the host tests claim, one row a claim, and what was tried on which ComfyUI.

A run of all host tests writes every row; a run of some renews theirs and leaves the others. A row whose cases did not
all pass goes. What each ComfyUI came to is kept in docs/hosts.csv, which the page's first table is made of.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "SPECTRALCACHE_CLAIMS"
"""Environment variable: where to write the page."""
FAMILIES, HOSTS = "Families", "Hosts"
BESIDE = ("Add-ons", "Machines", "Precision and compilation")
"""Areas about what comes with a model."""
COLUMNS = ("version", "families", "samplers", "add-ons", "cases", "wrong", "crashed", "lacks")

Key = tuple[str, str]
"""(area, what)"""


@dataclass(frozen=True)
class Row:
    """One claim: how many cases show it, in which test."""

    cases: int
    file: str
    test: str


@dataclass
class Claims:
    """What the tests of a run claim, and how they ended."""

    passed: Counter[Key] = field(default_factory=Counter)
    failed: set[Key] = field(default_factory=set)
    tests: dict[Key, tuple[str, str]] = field(default_factory=dict)
    wrong: int = 0
    crashed: int = 0
    lacks: set[str] = field(default_factory=set)

    def note(self, report: Any) -> None:
        """One report of pytest. A skip of a whole family means that this ComfyUI has none."""
        for name, (area, what, *test) in report.user_properties:
            if name != "claim":
                continue
            key = (area, what)
            self.tests[key] = (test[0], test[2])
            if report.skipped:
                self.lacks |= {what} if area == FAMILIES else set()
            elif report.passed:
                self.passed[key] += 1
            else:
                self.failed.add(key)
        if report.failed:
            asserted = "AssertionError" in str(report.longrepr) or "assert " in str(report.longrepr)
            self.wrong, self.crashed = self.wrong + asserted, self.crashed + (not asserted)

    def rows(self) -> dict[Key, Row]:
        """The claims all of whose cases passed."""
        return {key: Row(count, *self.tests[key]) for key, count in self.passed.items() if key not in self.failed}

    def write(self, page: Path, version: str, samplers: int, newest: bool) -> None:
        """Renews the page's rows (on the newest ComfyUI) and, where the smoke set ran, this ComfyUI's line."""
        rows = parsed(page.read_text("utf-8")) if page.exists() else {}
        ours = self.rows()
        known = stated(Path(__file__).with_name("host"))
        kept = {key: row for key, row in rows.items() if key not in self.failed and key in known}
        told = {**kept, **ours} if newest else ours
        table = page.with_name("hosts.csv")
        lines = read(table)
        if any(area == HOSTS for area, _ in self.tests):
            areas = Counter(area for area, _ in told)
            figures = (areas[FAMILIES], samplers, sum(areas[area] for area in BESIDE))
            cases = sum(row.cases for row in told.values())
            values = (version, *figures, cases, self.wrong, self.crashed, "; ".join(sorted(self.lacks)))
            lines[version] = dict(zip(COLUMNS, map(str, values), strict=True))
            with open(table, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines[name] for name in sorted(lines, key=_number, reverse=True))
        page.write_text(markdown(told if newest else rows, lines), encoding="utf-8")


def read(table: Path) -> dict[str, dict[str, str]]:
    """docs/hosts.csv by version."""
    if not table.exists():
        return {}
    with open(table, newline="", encoding="utf-8") as file:
        return {line["version"]: line for line in csv.DictReader(file)}


def parsed(page: str) -> dict[Key, Row]:
    """The rows of a page."""
    rows, area = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            area = line[3:]
        elif area and line.startswith("| ") and not line.startswith("| |"):
            what, cases, test = line.strip("| ").split(" | ")
            file, _, name = test.partition(": ")
            rows[area, what] = Row(int(cases), file, name)
    return rows


def markdown(rows: dict[Key, Row], hosts: dict[str, dict[str, str]]) -> str:
    """The page."""
    newest = max(hosts, key=_number, default="")
    lines = [
        "# What is tested",
        "",
        f"What the host tests show on a real ComfyUI {newest}, on the CPU; CI runs them on every change, but for "
        "inductor, which compiles for minutes and has to be asked for (`tests/host/test_inductor.py`). To "
        f"write this page again: `{VARIABLE}=docs/compatibility.md python dev.py test tests/host`; with fewer "
        "tests their rows alone are renewed. A row stands here only if all of its cases pass; what has no row is not "
        "claimed. Not tried at all: Windows, macOS, a GPU of any make, several GPUs at once.",
        "",
        "An older ComfyUI gets what every supported one has to show (`python dev.py test --host all`). A wrong "
        "picture: one that differs from the uncached one where it must not, or is not what the trace says.",
        "",
        "| ComfyUI | families | samplers | add-ons and machines | cases | wrong pictures | crashes | has not |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for version in sorted(hosts, key=_number, reverse=True):
        line = hosts[version]
        lines.append(f"| {' | '.join(line[name] or '-' for name in COLUMNS)} |")
    for area in sorted({area for area, _ in rows}):
        lines += ["", f"## {area}", "", "| | cases | test |", "|---|---:|---|"]
        own = [(what, row) for (where, what), row in rows.items() if where == area]
        for what, row in sorted(own, key=lambda pair: pair[1].file):  # within a file as the tests stand there
            lines.append(f"| {what} | {row.cases} | {row.file}: {row.test} |")
    return "\n".join([*lines, ""])


def stated(folder: Path) -> set[Key]:
    """The claims of every `claim` marker in a folder of tests; one a family where it is marked by a variable."""
    found: set[Key] = set()
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.claim":
                area, what = node.args
                each = _keys(folder / "families.py") if isinstance(what, ast.Name) else [ast.literal_eval(what)]
                found |= {(ast.literal_eval(area), one) for one in each}
    return found


def _keys(file: Path) -> list[str]:
    """The keys of the dict FAMILIES that a file states."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAMILIES":
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise AssertionError(f"{file} states no FAMILIES")


def samplers(comfyui: Path) -> int:
    """How many samplers a ComfyUI names, read from its source: the process that writes the page has not loaded it."""
    count = 0
    for node in ast.parse((comfyui / "comfy" / "samplers.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("KSAMPLER_NAMES", "SAMPLER_NAMES"):
            count += sum(isinstance(part, ast.Constant) for part in ast.walk(node.value))
    return count


def newest(root: Path) -> str:
    """The ComfyUI that the developer commands use by default."""
    for node in ast.parse((root / "bench" / "host" / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULT_HOST":
            return str(ast.literal_eval(node.value))
    raise AssertionError("bench/host/setup.py states no DEFAULT_HOST")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
