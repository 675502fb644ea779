"""The bench without ComfyUI: statistics, presets, placements, the store, and tables that come from a CSV alone."""

import argparse
import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from bench import ROOT
from bench.lab import Pair, Sampled, fill, measured, presets, reading, store, verdict
from bench.lab import arms as lab_arms
from bench.lab import grid as lab_grid
from bench.lab import sizes as big_models
from bench.lab import table as tables
from bench.lab import unet as unet_model
from bench.lab.arms import Arm, Cached
from bench.lab.intervals import at, bootstrap, disturbed, finite_mean, paired
from bench.lab.lab import Ticker
from bench.lab.models import COLUMN, FIRST, introduction, of
from bench.lab.pairs import COUNT, cases, others
from bench.lab.runner import Runner
from bench.lab.store import Outcome, Store, code_version, method_files
from bench.lab.studio import WORDS
from bench.tables import ablation, auto, guidance, partial, schedules, stochastic, unet
from bench.tables import published as published_tables
from bench.tables import speed as speed_command
from bench.tables.exact import report as exact_report
from bench.tables.predictors import grid as predictors
from bench.tables.predictors import parts as predictor_parts
from bench.tables.predictors import report as predictors_report
from bench.tables.quality import grid as quality_grid
from bench.tables.quality import plot as quality_plot
from bench.tables.quality import report as quality_report
from bench.tables.speed import idle, waits
from bench.tables.speed import measure as speed
from bench.tables.speed import report as speed_report
from bench.tables.speed.report import Figure
from cache_core import methods, placement
from cache_core.types import MODEL, TRUNK, Feature, Predictor, Step


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


def test_targets_are_judged_by_the_interval_and_no_effect_is_called_one() -> None:
    def verdict(low: float, high: float, at_least: bool = False, null: float | None = None) -> str:
        return Figure("x", speed_report.Interval(low, low, high), "%", 2.0, at_least, null).verdict()

    assert [verdict(1, 1.9), verdict(2.1, 3), verdict(1, 3)] == ["met", "missed", "undecided"]
    assert [verdict(2.1, 3, at_least=True), verdict(1, 1.9, at_least=True)] == ["met", "missed"]
    assert verdict(-1, 1, null=0) == "met, interval holds 0" and verdict(0.1, 1, null=0) == "met"
    assert verdict(-1, 3, null=0) == "undecided, interval holds 0"
    for rounds, word in ((1, "undecided"), (5, "undecided"), (6, "met"), (None, "met")):
        assert Figure("x", speed_report.Interval(1, 1, 1), "%", 2.0, rounds=rounds).verdict() == word
    assert Figure("x", speed_report.Interval(0, -1, 1), "%", null=0).verdict() == "interval holds 0"


def sampled(seconds: Sequence[float], computed: Sequence[bool]) -> Sampled:
    return Sampled(torch.zeros(1), list(seconds), math.fsum(seconds), math.fsum(seconds), list(computed), None)


def drifting(slope: float) -> speed.Round:
    """A machine whose seconds grow with time: 4 computed evaluations a run, of which an arm skips two at a tenth."""
    clock, runs = 0.0, []
    for name in (speed.NONE, speed.REFUSING, speed.SKIPPING, speed.NONE):
        kinds = [True, False, False, True] if name == speed.SKIPPING else [True] * 4
        seconds = []
        for computed in kinds:
            seconds.append((1 + slope * clock) * (1.0 if computed else 0.1))
            clock += seconds[-1]
        runs.append((name, sampled(seconds, kinds)))
    return speed.Round(tuple(runs))


def test_ratios_inside_a_round_cancel_a_drifting_machine() -> None:
    calm, drifts = drifting(0.0), drifting(0.04)
    assert speed.overhead(calm, speed.REFUSING) == pytest.approx(0) and calm.spread == pytest.approx(0)
    assert speed.skip_share(calm, speed.SKIPPING) == pytest.approx(0.1)
    assert speed.speedup(calm, speed.SKIPPING) == pytest.approx(4 / 2.2)
    assert speed.over_expected(calm, speed.SKIPPING) == pytest.approx(1)
    assert drifts.spread > 0.4
    assert speed.overhead(drifts, speed.REFUSING) == pytest.approx(0, abs=0.02)
    assert speed.over_expected(drifts, speed.SKIPPING) == pytest.approx(1, abs=0.02)
    first = drifts.runs[0][1].total
    assert drifts.run(speed.REFUSING).total / first - 1 > 0.15  # what a ratio across the round would have said


@pytest.mark.parametrize("group", [2, 4])
def test_a_round_has_every_arm_once_between_runs_without_the_node(group: int) -> None:
    names = ["a", "b", "c", "d", "e"]
    for turn in range(7):
        made = speed.order(names, turn, group)
        assert sorted(name for name in made if name != speed.NONE) == names
        assert made[0] == made[-1] == speed.NONE and made[1] == names[turn % 5]
        places = [i for i, name in enumerate(made) if name == speed.NONE]
        assert all(2 <= b - a <= group + 1 for a, b in itertools.pairwise(places))


def test_a_skip_is_ours_above_what_its_site_leaves_to_comfyui() -> None:
    """A plain evaluation takes 1 s; without blocks 0.05, without the model 0.01; each skip 0.02 more than its floor."""

    def run(skipped: float, site: str | None = None) -> Sampled:
        made = sampled([1.0, skipped, skipped, skipped], [True, False, False, False])
        return dataclasses.replace(made, trace={"site": site} if site else None)

    each = speed.Round((
        (speed.NONE, sampled([1.0] * 4, [True] * 4)),
        (speed.SKIPPING, run(0.07, "trunk")), (speed.AUTO, run(0.03, "model")),
        (speed.NO_BLOCKS, run(0.05)), (speed.NO_MODEL, run(0.01)),
        (speed.NONE, sampled([1.0] * 4, [True] * 4)),
    ))  # fmt: skip
    assert speed.skip_share(each, speed.SKIPPING) == pytest.approx(0.07)
    assert speed.own_share(each, speed.SKIPPING) == pytest.approx(0.02)
    assert speed.own_share(each, speed.AUTO) == pytest.approx(0.02)


def counted_in(file: Path, text: str, device: str) -> waits.Waits:
    """What is counted while this text runs as if it stood in the file, inside one evaluation and outside."""
    found = waits.Waits()
    module = compile(f"def work(*_):\n {text}\n", str(file), "exec")
    (code,) = (each for each in module.co_consts if isinstance(each, CodeType))
    work = FunctionType(code, {"torch": torch, "warnings": warnings})
    with waits.counted(found, device):
        work()
        found._evaluation(work)
        found._evaluation(lambda: None)
    return found


