"""What a computed step pays back of what its gap missed: exactly where it may, less where a solver would run away."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_core.coefficients import IDENTITY
from cache_core.corrections import Repay, amplification
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder
from cache_core.track import Facts, LaneKey
from cache_core.types import Feature, Probe, Schedule, Step
from tests.whole_run import CPU, GRID, SHAPE, Run, at_time, auto, noise, polynomial


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_a_straight_run_ends_where_the_full_run_ends(degree: int, speedup: float) -> None:
    """Whatever the forecasts missed, every computed step has paid it back."""
    run = Run(30, polynomial(*[1.0, 0.7][: degree + 1]), speedup=speedup)
    assert max(run.drift) < 2e-5
    if degree and speedup > 2:  # there was something to pay back: the first forecasts hold, or follow half of the slope
        assert max(float((said - true).abs().max()) for _, said, true in run.forecasts) > 0.1


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_a_parabola_is_paid_back_exactly_from_the_third_computed_step_on(speedup: float) -> None:
    """Behind the first gap only two computed features are known: from there on, nothing is added to the drift."""
    run = Run(30, polynomial(1.0, 0.7, 0.3), speedup=speedup)
    assert max(abs(drift - run.drift[2]) for drift in run.drift[2:]) < 5e-5
    missed = [float((said - true).abs().max()) for step, said, true in run.forecasts if step > run.computed[2]]
    assert max(missed) > 0.01


@given(st.lists(st.floats(0.02, 0.98), min_size=5, max_size=9, unique_by=lambda s: round(s, 2)), st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_paid_back_is_the_drift_of_the_gap(levels: list[float], data: Any) -> None:
    """By hand, uneven spacing: two computed, some skipped with any forecast whatever, one computed."""
    sigmas = [*sorted(levels, reverse=True), 0.0]
    schedule = Schedule(tuple(sigmas), flow_noise)
    steps = [schedule.at(s) for s in sigmas[:-1]]
    truth = polynomial(*(data.draw(st.floats(-1, 1)) for _ in range(3)))
    known = tuple(Feature(s, truth(s)) for s in (*steps[:2], steps[-1]))
    forecasts = {s.index: noise(100 + s.index) for s in steps[2:-1]}
    gap, now = tuple(steps[2:-1]), steps[-1]
    paid = Repay(3).repair(known[:2], known[2], gap, lambda step: forecasts[step.index], now)
    owed = torch.stack([s.width * (truth(s) - forecasts[s.index]) for s in gap]).sum(0) / now.width
    scale = max(float(owed.abs().max()), 1.0)
    assert torch.allclose(paid, owed, atol=1e-3 * scale)


def stiff(gap_times_stiffness: float, checked: bool = False, steps: int = 24) -> float:
    """|x| at the end, from 1, of x' = -k x where every second step is skipped, held, and repaid: predictor and
    corrector by hand.
    """
    width = 1 / steps
    rate, x, owed = gap_times_stiffness / (2 * width), torch.ones(1, 1, 1), Repay(2, checked=checked)
    history: tuple[Feature, ...] = ()
    for i in range(0, steps, 2):
        now, skipped = (Step(j, steps, 1 - j * width, width=width, log_noise=-float(j)) for j in (i, i + 1))
        new, paid = Feature(now, rate * x), torch.zeros(1, 1, 1)
        if history:
            before = Step(i - 1, steps, 1 - (i - 1) * width, width=width, log_noise=-float(i - 1))
            paid = owed.repair(history, new, (before,), lambda _: history[-1].value, now)  # noqa: B023
            trust = owed.trusted(history, new)
            paid = paid if trust is None else paid * trust
        x = x - width * (new.value + paid) - skipped.width * new.value
        history = (*history, new)[-2:]
    return float(x.abs())


def test_what_turns_back_and_forth_is_not_repaid() -> None:
    """Beyond the stability of an Adams-Bashforth method of two steps each correction would be an overshoot; within it
    the corrector is whole.
    """
    assert stiff(1.6) < 0.1 and stiff(1.6, checked=True) > 3
    assert stiff(0.5) == stiff(0.5, checked=True)


def test_the_cosine_of_the_last_two_changes_says_what_is_paid() -> None:
    """Each row by itself."""
    steps = [at_time(-float(i)) for i in range(3)]
    first, turn = torch.tensor([1.0, 0.0]), [math.radians(angle) for angle in (0, 90, 126.87, 180)]
    last = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in turn])
    zero = torch.zeros(4, 1, 2)
    features = [zero, zero + first, zero + first + 3 * last[:, None]]
    history = tuple(Feature(at, value) for at, value in zip(steps, features, strict=True))
    trust = Repay(turning=0.4, turned=0.8).trusted(history[:2], history[2])
    assert trust is not None and trust.flatten().tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=1e-3)
    assert Repay().trusted(history[:1], history[2]) is None
    slight = Feature(steps[2], features[2] + torch.tensor([20.0, 0.0]))  # of which the same change is a small part
    shifted = tuple(Feature(at, value + torch.tensor([20.0, 0.0])) for at, value in zip(steps, features, strict=False))
    little = Repay().trusted(shifted[:2], slight)
    assert little is not None and torch.equal(little, torch.ones(4, 1, 1))
    still = Repay().trusted((history[0], history[0]), history[0])
    assert still is not None and torch.equal(still, torch.ones(4, 1, 1))


def test_one_lane_says_for_all_how_much_is_repaid() -> None:
    """Guidance multiplies the difference of lanes: a repair of one of them alone would be a change of guidance."""
    session = Session(auto(computed=4), Schedule(tuple(1 - i / 12 for i in range(13)), flow_noise),
                      Recorder("toy", {}, "toy", "model", 12))  # fmt: skip
    (track,), repaired = session.tracks, []
    for i in range(12):
        session.begin(torch.tensor([1 - i / 12]))
        call = session.open([LaneKey("cond"), LaneKey("uncond")], [slice(0, 1), slice(1, 2)])
        if not track.enter(call, Facts((1, 12, 5), torch.float32, CPU), lambda _: Probe(), IDENTITY):
            turning = noise(1, (1, 12, 5)) * (-1.0) ** len(repaired)
            steady = noise(2, (1, 12, 5)) * len(repaired)
            repaired.append(track.store(call, torch.cat((turning, steady)), grid=GRID))
        else:
            track.predict(call, grid=GRID)
            track.leave_out(call)
        session.end()
    session.close()
    assert len(repaired) == 4
    for lane in (0, 1):
        assert repaired[1] is not None and float(repaired[1][lane].abs().max()) > 0.01  # nothing is known yet
        assert repaired[2] is not None and float(repaired[2][lane].abs().max()) == 0


def test_a_step_of_no_width_pays_nothing() -> None:
    step = Step(3, 5, 0.5, width=0.0, log_noise=0.0)
    new = Feature(Step(3, 5, 0.5), noise())
    paid = Repay().repair((), new, (step,), lambda _: noise(1), step)
    assert torch.equal(paid, torch.zeros(SHAPE))


def pays(sigmas: tuple[float, ...], now: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a computed step pays for the one before it, what is missing there, and what is left (in told features)."""
    steps = [Schedule(sigmas, flow_noise).at(sigma) for sigma in sigmas[:-1]]
    missing, here = noise(7), steps[now]
    owed = missing * steps[now - 1].width / here.width
    paid, debt = Repay().bounded(owed, None, Feature(here, noise(8)), (steps[now - 1],), here)
    assert paid is not None
    left = torch.zeros_like(paid) if debt is None else debt.amount
    assert torch.allclose(paid * here.width + left, owed * here.width, atol=1e-4)
    return paid, missing, left


