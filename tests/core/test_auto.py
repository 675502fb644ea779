"""SpectralCache Auto without a host: exact budgets, a plan that a run moves, estimates and a tolerance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_core import methods
from cache_core.coefficients import IDENTITY
from cache_core.methods.auto import CUSTOM, _count
from cache_core.methods.auto import auto as published
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder, report
from cache_core.track import Facts, LaneKey
from cache_core.types import ESTIMATE, CacheError, Probe, Schedule, Step
from cache_core.words import STEPS, WORDS, computed
from tests.whole_run import CPU, GRID, SHAPE, Run, anything, auto, noise, polynomial


def due(steps: int, params: dict[str, Any]) -> int:
    """How many steps have to be computed: the definition."""
    count = _count(params.get("speedup", 2.0), params.get("quality", CUSTOM), 0, steps)
    return min(steps, max(count, params.get("keep_first", 1) + params.get("keep_last", 1)))


# the budget -----------------------------------------------------------------------------------------------------------

settings_of_a_run = st.fixed_dictionaries(
    {
        "speedup": st.floats(1.0, 6.0),
        "quality": st.sampled_from([CUSTOM, CUSTOM, *WORDS]),
        "keep_first": st.integers(1, 6),
        "keep_last": st.integers(1, 6),
        "bands": st.integers(1, 4),
    }
)


@given(st.integers(5, 30) | st.integers(5, 100), settings_of_a_run, st.sampled_from([(0.0,), (0.0, 0.5), (0.0, 1.0)]))
@settings(max_examples=120, deadline=None)
def test_the_budget_is_exact(steps: int, params: dict[str, Any], visits: tuple[float, ...]) -> None:
    """One evaluation a step; or two, the second half way (dpm_2) or at the next step's sigma (heun)."""
    run = Run(steps, visits=visits, **params)
    assert len(run.computed) == due(steps, params)
    kept = {*range(min(params["keep_first"], steps)), *range(max(0, steps - params["keep_last"]), steps)}
    assert kept | {0, steps - 1} <= set(run.computed)
    if run.track.rule.gate.never is False:
        assert {r.reason for r in run.records if r.step in kept} <= {"kept", "first step", "last step"}
    for step in range(steps):  # a step is computed whole or not at all
        assert len({r.action for r in run.records if r.step == step}) == 1
    if steps <= 30:  # as true of a long run, which takes longer
        again = Run(steps, visits=visits, **params)
        assert [r.action for r in again.records] == [r.action for r in run.records]
        assert torch.equal(again.x, run.x)


@given(st.integers(1, 100), st.floats(1.0, 6.0))
def test_custom_rounds_steps_over_speedup(steps: int, speedup: float) -> None:
    assert _count(speedup, CUSTOM, 0, steps) == round(steps / speedup)


@given(st.integers(5, 99))
def test_words_are_in_order_and_grow_with_the_number_of_steps(steps: int) -> None:
    counts = [computed(word, steps) for word in WORDS]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] <= steps
    assert all(computed(word, steps + 1) >= count for word, count in zip(WORDS, counts, strict=True))


@pytest.mark.parametrize("word", WORDS)
def test_words_mean_what_the_table_says(word: str) -> None:
    for steps, count in zip(STEPS, WORDS[word], strict=True):
        assert _count(2.0, word, 0, steps) == _count(6.0, word, 0, steps) == computed(word, steps) == count
    assert computed(word, 4) == 4  # nothing to spare


def test_a_speedup_of_one_is_off_and_words_are_not() -> None:
    assert auto(speedup=1.0).never
    assert not auto(speedup=1.1).never
    assert not auto(speedup=1.0, quality="Balanced").never


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"speedup": 0.9}, "speedup is 0.9; use a number from 1 to 20"),
        ({"speedup": float("nan")}, "speedup is nan"),
        ({"tolerance": -0.1}, "tolerance is -0.1; use a number from 0"),
        ({"keep_first": 0}, "keep_first is 0"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"bands": 5}, "bands is 5; use a number from 1 to 4"),
        ({"quality": "Best"}, "quality is 'Best'; use Custom or Quality"),
        ({"site": "unet"}, "site is 'unet'; use auto or trunk or model"),
    ],
)
def test_bad_values_are_refused_with_the_way_out(params: dict[str, Any], words: str) -> None:
    with pytest.raises(CacheError, match=words):
        auto(**params)


def test_it_is_found_among_the_methods() -> None:
    assert methods()["auto"] is published


# what the run shows moves the plan ------------------------------------------------------------------------------------


def test_after_a_surprise_the_next_computed_step_comes_sooner() -> None:
    """From a computed step on the features are others: its back-test fails, and the next gap is shorter."""
    calm = polynomial(1.0, 0.7, 0.1)
    plan = Run(60, calm, speedup=5.0).computed
    sooner = []
    for at in range(4, 9):
        shaken = Run(60, lambda step, at=at: calm(step) + (3 * noise(9) if step.index >= plan[at] else 0), speedup=5.0)
        assert shaken.computed[: at + 1] == plan[: at + 1] and len(shaken.computed) == len(plan)
        sooner.append(plan[at + 1] - shaken.computed[at + 1])
    assert min(sooner) >= 0 < sum(sooner)


# rows, estimates, tolerance -------------------------------------------------------------------------------------------


def test_rows_do_not_see_each_other() -> None:
    """A batch of two pictures is each picture alone: forecasts and payments, row by row."""
    together = Run(20, anything)
    for row in range(SHAPE[0]):
        alone = Run(20, lambda step, row=row: anything(step)[row : row + 1])
        assert alone.computed == together.computed
        assert torch.allclose(alone.x, together.x[row : row + 1], atol=1e-5)