def test_reads_are_counted_by_line_for_the_pack_alone() -> None:
    before = torch.Tensor.tolist
    found = counted_in(ROOT / "cache_core" / "session.py", "torch.ones(2).tolist()", "cpu")
    assert found.places == {"session.py:2": 2} and found.evaluations == [1, 0] and found.once == 1
    assert torch.Tensor.tolist is before
    assert not counted_in(ROOT / "bench" / "other.py", "torch.ones(2).tolist()", "cpu").places


def test_waits_on_a_gpu_are_those_that_torch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    said = 'warnings.warn("called a synchronizing CUDA operation"); warnings.warn("something else")'
    found = counted_in(ROOT / "nodes" / "sites" / "trunk.py", said, "cuda")
    assert found.places == {"trunk.py:2": 2} and found.evaluations == [1, 0] and found.once == 1
    assert modes == ["warn", 0]
    assert not counted_in(Path("/somewhere/comfy/samplers.py"), said, "cuda").places


def test_waits_inside_torchs_own_python_count_for_the_line_that_called_it() -> None:
    """torch.isclose of lists and the like convert inside torch: `assert_close` reads there."""
    text = "torch.testing.assert_close(torch.ones(2), torch.ones(2))"
    found = counted_in(ROOT / "cache_core" / "gates.py", text, "cpu")
    assert set(found.places) == {"gates.py:2"}


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    speed_command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_real_models_have_their_weights_and_their_names() -> None:
    whole = {name: speed_command.size_of(options("--model", name, "--device", "cuda")) for name in big_models.REAL}
    assert whole == big_models.REAL
    assert [round(size.gigabytes) for size in whole.values()] == [24, 41]
    assert [size.tokens for size in whole.values()] == [4096, 4096]
    names = [speed_command.file_name(options("--model", name), size) for name, size in whole.items()]
    assert names == ["speed-flux1", "speed-qwen-image"]


