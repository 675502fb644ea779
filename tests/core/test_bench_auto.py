"""What the bench says of SpectralCache Auto: its grid, its parts and its reports, from tables alone."""

from __future__ import annotations

import pytest

from bench import ROOT
from bench.lab import presets, reading
from bench.lab.intervals import at
from bench.lab.reading import Row
from bench.lab.table import read_csv
from bench.tables import auto, estimate
from cache_core import words
from cache_core.methods.auto import auto as method
from cache_core.predictors import Hold
from cache_core.types import MODEL, TRUNK


def row(family: str, computed: int, psnr: float, over: float = 1.0, cfg: str = "3.0") -> Row:
    return {
        "steps": "28", "cfg": cfg, "sampler": "euler", "family": family, "name": f"{family} {computed}", "pairs": "4",
        "computed": str(computed), "psnr": str(psnr), "speedup": str(28 / computed), "estimate": "0.05",
        "psnr_over_fewer": str(over), "psnr_over_fewer_low": str(over - 0.5), "psnr_over_fewer_high": str(over + 0.5),
    }  # fmt: skip


def table(margin: float, over: float) -> list[Row]:
    """Auto `margin` dB above both controls, which rise by 1 dB an evaluation."""
    counts = presets.AUTO_COUNTS
    mine = [row(presets.AUTO, n, 20 + n + margin, over) for n in counts]
    plain = [row(family, n, 20.0 + n) for family in (presets.FEWER, presets.ALIKE) for n in counts]
    return [*mine, *plain, row("FreqCa", 10, 27.0), row("FreqCa", 14, 33.5)]


def test_the_grid_asks_for_every_budget_at_both_guidances_with_both_controls() -> None:
    groups = auto.grid(None)
    main = [g for g in groups if g.steps == 28 and g.sampler == presets.EULER]
    assert [g.cfg for g in main] == [1.0, 3.0] and all(len(g.pairs) == auto.PAIRS for g in main)
    for g in main:
        for count in presets.AUTO_COUNTS:
            assert all(arm in g.arms for arm in (presets.auto(count), presets.fewer(count), presets.alike(count)))
    assert {g.sampler for g in groups} == {presets.EULER, *auto.SAMPLERS}
    assert all(arm.sampler == g.sampler for g in groups if g.sampler != presets.EULER for arm in g.arms)
    assert {(g.steps, g.cfg) for g in groups if g.steps != 28} == set(auto.SIDES)
    known = {arm.name for arm in [*presets.method_arms(["freqca", "spectralcache", "teacache"]), *presets.core_arms()]}
    assert known >= auto.OTHERS


def test_parts_change_one_thing() -> None:
    whole = method(speedup=28 / 12, quality="Custom")
    made = {name: auto.part(name, 12).made() for name in auto.PARTS}
    rules = {name: made[name].rules[0] for name in made}
    assert whole.rules[0].correction is not None and whole.rules[0].places == (MODEL,)
    assert rules["without the corrector"].correction is None
    assert made["without the corrector"].rules[0].predictor == whole.rules[0].predictor
    assert rules["placement alone"].correction is None and rules["placement alone"].predictor == Hold()
    assert rules["site trunk"].places == (TRUNK, MODEL) and rules["site trunk"].correction is not None
    assert [made[name].params["bands"] for name in ("1 band", "4 bands")] == [1, 4]
    assert presets.auto(12).made().params == whole.params


def test_the_report_says_what_is_reached_and_what_is_not() -> None:
    good, bad = auto.main_showing(table(5.0, 9.5)), auto.main_showing(table(-1.0, 6.0))
    assert "NOT" not in good and "Behind neither control at any budget" in good
    assert "12 computed +6.0 (+5.5 to +6.5) dB (NOT the 9 asked)" in bad
    assert "8 computed +6.0 (+5.5 to +6.5) dB (the 5.5 asked)" in bad
    assert "fewer steps at 12" in bad and "fewer steps, where Auto's are at 8" in bad


def test_margins_are_read_at_the_others_computed_evaluations() -> None:
    assert "FreqCa +5.5" in auto.margins(table(5.0, 9.0))  # 39 - 33.5 at 14; 35 - 27 at 10 is more


def test_the_page_has_every_group_and_part() -> None:
    rows = [*table(5.0, 9.0), *(row(f"{presets.AUTO}, {name}", n, 30.0) for name in auto.PARTS for n in (12, 8))]
    page = auto.report(rows, "made here")
    assert "## euler, 28 steps, CFG 3, 4 pairs" in page and page.rstrip().endswith("made here")
    assert "| 12 of 28 | 2.33x | 37.0 | 32.0 | 32.0 | +9.0 (+8.5 to +9.5) | +5.0 | 5.0 % |" in page
    assert f"| {presets.AUTO}, placement alone | 30.0 | 30.0 |" in page


def test_budgets_of_a_sampler_that_evaluates_twice_are_of_its_evaluations() -> None:
    heun = {**row(presets.AUTO, 15, 32.0, 2.5), "sampler": "heun"}
    assert "| 15 of 55 | 1.87x | 32.0 | 29.5 |  |" in auto.budget_table([heun])


def skipped(said: float | None, error: float, count: int = 10) -> dict[str, str]:
    return {
        "cfg": "1.0", "computed": str(count), "seed": "1", "step": "3", "estimate": "" if said is None else str(said),
        "error": str(error),
    }  # fmt: skip


def test_an_estimate_is_ranked_against_the_error_and_scaled() -> None:
    true = [skipped(0.01 * k, 0.02 * k) for k in range(1, 11)]
    cells = estimate.line([*true, skipped(None, 0.5)])
    assert cells == ["10 of 11", "1.00", "5.5 %", "11.0 %", "2.00", "2.00 to 2.00"]
    backwards = [skipped(0.01 * k, 0.02 * (11 - k)) for k in range(1, 11)]
    assert estimate.line(backwards)[1] == "-1.00"
    assert "| all together | 10 of 11 | 1.00 |" in estimate.report([*true, skipped(None, 0.5)], "here")


@pytest.mark.parametrize("steps", words.STEPS)
def test_a_word_reaches_its_level_and_each_is_closer_than_the_next(steps: int) -> None:
    """On the committed curve, read between its points."""
    rows = read_csv(ROOT / "docs" / "auto.csv")
    own = [r for r in rows if (r["steps"], float(r["cfg"]), r["sampler"]) == (str(steps), 3.0, "euler")]
    curve = reading.curve_of(own, presets.AUTO)
    found = [(at(curve, words.computed(word, steps)), level) for word, level in words.LEVELS.items()]
    assert all(value is not None and value >= level for value, level in found), found
    assert found == sorted(found, reverse=True)