def test_the_first_lane_alone_is_the_evidence() -> None:
    """A wild second conditioning, batched or in a call of its own, changes neither estimates nor decisions."""
    calm = polynomial(1.0, 0.7, 0.3)

    def records(calls: list[list[str]]) -> list[tuple[str, str, dict[str, float]]]:
        steps, method = 30, auto(speedup=3.0)
        recorder = Recorder(method.name, {}, "toy", "model", steps)
        sigmas = [1 - i / steps for i in range(steps + 1)]
        session = Session(method, Schedule(tuple(sigmas), flow_noise), recorder)
        (track,) = session.tracks
        for i in range(steps):
            step = Step(i, steps, sigmas[i], log_noise=flow_noise(sigmas[i]))
            session.begin(torch.tensor([step.sigma]))
            for names in calls:
                rows = [slice(2 * n, 2 * n + 2) for n in range(len(names))]
                call = session.open([LaneKey(name) for name in names], rows)
                if track.enter(call, Facts(SHAPE, torch.float32, CPU), lambda _: Probe(), IDENTITY):
                    track.predict(call, grid=GRID)
                    track.leave_out(call)
                else:
                    value = torch.cat([calm(step) if name == "first" else anything(step) for name in names])
                    track.store(call, value, grid=GRID)
            session.end()
        return [(r.action, r.reason, r.scores) for r in recorder.records]

    alone = records([["first"]])
    assert any(scores for *_, scores in alone)
    assert records([["first", "wild"]]) == alone == records([["first"], ["wild"]])


def test_a_skipped_evaluation_has_an_estimate_once_three_are_computed() -> None:
    run = Run(30, polynomial(1.0, 0.7, 0.3), speedup=3.0)
    for record in run.records:
        if record.action == "skipped":
            assert (ESTIMATE in record.scores) == (record.step > run.computed[2])
    assert run.recorder.finish("done", {"prompt": None, "node": None, "index": 0})["evaluations"]
    assert "Estimated error" in report(run.recorder.finish("done", {"prompt": None, "node": None, "index": 0}))


def test_estimates_grow_with_the_distance_and_with_the_error() -> None:
    calm, wild = (Run(30, polynomial(1.0, 0.7, bend), speedup=5.0) for bend in (0.1, 1.0))

    def estimates(run: Run) -> list[tuple[int, float]]:
        return [(r.step, r.scores[ESTIMATE]) for r in run.records if r.action == "skipped" and r.scores]

    assert sum(e for _, e in estimates(wild)) > sum(e for _, e in estimates(calm)) > 0
    neighbours = [(a, b) for a, b in zip(estimates(calm), estimates(calm)[1:], strict=False) if b[0] == a[0] + 1]
    assert neighbours and all(b[1] > a[1] for a, b in neighbours)


def test_tolerance_computes_beyond_the_budget_and_says_so() -> None:
    bent = polynomial(1.0, 0.7, 0.3)
    without = Run(30, bent, speedup=3.0)
    tolerance = max(r.scores.get(ESTIMATE, 0.0) for r in without.records) / 4
    within = Run(30, bent, speedup=3.0, tolerance=tolerance)
    assert len(without.computed) == 10 < len(within.computed) < 30
    assert sum(r.reason == "tolerance" for r in within.records) >= 2
    skipped = [r for r in within.records if r.action == "skipped"]
    assert skipped and all(r.scores[ESTIMATE] <= r.limits[ESTIMATE] == tolerance for r in skipped)
    refused = [r for r in within.records if r.reason == "tolerance" and ESTIMATE in r.scores]
    assert refused and all(r.scores[ESTIMATE] > tolerance for r in refused)
    text = report(within.recorder.finish("done", {"prompt": None, "node": None, "index": 0}))
    assert "tolerance (" in text
    assert f"Steps computed: {len(within.computed)} of 30, 10 asked for" in text
    assert f"In time that is a run of about {len(within.computed)} steps" in text


@pytest.mark.parametrize("visits", [(0.0,), (0.0, 1.0)])
def test_the_report_says_what_a_hundred_steps_with_twelve_computed_cost(visits: tuple[float, ...]) -> None:
    text = report(
        Run(100, visits=visits, computed=12).recorder.finish("done", {"prompt": None, "node": None, "index": 0})
    )
    assert "Steps computed: 12 of 100, 12 asked for\nIn time that is a run of about 12 steps: the others" in text


@pytest.mark.parametrize("turns", [6.0, 8.0, 10.0, 14.0])
def test_tolerance_does_not_rely_on_a_lucky_test(turns: float) -> None:
    """Where a wave happens to be straight, a test says that it always is."""

    def wave(step: Step) -> Tensor:
        return noise(1) * (1 + 1.5 * math.sin(turns * step.sigma))

    run = Run(20, wave, speedup=5.0, tolerance=0.05)
    assert len(run.computed) < 20
    assert float((run.x - run.full).norm() / run.full.norm()) < 0.25  # 1 to 2 where each test is believed


def test_a_wide_tolerance_costs_no_more_than_what_the_first_estimate_needs() -> None:
    """Without an estimate nothing is within the tolerance: three are computed at the start. The budget still holds."""
    run = Run(30, polynomial(1.0, 0.7), speedup=3.0, tolerance=10.0)
    assert run.computed[:3] == [0, 1, 2] and len(run.computed) == 10


def test_memory_is_three_features_a_slope_and_a_bend_a_lane() -> None:
    """And a few scalars; nothing after the run."""
    method = auto()
    recorder = Recorder(method.name, {}, "toy", "model", 20)
    run = Run(20, anything)
    one = 4 * torch.zeros(SHAPE).numel()
    assert 5 * one <= run.recorder.cache_bytes <= 5 * one + 200
    assert run.session.bytes() == 0 and recorder.cache_bytes == 0