@pytest.mark.parametrize("changed", [("--double", "1"), ("--single", "2"), ("--side", "64"), ("--hidden", "1536")])
def test_a_part_of_a_real_model_is_never_taken_for_it(changed: tuple[str, str]) -> None:
    asked = options("--model", "flux1", "--device", "cuda", *changed)
    size = speed_command.size_of(asked)
    assert size != big_models.REAL["flux1"] and speed_command.file_name(asked, size) == "speed-flux1-reduced"
    assert "real dimensions" not in size.name
    assert (size.doubles, size.singles) == (1 if "--double" in changed else 19, 2 if "--single" in changed else 38)
    assert size.config["num_heads"] * 128 == size.hidden == (1536 if "--hidden" in changed else 3072)


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ("--model flux1", "24 GB of weights.*--device cuda.*--double 1 --single 2"),
        ("--model flux1 --double 1", "39 blocks has 11 GB"),
        ("--model qwen-image --side 16", "41 GB of weights.*--device cuda.*--double 2"),
        ("--model qwen-image --single 1", "no single blocks; leave out --single"),
        ("--hidden 200", "multiple of 128"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_way_out(arguments: str, way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        speed_command.size_of(options(*arguments.split()))


@pytest.mark.parametrize(("free", "said"), [(None, "torch sees no GPU here; leave out"), (12e9, "24 GB.*12 GB free")])
def test_a_gpu_that_cannot_do_it_is_refused_before_anything_is_built(
    free: float | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: free is not None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    assert speed_command.run(options("--model", "flux1", "--device", "cuda")) == 1
    assert re.search(f"bench speed: .*{said}", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["--rounds", "--steps", "--idle-rounds"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(SystemExit):
        options(name, "0")


def test_the_moderate_model_s_page_is_neither_a_gpu_s_nor_one_of_another_size() -> None:
    made = [options("--device", device, *width) for width in ((), ("--hidden", "3072")) for device in ("cpu", "cuda")]
    names = [speed_command.file_name(asked, speed_command.size_of(asked)) for asked in made]
    assert names == ["speed", "speed-moderate-cuda", "speed-3072", "speed-moderate-3072-cuda"]
    shallow = options("--double", "1")
    assert speed_command.file_name(shallow, speed_command.size_of(shallow)) == "speed-512"


class FakeEvent:
    """torch.cuda.Event on a device that takes 2 s between two of them."""

    made = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.made += 1
        self.at = 2000.0 * FakeEvent.made

    def elapsed_time(self, other: Any) -> float:
        return other.at - self.at


def test_a_gpus_evaluations_are_timed_by_its_own_events_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("waited"))
    ticker = Ticker("cuda")
    ticker.block()
    ticker.tick()
    ticker.tick()
    assert ticker.seconds() == [2.0, 2.0] and ticker.computed == [True, False]


def test_on_a_gpu_the_idle_node_is_timed_on_a_piece_of_the_model() -> None:
    for size in (big_models.REAL["flux1"], big_models.REAL["qwen-image"]):
        assert idle.middling(size, "cpu") == idle.MIDDLING
        piece = idle.middling(size, "cuda")
        assert piece.doubles + piece.singles == 6 and piece.hidden == 3072 and piece.latent == size.latent
    assert idle.middling(idle.SMALLEST, "cuda") == idle.MIDDLING


# --- what is measured -----------------------------------------------------------------------------------------------


class FakeStudio:
    """Takes what is attached as it is; its noise levels are their own places."""

    model = "model"

    def __init__(self) -> None:
        self.lab = self

    def attach(self, model: Any, method: Any) -> Any:
        return model, method

    def sigmas(self, steps: int) -> torch.Tensor:
        return torch.arange(steps + 1)


def test_each_kind_of_arm_has_its_own_set_up() -> None:
    studio: Any = FakeStudio()
    assert presets.fewer(10).set_up(studio, 28) == ("model", 10, None)
    model, steps, sigmas = presets.dense(10, 1.6).set_up(studio, 28)
    assert (model, steps) == ("model", 10) and sigmas.tolist() == [*lab_arms.places(28, 10, 1.6), 28]
    _, _, alike = presets.alike(10).set_up(studio, 28)
    assert alike.tolist() == [*placement.places(28, 10), 28] and alike.tolist() != sigmas.tolist()
    (model, method), steps, sigmas = presets.auto(10).set_up(studio, 28)
    assert (model, steps, sigmas) == ("model", 28, None) and method.params["speedup"] == 2.8
    forecast = predictors.arm("output", predictor_parts.EVEN, "hold", 10)
    assert forecast.made().rules[0].places == (MODEL,)
    assert dataclasses.replace(forecast, feature="residual").made().rules[0].places == (TRUNK, MODEL)


def test_a_run_is_known_by_all_that_changes_it_and_by_nothing_else() -> None:
    """Names and places in a table may change; kind, settings and sampler may not."""
    arm = presets.dense(10, 1.6)
    named = dataclasses.replace(arm, family="other", name="other", core=True, quick=True)
    assert arm.key() == named.key() and arm.version() == ""
    others: list[Arm] = [
        presets.fewer(10), presets.alike(10), dataclasses.replace(arm, count=9), dataclasses.replace(arm, power=1.3),
        dataclasses.replace(arm, sampler="heun"), *presets.core_arms()[:3], presets.auto(10), presets.auto(9),
        Cached("", "", "freqca", presets.auto(10).params), auto.part("1 band", 10), auto.part(auto.PARTS[0], 10),
        predictors.arm("output", predictor_parts.EVEN, "hold", 10),
    ]  # fmt: skip
    assert len({each.key() for each in [arm, *others]}) == len(others) + 1
    assert presets.auto(10).version() == code_version(["auto"]) != presets.method_arms(["freqca"])[0].version()
    assert presets.alike(10).version() and predictors.arm("output", "even", "hold", 9).version() != code_version()


def test_every_method_has_presets_that_it_accepts() -> None:
    made = methods()
    for arm in presets.method_arms(made):
        assert not arm.made().never, arm.name
    families = {arm.method: 0 for arm in presets.method_arms(made)}
    assert set(families) == set(made) - {*presets.ELSEWHERE}
    names = [arm.name for arm in [*presets.method_arms(made), *presets.core_arms(), *presets.control_arms(28)]]
    assert len(set(names)) == len(names)


def test_a_method_without_presets_is_named_with_the_way_out() -> None:
    with pytest.raises(presets.MissingPresets, match=r"newmethod\.py; add its table to bench/lab/presets\.py"):
        presets.method_arms([*presets.PRESETS, "newmethod"])


def test_the_default_grid_is_the_one_in_the_documents() -> None:
    groups = quality_grid.grid(methods())
    assert [(g.steps, g.cfg, len(g.pairs)) for g in groups] == [(28, 3, 24), (28, 1, 6), (20, 3, 6), (50, 3, 6)]
    rows = len(methods()) - len(presets.ELSEWHERE) + 1  # one a method, and EasyCache
    assert [len(g.arms) for g in groups[2:]] == [rows, rows]
    main, plain = ({arm.name for arm in g.arms} for g in groups[:2])  # every setting, with guidance and without
    able = [name for name in methods() if name not in presets.NEED_GUIDANCE]
    settings = {arm.name for arm in presets.method_arms(able) if arm.family not in presets.PARTS}
    assert settings < plain < main and {"14 steps", "20 steps"} <= plain and len(settings) > 120
    full = quality_grid.grid(methods(), full=True)
    idle = len(presets.method_arms(presets.NEED_GUIDANCE))
    assert [len(g.arms) for g in full if g.steps == 28] == [len(groups[0].arms), len(groups[0].arms) - idle]
    assert all(len(g.pairs) == COUNT for g in full)


def test_pairs_are_different_pictures() -> None:
    shown, learned = cases(COUNT, 3.0), others(9000, 3.0)
    assert len({pair.prompt for pair in shown}) == len({pair.seed for pair in shown}) == COUNT
    assert learned and not set(learned) & set(shown) and cases(3, 3.0) == shown[:3]
    assert all(len(pair.prompt.split()) <= WORDS for pair in [*shown, *learned])


def test_a_grid_is_walked_where_its_guidance_means_something() -> None:
    groups = [lab_grid.group(8, cfg, 3, [presets.fewer(4)]) for cfg in (1.0, 3.0)]
    assert groups[0].pairs == tuple(cases(3, 1.0))
    assert lab_grid.of_model(groups, "flux") == groups and lab_grid.of_model(groups, "flux-guided") == groups[:1]


def test_a_model_without_any_guidance_of_a_table_is_told_so() -> None:
    groups = [lab_grid.group(8, 3.0, 1, [presets.fewer(4)])]
    options = argparse.Namespace(model="flux-guided", report=False)
    with pytest.raises(SystemExit, match=r"flux-guided takes no guidance of this table \(CFG 3\)"):
        fill.carry_out(options, "new", groups, "{0}{1}".format)


def test_a_table_says_whose_it_is() -> None:
    assert of([{COLUMN: "flux-guided"}]) == "flux-guided" and of([]) == FIRST


@pytest.mark.parametrize("total", [8, 20, 28, 50])
@pytest.mark.parametrize("power", [1.0, 1.3, 1.6, 2.0])
def test_placements_have_the_count_asked_for(total: int, power: float) -> None:
    for count in range(2, total + 1):
        steps = lab_arms.places(total, count, power)
        assert len(steps) == count and steps[0] == 0 and steps[-1] == total - 1
        assert steps == sorted(set(steps))
    early = lab_arms.places(28, 10, 1.6)
    assert early[1] - early[0] < early[-1] - early[-2]


def test_warm_up_placements_are_the_published_ones() -> None:
    assert predictor_parts.anchors(predictor_parts.WARM, 12) == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27]
    for arm in [*predictors.arms(), *predictors.long_arms()]:
        if isinstance(arm, predictor_parts.Forecast):
            steps = arm.steps
            placed = predictor_parts.anchors(arm.placement, arm.count, steps)
            assert len(placed) == arm.count and placed[-1] == steps - 1, arm.name


def test_ablation_has_the_papers_eight_combinations() -> None:
    made = dict(ablation.combinations())
    assert next(iter(made)) == ablation.BASE and list(made)[-1] == ablation.FULL and len(made) == 8
    assert made[ablation.FULL] == {} and made["TADS"]["max_consecutive"] == 1000
    for arm in ablation.arms():
        methods()["spectralcache"](**arm.params)


def test_ablation_says_where_the_best_combination_loses_to_fewer_steps(tmp_path: Path) -> None:
    """Computed 7 and 9 by threshold: TADS 2 dB behind fewer steps, everything else 4 dB behind, TADS ahead at 9."""

    def make(arm: Arm, pair: Pair, steps: int) -> Outcome:
        if isinstance(arm, lab_arms.Plain):
            return outcome(arm.count, 20.0 + arm.count)
        computed = 9 if arm.params["threshold"] < 0.5 else 7
        lead = (1.0 if computed == 9 else -2.0) if arm.family == "TADS" else -4.0
        return outcome(computed, 20.0 + computed + lead)

    tables.write_csv(tmp_path / "ablation.csv", lab_grid.rows(ablation.grid(2), make))
    (sentence,) = ablation.against_fewer(tables.read_csv(tmp_path / "ablation.csv"))
    told = "ahead of fewer steps at 1 of 3 budgets (7: TADS -2.0 dB; 8: TADS -0.5 dB; 9: TADS +1.0 dB)."
    assert sentence == f"The best combination is {told}"


# --- forecasts that only the bench has ------------------------------------------------------------------------------

SIGMAS = (1.0, 0.95, 0.8, 0.6, 0.5)
NOW = Step(9, 28, 0.35, 0, 0.0)


def history_of(function: Callable[[float], float], sigmas: Sequence[float] = SIGMAS) -> tuple[Feature, ...]:
    """Features that all hold one number."""
    return tuple(Feature(Step(i, 9, sigma), torch.full((1, 2, 3), function(sigma))) for i, sigma in enumerate(sigmas))


def forecast(predictor: Predictor, history: tuple[Feature, ...], now: Step = NOW) -> float:
    used = history[-predictor.depth :]
    return float(predictor.predict(used, now, (1, 2)).flatten()[0])


def test_forecasts_over_log_snr_are_exact_there_and_not_in_sigma() -> None:
    def line(sigma: float) -> float:
        return 3.0 - 0.5 * predictor_parts.log_snr(sigma)

    past = history_of(line, SIGMAS[1:])
    for name in ("linear in log-SNR × 1", "Newton 2 in log-SNR", "back-tested, 3 bands, log-SNR"):
        assert forecast(predictor_parts.PREDICTORS[name](), past) == pytest.approx(line(NOW.sigma), abs=1e-5), name
    assert abs(forecast(predictor_parts.PREDICTORS["linear in sigma × 1"](), past) - line(NOW.sigma)) > 0.005


def test_the_first_step_drops_out_of_log_snr_as_in_the_limit() -> None:
    """Linear between an entry ever further away and the newest tends to the newest; Newton 2 to linear."""
    start = history_of(lambda sigma: 2 - sigma, SIGMAS[:3])
    made = predictor_parts.PREDICTORS
    assert forecast(made["linear in log-SNR × 1"](), start[:1]) == pytest.approx(1.0)
    assert forecast(made["linear in log-SNR × 1"](), start[:2]) == pytest.approx(1.05)  # holds
    assert forecast(made["linear in sigma × 1"](), start[:2]) == pytest.approx(1.65)
    assert forecast(made["Newton 2 in log-SNR"](), start) == forecast(made["linear in log-SNR × 1"](), start)
    far = (Feature(Step(0, 9, 1 - 1e-15), start[0].value), *start[1:])
    near = forecast(made["Newton 2 in log-SNR"](), far)
    assert near == pytest.approx(forecast(made["Newton 2 in log-SNR"](), start), abs=0.05)
    dropped = made["Newton 2 in sigma, first step dropped"]()
    assert forecast(dropped, history_of(lambda s: s * s, SIGMAS[:3])) != pytest.approx(0.35**2, abs=1e-3)
    assert forecast(dropped, history_of(lambda s: s * s)) == pytest.approx(0.35**2, abs=1e-6)


def test_newton_3_is_exact_on_cubics_and_newton_2_is_not() -> None:
    def cubic(sigma: float) -> float:
        return 1 - sigma + 4 * sigma**3

    made = predictor_parts.PREDICTORS
    assert forecast(made["Newton 3 in sigma"](), history_of(cubic)) == pytest.approx(cubic(0.35), abs=1e-5)
    assert abs(forecast(made["Newton 2 in sigma"](), history_of(cubic)) - cubic(0.35)) > 1e-2


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_chebyshev_fit_is_the_ridge_regression_of_the_monomials_oracle(degree: int) -> None:
    """Without a ridge it is exact on polynomials of its degree; with one it minimises |Phi c - F|² + lambda |c|²."""
    past = history_of(lambda sigma: 2 + sigma - 3 * sigma**degree)
    exact = predictor_parts.Chebyshev(degree, ridge=0.0)
    assert forecast(exact, past) == pytest.approx(2 + 0.35 - 3 * 0.35**degree, abs=1e-4)
    ridge = 0.1
    x = torch.tensor([2 * sigma - 1 for sigma in SIGMAS], dtype=torch.float64)
    rows = [torch.ones_like(x), x, 2 * x**2 - 1, 4 * x**3 - 3 * x, 8 * x**4 - 8 * x**2 + 1][: degree + 1]
    values = torch.tensor([float(entry.value[0, 0, 0]) for entry in past], dtype=torch.float64)
    stacked = torch.cat([torch.stack(rows, 1), ridge**0.5 * torch.eye(degree + 1, dtype=torch.float64)])
    aim = torch.cat([values, torch.zeros(degree + 1, dtype=torch.float64)])
    solution = torch.linalg.lstsq(stacked, aim[:, None]).solution[:, 0]
    at = 2 * NOW.sigma - 1
    basis = [1.0, at, 2 * at**2 - 1, 4 * at**3 - 3 * at, 8 * at**4 - 8 * at**2 + 1][: degree + 1]
    fitted = sum(c * t for c, t in zip(solution.tolist(), basis, strict=True))
    assert forecast(predictor_parts.Chebyshev(degree, ridge), past) == pytest.approx(fitted, abs=1e-5)
    slope = forecast(predictor_parts.PREDICTORS["linear in sigma × 1"](), past)
    half = forecast(predictor_parts.Chebyshev(degree, ridge, 0.5), past)
    assert half == pytest.approx((fitted + slope) / 2, abs=1e-5)


def test_back_tested_forecast_is_exact_on_a_straight_line_and_holds_noise() -> None:
    grid, tokens = (4, 6), 24
    generator = torch.Generator().manual_seed(0)
    start, slope, noise = (torch.randn(1, tokens, 8, generator=generator) for _ in range(3))

    def history(values: list[torch.Tensor]) -> tuple[Feature, ...]:
        return tuple(Feature(Step(i, 9, s), v) for i, (s, v) in enumerate(zip([1.0, 0.9, 0.7], values, strict=True)))

    line = history([start + slope * sigma for sigma in (1.0, 0.9, 0.7)])
    now = Step(5, 28, 0.55, 0, 0.0)
    told = predictor_parts.BackTested().predict(line, now, grid)
    torch.testing.assert_close(told, start + slope * 0.55, atol=1e-4, rtol=1e-4)
    turning = history([start, start + noise, start])  # the forecast pointed the wrong way: its gain is 0
    assert torch.allclose(predictor_parts.BackTested().predict(turning, now, grid), start, atol=1e-5)


def test_averaged_gains_are_those_of_two_anchors_and_one_band_needs_no_grid() -> None:
    """Values 0, 1, 2, 2.5 at even spacing: the last slope came at half of what was said, the one before in full."""
    past = tuple(Feature(Step(i, 9, 1 - i / 10), torch.full((1, 2, 3), v)) for i, v in enumerate((0.0, 1.0, 2.0, 2.5)))
    now = Step(4, 28, 0.6, 0, 0.0)
    assert forecast(predictor_parts.BackTested(()), past, now) == pytest.approx(2.5 + 0.5 * 0.5)
    assert forecast(predictor_parts.BackTested((), averaged=True), past, now) == pytest.approx(2.5 + 0.75 * 0.5)
    assert not predictor_parts.BackTested(()).needs_grid
    assert predictor_parts.BackTested().predict(past, now, None) is past[-1].value  # bands, but no grid: held


def test_bands_add_up() -> None:
    values = torch.randn(2, 35, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sum(predictor_parts.split(values, (5, 7), predictor_parts.EDGES)), values)


# --- the store and the tables ---------------------------------------------------------------------------------------


def test_the_store_gives_back_what_it_got_and_nothing_broken(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    assert kept.get("a") is None
    kept.put("a", outcome(12, math.inf))
    assert kept.get("a") == outcome(12, math.inf)
    (tmp_path / "a.json").write_text('{"computed": 1', "utf-8")
    assert kept.get("a") is None


CODE = {
    "cache_core/gates.py": "",
    "cache_core/trace.py": "",
    "cache_core/words.py": "",
    "cache_core/metrics.py": "",
    "cache_core/models/__init__.py": "",
    "cache_core/models/flux.py": "",
    "cache_core/methods/plain.py": "from ..gates import never",
    "cache_core/methods/built.py": "from . import plain",
    "cache_core/methods/taller.py": "from .built import built",
    "nodes/host.py": "",
    "nodes/sites/trunk.py": "",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in CODE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "remade"),
    [
        ("cache_core/gates.py", {"plain", "taller", ""}),
        ("cache_core/metrics.py", {"plain", "taller", ""}),
        ("cache_core/models/flux.py", {"plain", "taller", ""}),
        ("nodes/sites/trunk.py", {"plain", "taller", ""}),
        ("cache_core/methods/plain.py", {"plain", "taller"}),  # by way of built
        ("cache_core/methods/taller.py", {"taller"}),
        ("cache_core/methods/newest.py", set()),
        ("cache_core/models/qwen_image.py", set()),
        ("cache_core/trace.py", {"plain", "taller", ""}),
        ("cache_core/words.py", set()),
        ("nodes/stats.py", set()),
    ],
)
def test_runs_are_remade_where_their_code_changed_and_nowhere_else(
    repository: Path, changed: str, remade: set[str]
) -> None:
    """ "" is a composition of the bench's own: no method's file counts for it."""

    def versions() -> dict[str, str]:
        return {name: code_version([name] if name else [], repository) for name in ("plain", "taller", "")}

    before = versions()
    assert before == versions()
    file = repository / changed
    file.write_text((file.read_text("utf-8") if file.exists() else "") + "\n# changed\n", "utf-8")
    assert {name for name, version in versions().items() if version != before[name]} == remade


def test_the_stamp_covers_what_a_run_of_the_small_flux_imports() -> None:
    """The real files: a rename would otherwise leave a method without a stamp."""
    assert {file.name for file in method_files("freqca")} == {"freqca.py", "spectralcache.py"}
    assert {file.name for file in method_files("spectralcache")} == {"spectralcache.py"}
    for pattern in store.CODE:
        assert list(ROOT.glob(pattern)), pattern
    assert len({code_version([name]) for name in methods()} | {code_version()}) == len(methods()) + 1


def made_up(arm: Arm, pair: Pair, steps: int) -> Outcome:
    """A world in which good comes 3 dB closer than as many plain steps, bad 3 dB less, and idle skips nothing."""
    if isinstance(arm, lab_arms.Plain):
        return outcome(arm.count, 20.0 + arm.count + pair.seed % 5)
    if arm.family == "idle":
        return outcome(steps, math.inf, 1.0)
    computed = arm.params["count"]
    return outcome(computed, 20.0 + computed + pair.seed % 5 + (3.0 if arm.family == "good" else -3.0))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    arms = [presets.fewer(n) for n in (6, 10, 14, 20)]
    arms += [Cached(f, f"{f} {n}", params={"count": n}) for f in ("good", "bad") for n in (7, 14, 19)]
    groups = [lab_grid.group(28, 3.0, 5, [*arms, Cached("idle", "idle")])]
    rows = [{COLUMN: FIRST, **row} for row in lab_grid.rows(groups, made_up)]
    tables.write_csv(tmp_path / "quality.csv", rows)
    return tmp_path / "quality.csv"


def test_rows_are_paired_with_as_many_steps_as_each_pair_computed(csv: Path) -> None:
    rows = {row["name"]: row for row in tables.read_csv(csv)}
    assert float(rows["good 7"]["psnr_over_fewer"]) == 3.0 and float(rows["bad 14"]["psnr_over_fewer"]) == -3.0
    assert rows["10 steps"]["psnr_over_fewer"] == ""
    assert rows["idle"]["skipping"] == "0" and rows["idle"]["psnr_over_fewer"] == "0"


@pytest.mark.parametrize(("sampler", "computed", "skips"), [("heun", 55, 0), ("heun", 54, 1), ("euler", 28, 0)])
def test_a_full_run_skips_nothing_whatever_the_sampler(sampler: str, computed: int, skips: int) -> None:
    group = lab_grid.group(28, 3.0, 1, [Cached("a", "a")], sampler)
    assert lab_grid.row(group, group.arms[0], lambda *_: outcome(computed, 30.0))["skipping"] == skips


def test_the_report_is_made_of_the_csv_and_says_where_we_lose(csv: Path) -> None:
    rows = tables.read_csv(csv)
    text = quality_report.report(rows, "somewhere")
    assert text == quality_report.report(tables.read_csv(csv), "somewhere")
    assert "good: closer to the full run than fewer steps in 3 of 3 settings." in text
    assert "further away in 3 (bad 7, bad 14, bad 19)" in text
    assert "At 2x, good is closest of the caches (39.0 dB), ahead of fewer steps (36.0 dB)." in text
    heading, body = reading.matched(rows)
    assert heading[1:] == ["1.5x (18.7 computed)", "2x (14.0 computed)", "3x (9.3 computed)",
                           "4x (7.0 computed)", "5x (5.6 computed)"]  # fmt: skip
    by_family = {line[0]: line[1:] for line in body}
    assert by_family["good"][1] == "39.0" and by_family["good"][4] == ""  # 5x lies outside its presets
    assert "idle" not in by_family  # it reaches none of them


def test_a_loser_is_called_one(csv: Path) -> None:
    rows = [row for row in tables.read_csv(csv) if row["family"] != "good"]
    assert "bad is closest of the caches (33.0 dB), BEHIND fewer steps (36.0 dB)" in verdict.showing(rows)


def test_one_group_can_be_asked_for_by_its_name() -> None:
    kinds = ((1.0, "euler"), (3.0, "euler"), (3.0, "heun"))
    groups = [lab_grid.group(28, cfg, 1, [], sampler) for cfg, sampler in kinds]
    ask = argparse.Namespace
    assert fill.only(ask(only=None), groups) == groups
    assert fill.only(ask(only=["28", "3"]), groups) == [groups[1]]
    assert fill.only(ask(only=["28", "3", "heun"]), groups) == [groups[2]]
    with pytest.raises(SystemExit, match="There are: 28 1 euler; 28 3 euler; 28 3 heun"):
        fill.only(ask(only=["28", "2"]), groups)


def looked_at(arm: Arm, pair: Pair, steps: int) -> Outcome:
    """The same world, in which somebody looked at the pictures."""
    return dataclasses.replace(made_up(arm, pair, steps), feature=0.0123 + pair.seed % 2 / 1000, flip=0.05)


def test_how_pictures_look_stands_beside_the_rows_that_were_looked_at(csv: Path) -> None:
    old = [{name: row[name] for name in row if name not in reading.LOOKS} for row in tables.read_csv(csv)]
    assert "FLIP |" not in quality_report.report(old, "")
    tables.write_csv(csv, old)  # a table from before anybody looked
    arms = [presets.fewer(7), Cached("good", "good 7", params={"count": 7})]
    tables.write_csv(csv, fill.joined(lab_grid.rows([lab_grid.group(28, 1.0, 2, arms)], looked_at), csv, "here"))
    page = quality_report.report(tables.read_csv(csv), "")
    (row,) = [line for line in page.splitlines() if line.startswith("| good 7") and line.endswith("| 12.80 | 50.00 |")]
    assert page.count("| feature distance | FLIP |") == 1 and row.count("|") == 13


def test_a_picture_that_nobody_looked_at_is_made_again_for_the_eye(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[str] = []

    def measured(self: Runner, arm: Arm, pair: Pair, steps: int) -> Outcome:
        made.append(arm.name)
        return (looked_at if self.eye else made_up)(arm, pair, steps)

    monkeypatch.setattr(Runner, "_measure", measured)
    studio = SimpleNamespace(identity="", lab=SimpleNamespace(about=lambda: {"versions": ""}))
    arm, pair = presets.fewer(7), Pair("", 0, 1.0)
    for eye, runs in ((None, 1), (None, 1), (object(), 2), (object(), 2), (None, 2)):
        outcome = Runner(studio, Store(tmp_path), eye).outcome(arm, pair, 28)  # type: ignore[arg-type]
        assert len(made) == runs
    assert outcome.flip == 0.05


def test_a_group_is_made_anew_beside_the_others_and_says_where(csv: Path) -> None:
    """`bench quality --only 28 1`: hours of other rows stay, and no row's origin is lost."""
    arms = [*(presets.fewer(n) for n in range(2, 14)), Cached("good", "good 7", params={"count": 7})]
    new = lab_grid.rows([lab_grid.group(28, 1.0, 2, arms)], made_up)
    before = tables.read_csv(csv)
    tables.write_csv(csv, fill.joined(new, csv, "here"))
    rows = tables.read_csv(csv)
    assert rows[: len(before)] == [{fill.MEASURED: "", **row} for row in before]
    assert [row["name"] for row in rows[len(before) :]] == [arm.name for arm in arms]
    assert {(row["cfg"], row[fill.MEASURED]) for row in rows[len(before) :]} == {("1", "here")}
    tables.write_csv(csv, fill.joined(new, csv, "there"))
    again = tables.read_csv(csv)
    assert len(again) == len(rows) and {row[fill.MEASURED] for row in again} == {"", "there"}
    page = quality_report.report(again, "the rest")
    assert page.count("These rows: there") == 1 and page.endswith("the rest\n")
    whole = quality_report.report([{**row, fill.MEASURED: "there"} for row in again], "the rest")
    assert whole.count("These rows: there") == 2 and "the rest" not in whole
    assert {row["cfg"] for row in reading.main_group(again)} == {"3"}  # five pairs against two


def test_what_was_measured_of_a_method_is_read_from_the_widest_group(tmp_path: Path) -> None:
    plain = [presets.fewer(n) for n in (6, 10, 14, 20)]

    def made(arm: Arm, pair: Pair, steps: int) -> Outcome:
        if isinstance(arm, lab_arms.Plain):
            return outcome(arm.count, 20.0 + arm.count)
        computed = 8 if arm.name.endswith("0.4") else 16
        return outcome(computed, 20.0 + computed + (2.0 if computed == 16 else -2.0))

    settings = [Cached("TeaCache", f"TeaCache {n}") for n in (0.2, 0.4)]
    arms = [*plain, *settings, Cached("EasyCache", "EasyCache 0.2"), Cached(presets.PARTS[0], "FreqCa adaptive")]
    both = [lab_grid.group(28, 3.0, 2, [*plain, settings[0]]), lab_grid.group(28, 1.0, 2, arms)]
    tables.write_csv(tmp_path / "quality.csv", lab_grid.rows(both, made))
    (group,) = measured.widest(tmp_path)
    assert group.rows[0]["cfg"] == "1" and measured.fewer(group) == [34.0, pytest.approx(28 / 3 + 20)]
    tea = measured.of("teacache", [group])
    assert tea is not None and tea.megabytes == 0.001
    assert tea.psnr == [pytest.approx(26 + 12 * 6 / 8), pytest.approx(26 + 12 * (28 / 3 - 8) / 8)]
    assert tea.standing == "closer to the full run than fewer steps in 1 of 2 settings, further away in 1."
    assert measured.of("easycache", [group]) is None  # ComfyUI's own is not ours
    assert measured.of("freqca", [group]) is None  # a part of it is not the method
    assert measured.of("deepcache", [group]) is None


def row(family: str, name: str, computed: float, psnr: float, over: float = 0.0) -> dict[str, str]:
    known = {"family": family, "name": name, "computed": computed, "psnr": psnr, "ssim": 0.9, "speedup": 28 / computed}
    paired_ = {"psnr_over_fewer": over, "psnr_over_fewer_low": over - 0.1, "psnr_over_fewer_high": over + 0.1}
    group = {"steps": 28, "cfg": 3, "sampler": "euler", "pairs": 6, "skipping": 6}
    return {name: str(value) for name, value in (group | known | paired_).items()}


def test_a_walk_that_is_stopped_leaves_the_pairs_that_are_whole() -> None:
    arms = [presets.fewer(n) for n in (4, 6, 8)]
    both = [lab_grid.group(28, 3.0, 2, arms), lab_grid.group(20, 1.0, 4, arms[:2])]
    whole = {done: [(g.steps, len(g.pairs)) for g in lab_grid.complete(both, done)] for done in (2, 5, 6, 7, 11, 14)}
    assert whole == {2: [], 5: [(28, 1)], 6: [(28, 2)], 7: [(28, 2)], 11: [(28, 2), (20, 2)], 14: [(28, 2), (20, 4)]}
    made = [done for done, _ in lab_grid.walk(both, made_up)]
    assert made == list(range(1, 15))


def test_deriving_the_negative_is_judged_at_equal_cost() -> None:
    """Auto can save the same by computing fewer steps, so that is what deriving is held against."""
    plain = [row(presets.AUTO, "Auto 8", 8, 30, 5), row(presets.AUTO, "Auto 12", 12, 38, 9)]
    better, worse = row(guidance.DERIVE, "14", 10, 35, 6), row(guidance.DERIVE, "17", 11, 35, -2)
    text = guidance.report([*plain, better, worse], "somewhere")
    assert "+1.0 dB at 10.0, -1.0 dB at 11.0; so follow stays the default." in text
    assert "guidance derive: closer to the full run than fewer steps in 1 of 2 settings, further away in 1 (17)" in text
    assert "derive is worth it here" in guidance.report([*plain, better], "somewhere")
    assert "so leave it off" in guidance.report([*plain, worse], "somewhere")
    assert "cannot be compared" in guidance.report([plain[0], better], "somewhere")


def test_deepcache_is_held_against_auto_at_the_work_that_it_leaves() -> None:
    auto_ = [row(presets.AUTO, f"Auto {n}", n, 20 + n) for n in (10, 20)]
    deep = [row("DeepCache", "DeepCache 3", 15, 37), row("DeepCache, quadratic", "quadratic 5", 12, 30)]
    text = unet.report([*auto_, *deep], "somewhere")
    assert "closer than Auto in 1 of 2 settings (-2.0 to +2.0 dB): DeepCache is the better choice" in text
    assert "(-2.0 to -2.0 dB): Auto is the better choice" in unet.report([*auto_, deep[1]], "somewhere")
    assert "cannot be compared" in unet.report([auto_[0], deep[0]], "somewhere")


def test_the_unets_pictures_are_painted_from_their_captions() -> None:
    def paint(caption: str, seed: int) -> torch.Tensor:
        return unet_model.paint(caption, torch.Generator().manual_seed(seed))

    known = [pair.prompt for pair in unet_model.cases(COUNT, 3.0)]
    painted = torch.stack([paint(caption, i) for i, caption in enumerate(known)])
    assert painted.shape[1:] == (4, unet_model.SIDE, unet_model.SIDE) and 0.5 < float(painted.std()) < 1.5
    red, blue = (paint(f"a large {colour} square on grass", 1) for colour in ("red", "blue"))
    assert torch.equal(paint("a large red square on grass", 1), red)
    middle, corner = (red != blue)[:, 5:7, 5:7], (red != blue)[:, 0, 0]
    assert middle.all() and not corner.any()  # the shape's colour, not the ground's
    moved = [not torch.equal(paint("a large red square on grass", seed), red) for seed in range(6)]
    assert sum(moved) >= 3  # at a place of its own


def test_the_papers_lines_stand_beside_ours_and_their_order_is_told() -> None:
    ours = {"First-Block Cache 0.12": (10, 40), "TeaCache 0.6": (7, 32), "FastCache 0.15": (4, 20)}
    rows = [row(name.rpartition(" ")[0], name, *figures) for name, figures in ours.items()]
    text = published_tables.report(rows, "somewhere")
    assert "By speed-up the order is the paper's: FastCache, TeaCache, FBCache." in text
    assert "| TeaCache 0.6 | 2.12x | 4.00x | 7.0 | 20.51 | 32.0 | 0.734 | 0.900 | 0.215 |" in text
    rows[0]["psnr"] = "31"
    assert "By PSNR the paper has FBCache, TeaCache, FastCache; here it is TeaCache, FBCache, FastCache." in (
        published_tables.report(rows, "somewhere")
    )


def test_a_command_makes_page_and_extras_from_the_csv_alone(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--report makes no runs (there is no ComfyUI here) and keeps the line on where the figures are from."""
    (csv.parent / "quality.md").write_text("# Old\n\nwords\n\nmeasured somewhere\n", "utf-8")
    options = argparse.Namespace(out=csv.parent, report=True, share=None)
    seen: list[int] = []

    def report(rows: list[dict[str, str]], about: str) -> str:
        return f"# {len(rows)} rows\n\n{about}\n"

    assert fill.carry_out(options, "quality", [], report, also=lambda rows, out: seen.append(len(rows))) == 0
    page = (csv.parent / "quality.md").read_text("utf-8")
    assert page == f"# 11 rows\n\n{introduction(FIRST)}\n\nmeasured somewhere\n"
    assert seen == [11] and page in capsys.readouterr().out


def test_records_are_written_down_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = SimpleNamespace(about=lambda: {"machine": "here", "versions": "these"})
    monkeypatch.setattr("bench.lab.Lab", lambda: lab)
    monkeypatch.setattr("bench.lab.Studio", lambda lab, side, name: SimpleNamespace(lab=lab, side=side, name=name))
    options = argparse.Namespace(out=None, report=False, side=12, model="flux-guided")

    def records(studio: Any) -> Iterator[dict[str, object]]:
        yield {"side": studio.side, "own": studio.name}
        (first,) = tables.read_csv(tmp_path / "new-flux-guided.csv")
        assert first == {COLUMN: "flux-guided", "side": "12", "own": "flux-guided"}
        yield {"side": 13, "own": ""}

    def never(*_: object) -> None:
        raise AssertionError("a picture would replace the first model's")

    report = "# {0}\n\n![A plot](new.png)\n\n{1}".format
    assert fill.carry_out_records(options, "new", records, ["auto"], report, tmp_path, also=never) == 0
    page = (tmp_path / "new-flux-guided.md").read_text("utf-8")
    rows = tables.read_csv(tmp_path / "new-flux-guided.csv")
    assert len(rows) == 2
    assert page.startswith(f"# {rows}\n\n{introduction('flux-guided')}\n\nhere; these; code ")


def guessed(arm: Arm, pair: Pair, steps: int) -> Outcome:
    """Early-dense plain steps come 1 dB closer than even ones; hold equals them, linear 2 dB more, Newton 2 5 dB less;
    the first step out of the history is worth 4 dB; 10 of 28, where few rows are made, flatters linear.
    """
    value = 20.0 + arm.count + pair.seed % 5
    if isinstance(arm, lab_arms.Dense):
        value += 1
    if isinstance(arm, predictor_parts.Forecast):
        name = arm.predictor
        value += 1 + 2 * name.startswith("linear") - 5 * name.startswith("Newton 2") + 4 * ("dropped" in name)
        value += 9 * (name.startswith("linear") and (steps, arm.count) == (28, 10))
    return outcome(arm.count, value)


def test_the_predictors_page_says_what_many_rows_say_together(tmp_path: Path) -> None:
    tables.write_csv(tmp_path / "predictors.csv", lab_grid.rows(predictors.grid(2), guessed))
    table = predictors_report.tabled(tables.read_csv(tmp_path / "predictors.csv"))

    def line(text: str, start: str) -> list[str]:
        found = next(row for row in text.splitlines() if row.startswith(f"| {start} |"))
        return [cell.strip() for cell in found.strip("|").split("|")][1:]

    forecasts = line(predictors_report.forecasts(table), "linear in sigma × 1")
    assert forecasts == ["+2.0 (+2.0 to +2.0)"] * 6
    assert line(predictors_report.forecasts(table), "Chebyshev 2") == ["", "", "+0.0 (+0.0 to +0.0)", "", "", ""]
    same = line(predictors_report.same_sigmas(table), "early-dense p=1.6, 50 steps")
    assert [cell[:4] for cell in same] == ["+0.0", "+2.0", "+6.0", "+2.0", "+0.0", "+0.0"]
    assert "early-dense p=1.3, 8 computed (0, 2, ...) +4.0 (+4.0 to +4.0)" in predictors_report.first_step(table)
    leading = predictors_report.leading(table)
    assert "early-dense p=1.6: linear in sigma, first step dropped +6.0" in leading
    assert "behind hold: Newton 2 in sigma -5.0" in leading
    steadfast = predictors_report.steadfast(table)
    assert "linear in sigma × 1 (+2.0 at least, 26 cells)" in steadfast and "Newton" not in steadfast
    assert "linear in step × 0.5" not in steadfast  # at one placement alone
    page = predictors_report.report(tables.read_csv(tmp_path / "predictors.csv"), "somewhere")
    assert "12 computed: best residual · early-dense p=1.3 · linear in sigma, first step dropped with" in page
    assert "hold, warm-up, every N | -1.6 → +1.0" in page  # the first look's -1.6 turned
    assert "The sign turned in 6 of 42 cells" in page
    assert page.count("## All rows") == 2 and page.endswith("somewhere\n")


def test_other_noise_levels_say_where_fewer_steps_are_closer() -> None:
    """Behind in the mean, behind in every pair, or ahead: each is called what it is."""

    def rows(curve: str, gains: Sequence[float]) -> Iterator[dict[str, str]]:
        for seed, gain in enumerate(gains):
            for way, psnr in (("Auto", 30 + gain), ("fewer steps", 30.0)):
                yield {"curve": curve, "sampler": "euler", "cfg": "1", "seed": str(seed), "way": way, "computed": "10",
                       "psnr": str(psnr), "note": ""}  # fmt: skip

    page = schedules.report([*rows("a", (2, 3)), *rows("b", (-4, 3)), *rows("c", (-2, -3))], "somewhere")
    assert "in the mean in 1; behind in the mean alone: euler on b. Behind in every pair: euler on c." in page
    assert "| c | -2.5 (-3.0 to -2.0) |" in page and page.endswith("somewhere\n")
    assert "Nowhere behind in every pair." in schedules.report(list(rows("b", (-4, 3))), "")


@pytest.mark.parametrize(
    ("distance", "says"), [("12", "euler on c (its full run is 12 dB from"), ("45", "euler on c.")]
)
def test_other_noise_levels_say_where_the_sampler_breaks_down(distance: str, says: str) -> None:
    ways = (("Auto", "20"), ("fewer steps", "25"), ("all steps", distance))
    table = [
        {"curve": "c", "sampler": "euler", "cfg": "1", "seed": "0", "way": way, "computed": "10", "psnr": psnr,
         "note": ""}
        for way, psnr in ways
    ]  # fmt: skip
    assert f"Behind in every pair: {says}" in schedules.report(table, "")


def test_parts_of_a_run_say_where_fewer_steps_are_closer() -> None:
    rows = [
        {"part": part, "sampler": "euler", "count": "5", "cfg": "1", "seed": str(seed), "way": way, "computed": "5",
         "psnr": str(psnr)}
        for part, gain in (("a", 2.0), ("b", -1.0))
        for seed in (0, 1)
        for way, psnr in (("Auto", 30 + gain + seed), ("fewer steps", 30.0 + seed))
    ]  # fmt: skip
    page = partial.report(rows, "somewhere")
    assert "ahead of fewer steps in the mean in 1 of 2 settings; behind: euler, b, 5 of 20." in page
    assert "| a | 32.5, +2.0 (+2.0 to +2.0) |" in page and "| b | 29.5, -1.0 (-1.0 to -1.0) |" in page
    assert "pairs: 2." in page and page.endswith("somewhere\n")
    assert "in 1 of 1 settings." in partial.report(rows[:4], "")


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_both_of_two_nodes_have_steps_of_their_own(steps: int) -> None:
    splits = {part.name: part.split(steps) for part in partial.PARTS if part.first}
    assert splits and all(2 <= first <= steps - 2 for first in splits.values())
    assert partial.Part(denoise=0.5).split(steps) == steps


def test_levels_by_hand_fall_from_one_to_nothing_whatever_their_number() -> None:
    for levels in (schedules.gap, schedules.turns):
        for steps in (10, 20):
            made = levels(steps)
            assert len(made) == steps + 1 and made[0] == 1 and abs(made[-1]) < 1e-6 and (made.diff() < 0).all()
    assert torch.isclose(schedules.gap(20).diff().abs().max(), torch.tensor(0.2))


REPORTS = {
    "quality": quality_report.report, "ablation": ablation.report, "predictors": predictors_report.report,
    "exact": exact_report.report, "schedules": schedules.report, "partial": partial.report,
    "published": published_tables.report, "auto": auto.report, "stochastic": stochastic.report,
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_committed_documents_come_from_their_csv(name: str) -> None:
    """Nobody edits a table by hand: what docs/ shows is what its CSV gives."""
    folder = Path(__file__).parents[2] / "docs"
    if not (folder / f"{name}.csv").exists():
        pytest.skip("not measured yet")
    text = (folder / f"{name}.md").read_text("utf-8")
    about = text.strip().rsplit("\n\n", 1)[-1]
    rows = tables.read_csv(folder / f"{name}.csv")
    assert fill.introduced(REPORTS[name](rows, about), rows) == text


def test_the_plot_has_every_family_and_leaves_out_what_skipped_nothing(csv: Path, tmp_path: Path) -> None:
    rows = tables.read_csv(csv)
    names = [curve.name for curve in quality_plot.curves(rows, "psnr")]
    assert names == ["good", "bad", "fewer steps"]
    pytest.importorskip("matplotlib")
    quality_plot.draw(rows, tmp_path / "quality.png")
    with Image.open(tmp_path / "quality.png") as image:
        assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_every_predictor_arm_is_a_method_that_the_engine_accepts() -> None:
    """A composition with a hole in it would only show after minutes of sampling."""
    for arm in [*predictors.arms(), *predictors.long_arms()]:
        if isinstance(arm, predictor_parts.Forecast):
            method = arm.made()
            assert not method.never and 1 <= method.rules[0].predictor.depth <= predictor_parts.ALL
            assert method.rules[0].feature == ("absolute" if arm.feature == "absolute" else "residual")
