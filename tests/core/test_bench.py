"""The bench without ComfyUI: statistics, presets, placements, the store, and tables that come from a CSV alone."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import (
    ablation,
    chart,
    predictor_parts,
    predictors,
    presets,
    quality,
    quality_plot,
    quality_report,
    readme_command,
    speed_report,
    tables,
)
from bench.intervals import at, bootstrap, disturbed, finite_mean, paired
from bench.lab import Pair
from bench.pairs import COUNT, prompts
from bench.presets import Arm
from bench.speed_report import Figure
from bench.store import Outcome, Store, code_version
from cache_core import methods
from cache_core.types import Feature, Step


def outcome(computed: int, psnr: float, ssim: float = 0.9) -> Outcome:
    return Outcome(computed, 28, 1.0, 28 / computed, 1000, psnr, ssim, psnr + 5, ssim)


# --- statistics -----------------------------------------------------------------------------------------------------


def test_bootstrap_holds_the_mean_and_narrows_with_more_values() -> None:
    few, many = (bootstrap([float(i % 7) for i in range(n)], lambda v: sum(v) / len(v)) for n in (14, 700))
    assert few.low < few.mean < few.high and few.mean == pytest.approx(3.0)
    assert many.high - many.low < (few.high - few.low) / 4
    assert bootstrap([2.0] * 5, max) == bootstrap([2.0], max)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([], max)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % intervals of 24 normal values must hold 0 in most of 200 draws, and must not hold it in all of them."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        interval = paired(torch.randn(24, generator=generator).tolist(), [0.0] * 24)
        held += interval.sign == 0
    assert 175 <= held < 200


def test_paired_differences_are_taken_pair_by_pair() -> None:
    """A constant gain over wildly different pairs is certain; unpaired it would drown."""
    theirs = [20.0, 50.0, 35.0, 28.0]
    interval = paired([value + 0.5 for value in theirs], theirs)
    assert (interval.low, interval.high, interval.sign) == (0.5, 0.5, 1)
    assert paired([math.inf, math.inf], [math.inf, math.inf]).mean == 0.0


def test_curves_are_read_between_their_points_and_never_beyond() -> None:
    curve = [(14.0, 30.0), (10.0, 26.0), (7.0, 20.0), (14.0, 32.0)]
    assert at(curve, 10) == 26.0
    assert at(curve, 12) == pytest.approx(28.5)  # halfway to the mean of the two at 14
    assert at(curve, 8.5) == pytest.approx(23.0)
    assert at(curve, 6.9) is None and at(curve, 14.1) is None
    assert at([(28.0, math.inf), (10.0, 20.0)], 20) is None  # an identical picture is no point of a curve
    assert finite_mean([30.0, math.inf, 40.0]) == 35.0 and finite_mean([math.inf]) == math.inf


def test_a_disturbed_clock_is_seen() -> None:
    assert disturbed([[1.0] * 10]) == 0.0
    assert disturbed([[1.0] * 5 + [10.0] * 5]) > 0.7


def test_targets_are_judged_by_the_interval_and_not_while_the_machine_is_busy() -> None:
    def verdict(low: float, high: float, steady: bool = True, at_least: bool = False) -> str:
        return Figure("x", speed_report.Interval(low, low, high), "%", 2.0, at_least).verdict(steady)

    assert [verdict(1, 1.9), verdict(2.1, 3), verdict(1, 3)] == ["met", "missed", "undecided"]
    assert [verdict(2.1, 3, at_least=True), verdict(1, 1.9, at_least=True)] == ["met", "missed"]
    assert verdict(1, 1.9, steady=False).startswith("not judged")


# --- what is measured -----------------------------------------------------------------------------------------------


def test_every_method_has_presets_that_it_accepts() -> None:
    made = methods()
    for arm in presets.method_arms(made):
        assert not made[arm.method](**arm.params).never, arm.name
    families = {arm.method: 0 for arm in presets.method_arms(made)}
    assert set(families) == set(made)
    names = [arm.name for arm in [*presets.method_arms(made), *presets.core_arms(), *presets.control_arms(28)]]
    assert len(set(names)) == len(names)


def test_a_method_without_presets_is_named_with_the_way_out() -> None:
    with pytest.raises(presets.MissingPresets, match=r"newmethod\.py; add its table to bench/presets\.py"):
        presets.method_arms([*methods(), "newmethod"])


def test_the_default_grid_is_the_one_in_the_documents() -> None:
    groups = quality.grid(methods())
    assert [(g.steps, g.cfg, len(g.pairs)) for g in groups] == [(28, 3, 24), (28, 1, 6), (20, 3, 6), (50, 3, 6)]
    assert [len(g.arms) for g in groups[1:]] == [3, 3, 3]
    full = quality.grid(methods(), full=True)
    assert {len(g.arms) for g in full if g.steps == 28} == {len(groups[0].arms)}
    assert all(len(g.pairs) == COUNT for g in full)


def test_pairs_are_different_pictures() -> None:
    assert len({text for text, _ in prompts()}) > COUNT * 0.9
    assert len({seed for _, seed in prompts()}) == COUNT


@pytest.mark.parametrize("total", [8, 20, 28, 50])
@pytest.mark.parametrize("power", [1.0, 1.3, 1.6, 2.0])
def test_placements_have_the_count_asked_for(total: int, power: float) -> None:
    for count in range(2, total + 1):
        steps = presets.places(total, count, power)
        assert len(steps) == count and steps[0] == 0 and steps[-1] == total - 1
        assert steps == sorted(set(steps))
    early = presets.places(28, 10, 1.6)
    assert early[1] - early[0] < early[-1] - early[-2]


def test_warm_up_placements_are_the_published_ones() -> None:
    assert predictors.anchors(predictors.WARM, 12) == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27]
    for count in predictors.BUDGETS:
        for placement in predictors.placement_names():
            assert len(predictors.anchors(placement, count)) == count


def test_ablation_has_the_papers_eight_combinations() -> None:
    made = dict(ablation.combinations())
    assert next(iter(made)) == ablation.BASE and list(made)[-1] == ablation.FULL and len(made) == 8
    assert made[ablation.FULL] == {} and made["TADS"]["max_consecutive"] == 1000
    for arm in ablation.arms():
        methods()["spectralcache"](**arm.params)


# --- the prototype's forecast ---------------------------------------------------------------------------------------


def test_back_tested_forecast_is_exact_on_a_straight_line_and_holds_noise() -> None:
    grid, tokens = (4, 6), 24
    generator = torch.Generator().manual_seed(0)
    start, slope, noise = (torch.randn(1, tokens, 8, generator=generator) for _ in range(3))

    def history(values: list[torch.Tensor]) -> tuple[Feature, ...]:
        return tuple(Feature(i, s, v) for i, (s, v) in enumerate(zip([1.0, 0.9, 0.7], values, strict=True)))

    line = history([start + slope * sigma for sigma in (1.0, 0.9, 0.7)])
    now = Step(5, 28, 0.55, 0, 0.0)
    forecast = predictor_parts.BackTested().predict(line, now, grid)
    torch.testing.assert_close(forecast, start + slope * 0.55, atol=1e-4, rtol=1e-4)
    turning = history([start, start + noise, start])  # the forecast pointed the wrong way: its gain is 0
    assert torch.allclose(predictor_parts.BackTested().predict(turning, now, grid), start, atol=1e-5)


def test_bands_add_up() -> None:
    values = torch.randn(2, 35, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sum(predictor_parts.bands(values, (5, 7))), values)


# --- the store and the tables ---------------------------------------------------------------------------------------


def test_the_store_gives_back_what_it_got_and_nothing_broken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("a") is None
    store.put("a", outcome(12, math.inf))
    assert store.get("a") == outcome(12, math.inf)
    (tmp_path / "a.json").write_text('{"computed": 1', "utf-8")
    assert store.get("a") is None


def test_the_code_version_changes_with_the_code(tmp_path: Path) -> None:
    for name in ("cache_core", "nodes"):
        (tmp_path / name).mkdir()
    file = tmp_path / "cache_core" / "gates.py"
    file.write_text("a = 1\n", "utf-8")
    before = code_version(tmp_path)
    assert before == code_version(tmp_path)
    file.write_text("a = 2\n", "utf-8")
    assert code_version(tmp_path) != before


def made_up(arm: Arm, pair: Pair, steps: int) -> Outcome:
    """A world in which good comes 3 dB closer than as many plain steps, bad 3 dB less, and idle skips nothing."""
    if arm.kind == "fewer":
        return outcome(arm.params["count"], 20.0 + arm.params["count"] + pair.seed % 5)
    if arm.family == "idle":
        return outcome(steps, math.inf, 1.0)
    computed = arm.params["count"]
    return outcome(computed, 20.0 + computed + pair.seed % 5 + (3.0 if arm.family == "good" else -3.0))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    arms = [presets.fewer(n) for n in (6, 10, 14, 20)]
    arms += [Arm(f, f"{f} {n}", params={"count": n}) for f in ("good", "bad") for n in (7, 14, 19)]
    groups = [quality.group(28, 3.0, 5, [*arms, Arm("idle", "idle")])]
    tables.write_csv(tmp_path / "quality.csv", quality.rows(groups, made_up))
    return tmp_path / "quality.csv"


def test_rows_are_paired_with_as_many_steps_as_each_pair_computed(csv: Path) -> None:
    rows = {row["name"]: row for row in tables.read_csv(csv)}
    assert float(rows["good 7"]["psnr_over_fewer"]) == 3.0 and float(rows["bad 14"]["psnr_over_fewer"]) == -3.0
    assert rows["10 steps"]["psnr_over_fewer"] == ""
    assert rows["idle"]["skipping"] == "0" and rows["idle"]["psnr_over_fewer"] == "0"


def test_the_report_is_made_of_the_csv_and_says_where_we_lose(csv: Path) -> None:
    rows = tables.read_csv(csv)
    text = quality_report.report(rows, "somewhere")
    assert text == quality_report.report(tables.read_csv(csv), "somewhere")
    assert "good: closer to the full run than fewer steps in 3 of 3 settings." in text
    assert "further away in 3 (bad 7, bad 14, bad 19)" in text
    assert "At 2x, good is closest of the caches (39.0 dB), ahead of fewer steps (36.0 dB)." in text
    heading, body = quality_report.matched(rows)
    assert heading[1:] == ["1.5x (18.7 computed)", "2x (14.0 computed)", "3x (9.3 computed)",
                           "4x (7.0 computed)", "5x (5.6 computed)"]  # fmt: skip
    by_family = {line[0]: line[1:] for line in body}
    assert by_family["good"][1] == "39.0" and by_family["good"][4] == ""  # 5x lies outside its presets
    assert by_family["idle"] == [""] * 5


def test_a_loser_is_called_one(csv: Path) -> None:
    rows = [row for row in tables.read_csv(csv) if row["family"] != "good"]
    assert "bad is closest of the caches (33.0 dB), BEHIND fewer steps (36.0 dB)" in quality_report.showing(rows)


def test_readme_section_is_renewed_and_checked(csv: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_command.BEGIN}\nold\n{readme_command.END}\nafter\n", "utf-8")

    def run(check: bool) -> int:
        return readme_command.run(argparse.Namespace(check=check, readme=readme, csv=csv))

    assert run(check=True) == 1 and "old" in readme.read_text("utf-8")
    assert run(check=False) == 0 and run(check=True) == 0
    text = readme.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "| good |" in text and "old" not in text
    readme.write_text("no markers", "utf-8")
    assert run(check=False) == 1 and readme.read_text("utf-8") == "no markers"


REPORTS = {"quality": quality_report.report, "ablation": ablation.report, "predictors": predictors.report}


@pytest.mark.parametrize("name", REPORTS)
def test_committed_documents_come_from_their_csv(name: str) -> None:
    """Nobody edits a table by hand: what docs/ shows is what its CSV gives."""
    folder = Path(__file__).parents[2] / "docs"
    if not (folder / f"{name}.csv").exists():
        pytest.skip("not measured yet")
    text = (folder / f"{name}.md").read_text("utf-8")
    about = text.strip().rsplit("\n\n", 1)[-1]
    assert REPORTS[name](tables.read_csv(folder / f"{name}.csv"), about) == text


def test_the_plot_has_every_family_and_leaves_out_what_skipped_nothing(csv: Path, tmp_path: Path) -> None:
    rows = tables.read_csv(csv)
    names = [curve.name for curve in quality_plot.curves(rows, "psnr")]
    assert names == ["good", "bad", "fewer steps"]
    quality_plot.draw(rows, tmp_path / "quality.png")
    with Image.open(tmp_path / "quality.png") as image:
        assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_ticks_are_round_and_cover_the_values() -> None:
    assert chart.ticks(4, 28) == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    for low, high in ((0.61, 0.998), (21.3, 47.9), (3, 3)):
        found = chart.ticks(low, high)
        assert found[0] <= low and found[-1] >= high and len(found) <= 11


def test_every_predictor_arm_is_a_method_that_the_engine_accepts() -> None:
    """A composition with a hole in it would only show after minutes of sampling."""
    for arm in predictors.arms():
        if arm.kind == "bench":
            method = predictors.method_of(arm)
            assert not method.never and 1 <= method.rules[0].predictor.depth <= 3
            assert method.feature == ("absolute" if arm.params["feature"] == "absolute" else "residual")