def test_a_narrow_step_is_told_next_to_nothing_else_than_it_computed() -> None:
    """A solver of two steps divides by its width: what it pays must vanish faster than that."""
    for width in (1e-2, 1e-3, 1e-4):
        paid, missing, _ = pays((1.0, 0.7, 0.5, 0.5 - width, 0.4, 0.0), now=2)
        assert float(paid.norm() / missing.norm()) < 25 * width


def test_less_is_paid_behind_a_narrow_step() -> None:
    whole, missing, left = pays((1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0), now=3)
    assert torch.allclose(whole, missing, atol=1e-5) and not left.any()
    behind, missing, left = pays((1.0, 0.9, 0.8, 0.799, 0.7, 0.6, 0.0), now=3)
    assert float(behind.norm() / missing.norm()) < 3e-4 and left.any()  # of 1e-2 that is owed


def test_less_is_paid_before_a_wide_step() -> None:
    """A solver of two steps takes what changed along for the next one: four times as wide, it would end eight times the
    payment too far.
    """
    before, missing, left = pays((1.0, 0.95, 0.9, 0.85, 0.65, 0.0), now=2)
    assert 0.2 < float(before.norm() / missing.norm()) < 0.3 and left.any()


NORMAL = (1.0, 0.8, 0.65, 0.5, 0.38, 0.27, 0.16, 0.01, 0.0)
"""As the scheduler normal ends: a step that is wide in the logarithm, and one of next to nothing."""


