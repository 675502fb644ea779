"""The forecast that tests itself, by hand: the slope and the bend, band by band, and how far each is followed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_core.backtest import BENT, CURVE, EDGES, FAR, GAINS, MOST_GAIN, SLOPE, TESTED, BackTested
from cache_core.corrections import Repay
from cache_core.spectrum import Rings
from cache_core.types import MISFIT, Feature, Grid, Step
from tests.whole_run import CPU, GRID, SHAPE, Learned, Run, at_time, noise, polynomial

TIMES = (3.0, 1.4, 0.9, -0.8)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [GRID, None])
def test_a_straight_line_in_time_is_forecast_exactly_from_three_on(bands: int, grid: Grid | None) -> None:
    line = polynomial(1.0, 0.7)

    def at(time: float) -> Tensor:
        return line(at_time(time))

    learned = Learned(bands)
    for i, time in enumerate(TIMES):
        learned.add(time, at(time), grid)
        exact = torch.allclose(learned.at(-2.0, grid), at(-2.0), atol=1e-4)
        assert exact == (i >= 2)
    assert float(learned.figures[MISFIT]) < 1e-5
    run = Run(30, line, speedup=3.0, bands=bands)
    later = [(said, true) for step, said, true in run.forecasts if step > run.computed[2]]
    assert later and all(torch.allclose(said, true, atol=1e-4) for said, true in later)


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_gains_lie_between_none_and_a_fifth_more(seed: int, bands: int) -> None:
    learned = Learned(bands)
    for i, time in enumerate(TIMES):
        learned.add(time, noise(seed + i) * (1 + i) ** 2)
        assert torch.isfinite(learned.at(-2.0)).all()
    gains = learned.learned[GAINS]
    assert gains.shape == (SHAPE[0], bands)
    assert ((gains >= 0) & (gains <= 1.2)).all()
    assert MOST_GAIN == 1.2


def test_what_turns_back_is_held_and_what_runs_away_is_reined_in() -> None:
    """The last slope was wrong in sign: the gain is 0. It was far too small: the gain stops at its limit."""
    base, slope = noise(1), noise(2)
    turned = Learned().add(2.0, base).add(1.0, base + slope).add(0.0, base + 0.5 * slope)
    assert torch.equal(turned.learned[GAINS], torch.zeros(SHAPE[0], 3))
    assert torch.allclose(turned.at(-3.0), base + 0.5 * slope, atol=1e-6)
    away = Learned().add(2.0, base).add(1.0, base + slope).add(0.0, base + 4 * slope)
    assert torch.allclose(away.learned[GAINS], torch.full((SHAPE[0], 3), MOST_GAIN))
    assert torch.allclose(away.at(-1.0), base + (4 + MOST_GAIN * 3) * slope, atol=1e-4)


def test_a_bend_is_followed_once_a_bend_came_true() -> None:
    """A parabola in time with a slope and a bend of different shapes: what is left of the slope's error is the part of
    the bend that looks like the slope. Until a bend has been tested there is none.
    """
    parabola = polynomial(1.0, 0.7, 0.3)
    learned, left = Learned(1), []
    for i, time in enumerate((3.0, 2.5, 1.9, 1.2, 0.4)):
        learned.add(time, parabola(at_time(time)))
        assert (CURVE in learned.learned) == (i >= 3)
        whole = learned.at(-0.2)
        newest = learned.history[-1]
        kept = {name: tensor for name, tensor in newest.learned.items() if name in (SLOPE, GAINS)}
        without = (*learned.history[:-1], replace(newest, learned=kept))
        straight = learned.predictor.predict(without, at_time(-0.2), GRID)
        true = parabola(at_time(-0.2))
        left.append(float((whole - true).norm() / (straight - true).norm()))
    assert left[:3] == [1, 1, 1] and max(left[3:]) < 0.8


def test_the_second_term_is_newtons() -> None:
    """Slope and bend at right angles, both foretold in full, uneven gaps: the forecast is the parabola itself."""
    one, other = (Rings(None, (), CPU).forward(torch.eye(2)[i].reshape(1, 2, 1)) for i in (0, 1))
    history = tuple(Feature(at_time(t), t * one + t * t * other) for t in (3.0, 2.2, 0.9))
    newest = replace(history[-1], learned={})
    learned, _ = BackTested(1).learn(history[:-1], replace(newest, learned={BENT: torch.ones(1, 1)}))
    slope = history[-1].value - history[-2].value
    whole = {**learned, SLOPE: slope}
    told = BackTested(1).predict((*history[:-1], replace(newest, learned=whole)), at_time(-0.3))
    assert torch.allclose(told, -0.3 * one + 0.09 * other, atol=1e-5)


def test_no_bend_is_followed_further_than_it_was_foretold() -> None:
    """It comes nearly nine times as large: it counts once."""
    one, other = (torch.eye(2)[i].reshape(1, 2, 1) for i in (0, 1))
    learned = Learned(1)
    for time, bend in ((3.0, 0.0), (2.0, 0.0), (1.0, 1.0), (0.0, 11.0)):
        learned.add(time, time * one + bend * other, None)
    assert torch.equal(learned.learned[BENT], torch.ones(1, 1))


def test_one_lucky_bend_is_not_enough() -> None:
    """A bend that comes as foretold once, and not at all the next time, is followed no more; two tests count alike."""
    one, other = (torch.eye(2)[i].reshape(1, 2, 1) for i in (0, 1))

    def bent(*levels: float) -> list[float]:
        learned, found = Learned(1), []
        for i, level in enumerate(levels):
            learned.add(3.0 - i, 100 * (3.0 - i) * one + level * other, None)
            found += [round(float(learned.learned[name]), 2) for name in (BENT, TESTED) if name in learned.learned]
        return found

    assert bent(0, 1, 4, 9, 16) == [1, 1, 1, 1]
    assert bent(0, 1, 4, 9, 14) == [1, 1, 0, 0]
    assert bent(0, 1, 4, 8, 12.5) == [0.5, 0.5, 0.5, 0.5]
    assert bent(0, 1, 4, 9, 14.5) == [1, 1, 0.5, 0.25]


def test_what_swings_has_no_bend() -> None:
    """Up and down by turns: the bend that was foretold comes the other way round."""
    base, swing = noise(1), noise(2)
    learned = Learned()
    for i, time in enumerate((3.0, 2.0, 1.0, 0.0, -1.0)):
        learned.add(time, base + (-1) ** i * swing)
    assert torch.equal(learned.learned[BENT], torch.zeros(SHAPE[0], 3))
    assert torch.allclose(learned.at(-3.0), base + swing, atol=1e-5)


def test_a_bend_is_not_followed_beyond_a_few_gaps() -> None:
    """Behind a step of next to nothing the second term would grow with the square of a huge number."""
    parabola = polynomial(1.0, 0.7, 0.3)
    learned = Learned(1)
    for time in (3.0, 2.0, 1.0, 0.0, -0.001):
        learned.add(time, parabola(at_time(time)))
    straight = learned.learned[SLOPE]
    curve = learned.learned[CURVE]
    value = learned.history[-1].value
    assert torch.allclose(learned.at(-1.001), value + 1000 * straight + FAR * (FAR + 1) * curve, rtol=1e-3, atol=1e-3)


def test_bands_are_tested_apart() -> None:
    """Coarse structure keeps its slope, fine detail turns back: one is followed, the other held."""
    coarse = torch.ones(1, 12, 1)
    finest = torch.zeros(1, 12, 1).index_fill(1, torch.tensor(11), 1.0)
    fine = Rings(GRID, EDGES[2], CPU).inverse(finest)
    learned = Learned(2).add(2.0, 0 * coarse).add(1.0, coarse + fine).add(0.0, 2 * coarse)
    assert torch.allclose(learned.learned[GAINS], torch.tensor([[1.0, 0.0]]), atol=1e-5)
    assert torch.allclose(learned.at(-1.0), 3 * coarse, atol=1e-5)


@pytest.mark.parametrize("grid", [GRID, None])
def test_the_misfit_is_what_the_best_gain_leaves_of_the_newest_change(grid: Grid | None) -> None:
    base, before, after = noise(1), noise(2), noise(3)
    learned = Learned(1).add(2.0, base, grid).add(1.0, base + before, grid).add(0.0, base + before + after, grid)
    gains = ((after * before).sum((1, 2)) / before.square().sum((1, 2))).clamp(0, MOST_GAIN)
    left = (after - gains[:, None, None] * before).norm() / (base + before + after).norm()
    assert float(learned.figures[MISFIT]) == pytest.approx(float(left), rel=1e-4)


@pytest.mark.parametrize("level", [3.0, -1e-20, 0.0])
def test_a_constant_feature_is_held_without_a_nan(level: float) -> None:
    learned = Learned()
    for time in TIMES:
        learned.add(time, torch.full(SHAPE, level))
        assert torch.equal(learned.at(-2.0), torch.full(SHAPE, level))
    assert all(torch.isfinite(tensor).all() for tensor in learned.learned.values())
    run = Run(20, lambda _: torch.full(SHAPE, level))
    assert torch.isfinite(run.x).all() and max(run.drift) < 1e-5


@pytest.mark.parametrize("level", [3.0, 0.0])
def test_a_constant_feature_has_no_misfit(level: float) -> None:
    learned = Learned()
    for time in TIMES:
        learned.add(time, torch.full(SHAPE, level))
    assert float(learned.figures[MISFIT]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_single(dtype: torch.dtype) -> None:
    line = polynomial(1.0, 0.7)
    halves, singles = Run(20, lambda step: line(step).to(dtype)), Run(20, line)
    assert halves.computed == singles.computed
    assert halves.x.dtype == singles.x.dtype or torch.isfinite(halves.x).all()
    error = float((halves.x.float() - singles.x).abs().max())
    assert error < 0.02 * float(singles.x.abs().max())


def test_features_stored_in_bfloat16_serve_as_those_in_float32() -> None:
    """A run changes its feature by some percent a step; bfloat16 holds three digits. What a forecast and a correction
    lose by that must stay near what storing the feature itself loses.
    """
    times, skipped = (2.0, 1.6, 1.1), (0.9, 0.7)
    parts = [noise(i, (1, 144, 64)) for i in range(3)]

    def feature(time: float) -> Tensor:
        return parts[0] + 0.15 * time * parts[1] + 0.02 * time**2 * parts[2]

    def relative(a: Tensor, b: Tensor) -> float:
        return float((a.float() - b).norm() / b.norm())

    made, repairs = [], []
    for dtype in (torch.float32, torch.bfloat16):
        learned = Learned()
        for time in times:
            learned.add(time, feature(time).to(dtype), (12, 12))
        made.append(learned.at(skipped[-1], (12, 12)))
        gap = tuple(Step(i, 9, 0.0, width=0.04, log_noise=time) for i, time in enumerate(skipped))
        new = Feature(at_time(0.4), feature(0.4).to(dtype))
        now = Step(3, 9, 0.0, width=0.04, log_noise=0.4)
        repairs.append(Repay().repair(learned.history, new, gap, lambda at: learned.at(at.log_noise, (12, 12)), now))  # noqa: B023
    stored = relative(feature(0.4).bfloat16(), feature(0.4))
    assert made[1].dtype == torch.bfloat16 and repairs[1].dtype == torch.float32
    assert relative(made[1], made[0]) < 3 * stored
    assert float((repairs[1] - repairs[0]).norm() / feature(0.4).norm()) < 6 * stored
