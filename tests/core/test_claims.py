"""The page of what is tested: rows come, are renewed, and go with their test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.claims import Claims, Row, parsed, read


def report(area: str, what: str, outcome: str = "passed", said: str = "") -> Any:
    states = {name: outcome == name for name in ("passed", "failed", "skipped")}
    return SimpleNamespace(user_properties=[("claim", (area, what, "test_x.py", 3, "test_y"))], longrepr=said, **states)


def noted(*reports: Any) -> Claims:
    claims = Claims()
    for each in reports:
        claims.note(each)
    return claims


@pytest.fixture(autouse=True)
def _stated(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {("Hosts", "loads"), ("Families", "SDXL"), ("Add-ons", "a"), ("Add-ons", "b")}
    monkeypatch.setattr("tests.claims.stated", lambda folder: known)


def test_a_run_of_some_tests_renews_their_rows(tmp_path: Path) -> None:
    page = tmp_path / "compatibility.md"
    page.write_text("## Add-ons\n\n| a test that went | 3 | test_x.py: test_z |\n", "utf-8")
    noted(report("Hosts", "loads"), report("Families", "SDXL"), report("Add-ons", "a"), report("Add-ons", "b")).write(
        page, "0.30.0", 44, newest=True
    )
    assert set(parsed(page.read_text("utf-8"))) == {
        ("Hosts", "loads"), ("Families", "SDXL"), ("Add-ons", "a"), ("Add-ons", "b")
    }  # fmt: skip
    later = noted(report("Add-ons", "a"), report("Add-ons", "a"), report("Add-ons", "b", "failed", "assert 1 == 2"))
    later.write(page, "0.30.0", 44, newest=True)
    rows = parsed(page.read_text("utf-8"))
    assert rows["Add-ons", "a"] == Row(2, "test_x.py", "test_y") and ("Add-ons", "b") not in rows
    assert read(tmp_path / "hosts.csv")["0.30.0"]["add-ons"] == "2"  # the smoke set did not run again


def test_an_older_comfyui_gets_a_line_and_no_rows(tmp_path: Path) -> None:
    page = tmp_path / "compatibility.md"
    noted(report("Hosts", "loads"), report("Families", "SDXL")).write(page, "0.30.0", 44, newest=True)
    old = noted(
        report("Hosts", "loads"),
        report("Families", "SDXL"),
        report("Families", "Lens", "skipped"),
        report("Hosts", "a prompt", "failed", "AssertionError"),
        report("Hosts", "another", "failed", "ValueError: x"),
    )
    old.write(page, "0.16.3", 40, newest=False)
    line = read(tmp_path / "hosts.csv")["0.16.3"]
    assert (line["families"], line["wrong"], line["crashed"], line["lacks"]) == ("1", "1", "1", "Lens")
    text = page.read_text("utf-8")
    assert set(parsed(text)) == {("Hosts", "loads"), ("Families", "SDXL")}
    assert text.index("| 0.30.0 |") < text.index("| 0.16.3 | 1 | 40 | 0 | 2 | 1 | 1 | Lens |")