def test_less_is_paid_in_reach_of_a_step_that_is_wide_in_the_logarithm() -> None:
    """Solvers of three steps in log noise follow their results far beyond them there, those before the step too."""
    steps = [Schedule(NORMAL, flow_noise).at(sigma) for sigma in NORMAL[:-1]]
    found = [amplification(step) for step in steps]
    assert max(found[:4]) < 4 < min(found[4:7]) and found[7] == 1
    usual = Schedule((1.0, 0.75, 0.5, 0.25, 0.0), flow_noise)
    assert max(amplification(usual.at(sigma)) for sigma in usual.sigmas[:-1]) < 4
    for now, weight in zip((4, 5, 6), found[4:7], strict=True):
        paid, missing, left = pays(NORMAL, now)
        owed = (NORMAL[now - 1] - NORMAL[now]) / (NORMAL[now] - NORMAL[now + 1])
        assert float(paid.norm() / missing.norm()) == pytest.approx(owed * (4 / weight) ** 2, rel=1e-3) and left.any()


def test_amplification_by_hand() -> None:
    """The middle of three results, followed to the end of a step four times as wide: 4 · 6 where even steps have 3."""
    schedule = Schedule((1.0, 0.95, 0.9, 0.85, 0.65, 0.0), lambda sigma: sigma)
    assert amplification(schedule.at(0.9)) == pytest.approx(4 * 6 / 3)
    assert amplification(Schedule((1.0, 0.8, 0.6, 0.4, 0.2, 0.0), lambda sigma: sigma).at(0.8)) == pytest.approx(1)
    assert amplification(Schedule((1.0, 0.8, 0.8, 0.4, 0.2, 0.0), lambda sigma: sigma).at(0.8)) == math.inf
    assert amplification(Step(3, 8, 0.5)) == 1


@pytest.mark.parametrize(
    ("before", "last", "left", "end"),
    [(0.16, 0.01, 9, 2), (0.16, 0.01, 3, 2), (0.16, 0.01, 2, 1), (0.16, 0.08, 9, 1), (0.04, 0.001, 9, 1)],
)
def test_the_end_of_a_run(before: float, last: float, left: int, end: int) -> None:
    """Two steps where the last is next to nothing and the one before starts in noise, if enough are computed."""
    schedule = Schedule((1.0, 0.7, 0.4, before, last, 0.0), flow_noise)
    assert schedule.at(1.0).ending(left) == end
    assert replace(schedule, open=True).at(1.0).ending(left) == 1 == Step(0, 8, 1.0).ending(left)


@pytest.mark.parametrize(
    ("params", "both"),
    [
        ({}, True), ({"keep_first": 4}, True), ({"keep_last": 3}, True), ({"speedup": 4.0}, True),
        ({"speedup": 8.0}, False), ({"speedup": 10.0}, False), ({"keep_first": 18}, False),
    ],
)  # fmt: skip
def test_a_last_step_of_next_to_nothing_is_not_computed_alone(params: dict[str, Any], both: bool) -> None:
    """Both of the end are, and the budget is what it was, whatever is kept besides."""
    ending = (*(1 - i * 0.047 for i in range(18)), 0.154, 0.01, 0.0)
    run, even = Run(20, sigmas=ending, **params), Run(20, **params)
    assert run.computed[-1] == 19 and (18 in run.computed) == both
    assert len(run.computed) == len(even.computed) and (18 in even.computed) == ("keep_last" in params)
