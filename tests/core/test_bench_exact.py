"""What `bench exact` compares, and what its page says: from made-up rows."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.lab.models import COLUMN, FIRST
from bench.lab.reading import Row
from bench.lab.table import write_csv
from bench.tables import readme
from bench.tables.exact import report
from bench.tables.exact.grid import EVALUATIONS, OTHERS, PLACES, RECOMMENDED, SAMPLERS, Auto, Plain, Size, others
from cache_core import methods

AUTO = Auto(*RECOMMENDED).name


def row(name: str, budget: int, psnr: float, margin: float | None = None, **more: str) -> Row:
    kind = "Auto" if name.startswith("Auto") else "plain"
    told = "" if margin is None else str(margin)
    return {
        COLUMN: FIRST,
        "stage": "main", "cfg": "1.0", "kind": kind, "family": name, "name": name, "budget": str(budget), "pairs": "8",
        "steps": "0", "computed": str(budget), "latent_psnr": str(psnr), "psnr": str(psnr), "feature": "",
        "psnr_worst_tenth": str(psnr - 3), "own_psnr": "", "rival": "ipndm + beta", "margin": told, "margin_low": told,
        "margin_high": told, "schedule": name.partition(" + ")[2] or "simple", "sampler": RECOMMENDED[0], **more,
    }  # fmt: skip


def rows(margin: float) -> list[Row]:
    return [
        made
        for budget in (6, 8)
        for made in (row("ipndm + beta", budget, 30.0), row(AUTO, budget, 30.0 + margin, margin))
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("budget", [6, 7, 8])
def test_a_rival_never_has_less_work(sampler: str, budget: int) -> None:
    """A step costs one evaluation; heun and its like two but the last; heunpp2 three, but the last two."""
    count, each = Plain(sampler, "simple").count(budget), EVALUATIONS.get(sampler, 1)

    def cost(steps: int) -> int:
        return {1: steps, 2: 2 * steps - 1, 3: 3 * steps - 3}[each]

    assert cost(count) >= budget > cost(count - 1)


def test_the_page_says_what_is_reached_and_where_it_is_behind() -> None:
    text = report.report(rows(2.5), "somewhere")
    assert "6: +2.5 dB (the 2 asked); 8: +2.5 dB (NOT the 3.5 asked). It is behind nowhere." in text
    assert "behind the best plain combination at 6, 8." in report.report(rows(-1.0), "somewhere")
    assert "| best plain combination | ipndm + beta | ipndm + beta |" in text
    assert "feature distance" not in text  # nothing was looked at
    unsure = [{**made, "margin_high": "0.5"} if made["margin"] else made for made in rows(-1.0)]
    assert "at 6 (undecided), 8 (undecided)." in report.report(unsure, "somewhere")


def test_a_rival_on_our_own_places_is_told_apart() -> None:
    """It needs this pack; what ComfyUI alone can do is said beside it."""
    ours = [row(f"ipndm + {PLACES}", budget, 31.0) for budget in (6, 8)]
    text = report.report([*rows(2.5), *ours], "somewhere")
    assert "ComfyUI's own schedules: 6: +2.5 dB (ipndm + beta); 8: +2.5 dB (ipndm + beta)." in text
    assert "ComfyUI's own schedules" not in report.report(rows(2.5), "somewhere")


def test_a_rival_with_one_evaluation_more_is_told_apart() -> None:
    """What has as many as the column says, or fewer, is named beside it, from whatever column it is."""
    told = rows(2.5)
    heun = [row("heun + beta", 6, 33.0, computed="7"), row("heun + beta", 8, 33.5, computed="9")]
    text = report.report([*({**each, "rival": "heun + beta"} for each in told), *heun], "somewhere")
    assert "that has none more: 6: +2.5 dB (ipndm + beta, 6); 8: -0.5 dB (heun + beta, 7)." in text
    assert "none more" not in report.report([*told, *heun], "somewhere")


def test_other_caches_are_read_at_equal_work_only() -> None:
    cached = [row("FreqCa", n, psnr, stage="cache", steps="28") for n, psnr in ((7, 20.0), (9, 24.0))]
    text = report.report([*rows(1.0), *cached], "somewhere")
    assert "| FreqCa |  | 22.0 |" in text


def test_every_setting_of_the_other_caches_exists() -> None:
    assert {way.preset.method for way in others()} == {"freqca", "spectralcache", "spectrum", "foca", "easycache"}
    assert all(methods()[way.preset.method](**way.preset.params) for way in others())
    assert {way.name for way in others()} == {name for names in OTHERS.values() for name in names}


def test_the_recommended_set_up_is_measured_on_all_pairs() -> None:
    assert RECOMMENDED in Size().auto


def test_readme_section_is_renewed_and_checked(tmp_path: Path) -> None:
    """The best solver of each column stands first; a file without the markers is left alone."""
    page, csv = tmp_path / "README.md", tmp_path / "exact.csv"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", "utf-8")
    write_csv(csv, [*rows(2.5), row("dpmpp_2m + simple", 8, 31.0), row("euler + beta", 6, 29.0)])

    def run(check: bool) -> int:
        return readme.run(argparse.Namespace(check=check, readme=page, csv=csv))

    assert run(check=True) == 1 and "old" in page.read_text("utf-8")
    assert run(check=False) == 0 and run(check=True) == 0
    text = page.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| 30.0 (ipndm + beta) | 31.0 (dpmpp_2m + simple) |" in text
    assert f"| {AUTO} | 32.5 | 32.5 |" in text and "| dpmpp_2m + simple |  | 31.0 |" in text
    assert "euler + beta" not in text
    assert f"{AUTO}, against the best of each column: +2.5 to +2.5 dB at CFG 1." in text
    page.write_text("no markers", "utf-8")
    assert run(check=False) == 1 and page.read_text("utf-8") == "no markers"
