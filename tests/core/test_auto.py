"""SpectralCache Auto without a host: exact budgets, a forecast that tests itself, a corrector that pays all back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_core import methods
from cache_core.backtest import BENT, CURVE, EDGES, FAR, GAINS, MOST_GAIN, SLOPE, TESTED, BackTested
from cache_core.coefficients import IDENTITY
from cache_core.corrections import Repay, amplification
from cache_core.methods.auto import CUSTOM, _count
from cache_core.methods.auto import auto as published
from cache_core.placement import (
    CALM,
    EARLY,
    FLAT,
    LIVELY,
    USUAL,
    begun,
    even,
    following,
    late,
    opening,
    places,
    ragged,
)
from cache_core.session import Session, flow_noise
from cache_core.spectrum import Rings
from cache_core.trace import Recorder, report
from cache_core.track import Facts, LaneKey
from cache_core.types import ESTIMATE, MISFIT, CacheError, Feature, Grid, Method, Past, Probe, Schedule, Step
from cache_core.words import STEPS, WORDS, computed

GRID: Grid = (3, 4)
SHAPE = (2, 12, 5)  # b n d
CPU = torch.device("cpu")

Features = Callable[[Step], Tensor]
"""What the model gives at a step: b n d."""


def auto(**params: Any) -> Method:
    """Auto by the number, where nothing says a word."""
    return published(**{"quality": CUSTOM, **params})


def at_time(log_noise: float) -> Step:
    return Step(0, 1, 0.0, log_noise=log_noise)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def anything(step: Step) -> Tensor:
    """Features without any rule."""
    return noise(int(1e6 * step.sigma))


def polynomial(*coefficients: float) -> Features:
    """sum_i c_i · (a random tensor) · time^i"""
    parts = [c * noise(i + 1) for i, c in enumerate(coefficients)]
    return lambda step: torch.stack([part * step.log_noise**i for i, part in enumerate(parts)]).sum(0)


class Run:
    """One run of the engine, with Euler behind it: x moves by -width · (what stood in, or the repaired feature)."""

    def __init__(
        self,
        steps: int,
        features: Features = anything,
        visits: Sequence[float] = (0.0,),
        sigmas: Sequence[float] = (),
        **params: Any,
    ):
        """visits: where each step is evaluated, as shares of the way to the next one (heun: 0 and 1); sigmas: even ones
        unless given.
        """
        method = auto(**params)
        self.sigmas = list(sigmas) or [1 - i / steps for i in range(steps + 1)]
        self.recorder = Recorder(method.name, method.params, "toy", "model", steps)
        self.session = Session(method, Schedule(tuple(self.sigmas), flow_noise), self.recorder)
        (self.track,) = self.session.tracks
        self.x = torch.zeros_like(features(Step(0, steps, 1.0, log_noise=flow_noise(1.0))))
        self.full = self.x.clone()
        self.drift: list[float] = []
        """After each computed evaluation: how far x has come from where computing everything would have led."""
        self.forecasts: list[tuple[int, Tensor, Tensor]] = []
        """(step, what stood in, what would have been computed)"""
        self.skips: list[bool] = []
        for i in range(steps):
            for share in visits:
                sigma = self.sigmas[i] + share * (self.sigmas[i + 1] - self.sigmas[i])
                if sigma > 0:
                    self._evaluate(sigma, features)
        self.session.close()

    def _evaluate(self, sigma: float, features: Features) -> None:
        session, i = self.session, max(j for j, s in enumerate(self.sigmas[:-1]) if s >= sigma * (1 - 1e-4))
        true = features(Step(i, len(self.sigmas) - 1, sigma, log_noise=flow_noise(sigma)))
        session.begin(torch.tensor([sigma]))
        call = session.open([LaneKey("cond")], [slice(0, len(true))])
        skip = self.track.enter(call, Facts(true.shape, true.dtype, CPU), lambda _: Probe(), IDENTITY)
        used = true
        if skip:
            used = self.track.predict(call, grid=GRID)
            self.track.leave_out(call)
            self.forecasts.append((i, used, true))
        else:
            repair = self.track.store(call, true, grid=GRID)
            used = true if repair is None else true + repair
        session.end()
        self.skips.append(skip)
        width = self.sigmas[i] - self.sigmas[i + 1]
        self.x, self.full = self.x - width * used, self.full - width * true
        if not skip:
            self.drift.append(float((self.x - self.full).abs().max()))

    @property
    def records(self) -> list[Any]:
        return self.recorder.records

    @property
    def computed(self) -> list[int]:
        """The distinct steps that were computed."""
        return sorted({record.step for record, skip in zip(self.records, self.skips, strict=True) if not skip})


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


# placement ------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 10), st.floats(0, 10))
def test_the_less_changes_at_first_the_later_the_others_come(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert EARLY <= opening(high) <= (opening(low) if low else FLAT) <= FLAT
    assert opening(0) == opening(LIVELY) == EARLY and opening(CALM) == FLAT  # 0: not known
    assert opening(math.nan) == opening(math.inf) == EARLY  # of a model that overflows


def moved(first: float) -> Features:
    """What differs by so much of itself between the first two steps, and hardly behind them."""
    return lambda step: noise(1) * (1 / (1 + first) if step.index else 1) * (1 - 0.01 * step.sigma)


@pytest.mark.parametrize("count", [6, 10, 14])
def test_a_run_is_placed_by_its_own_first_change(count: int) -> None:
    """As many are computed either way, the first and the last among them. (Back-tests move them a little more.)"""
    calm, lively = (Run(28, moved(first), computed=count).computed for first in (0.0, 1.0))
    assert len(calm) == len(lively) == count and calm[-1] == lively[-1] == 27
    assert calm[:2] == lively[:2] == places(28, count)[:2] and sum(calm) > sum(lively)
    assert lively[2] == following(lively[1], count - 2, 27) <= calm[2]
    assert calm[2] == following(calm[1], count - 2, 27, early=FLAT)


def test_wide_steps_between_narrow_ones_are_placed_as_ever() -> None:
    """Evenly placed steps might miss all the wide ones."""
    widths = [(1.0, 2.5)[i % 2] for i in range(60)]
    turns = [sum(widths[i:]) / sum(widths) for i in range(61)]
    run = Run(60, moved(0.0), sigmas=turns, computed=8)
    second = places(60, 8)[1]
    assert run.computed[:3] == [0, second, following(second, 6, 59)]
    assert following(second, 6, 59) != following(second, 6, 59, early=FLAT)
    assert ragged(turns) and not any(ragged(shifted(shift, 20)) for shift in (0.5, 1.0, 13.0))
    assert not ragged([1.0, 0.7, 0.4, 0.3, 0.2, 0.1, 0.0])  # a change once, not a spike
    assert ragged([1.0, 0.8, 0.2, 0.1, 0.05, 0.0])


@given(st.data())
def test_the_next_place_leaves_room_at_any_opening(data: Any) -> None:
    total, early = data.draw(st.integers(4, 100)), data.draw(st.floats(EARLY, FLAT))
    count = data.draw(st.integers(2, total))
    found = places(total, count, early=early)
    assert len(found) == len(set(found)) == count and found[0] == 0 and found[-1] == total - 1


@given(st.data())
def test_the_next_place_always_leaves_room_for_the_others(data: Any) -> None:
    end = data.draw(st.integers(1, 100))
    step = data.draw(st.integers(-1, end - 1))
    left = data.draw(st.integers(1, end - step))
    stride = data.draw(st.floats(0.1, 10.0))
    place = following(step, left, end, stride)
    assert step < place <= end - left + 1
    assert left > 1 or place == end
    assert stride <= 1 or place >= following(step, left, end)


def shifted(shift: float, total: int, noise: float = 1.0) -> tuple[float, ...]:
    """A schedule of a flow model, from u = `noise`."""
    even_u = (noise * (total - i) / total for i in range(total + 1))
    return tuple(shift * u / (1 + (shift - 1) * u) for u in even_u)


@pytest.mark.parametrize("noise", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("shift", [1.0, 1.5, USUAL])
def test_usual_schedules_are_placed_by_step(shift: float, noise: float) -> None:
    """Those that start on the way (denoise below 1) too."""
    assert even(shifted(shift, 28, noise)) is None
    assert even(tuple(round(sigma, 3) for sigma in shifted(shift, 20))) is None  # the host's come from a table


@pytest.mark.parametrize(("first", "last"), [(0, 10), (0, 15), (5, 15), (10, 20)])
@pytest.mark.parametrize("shift", [5.0, 8.0, 13.0])
def test_a_part_of_a_strongly_shifted_schedule_is_placed_by_noise(shift: float, first: int, last: int) -> None:
    """Of two experts each: it stands where it does in the whole, from its own start to its own end."""
    sigmas = shifted(shift, 20)
    whole, part = even(sigmas), even(sigmas[first : last + 1])
    assert whole is not None and part is not None and part[0] == 0
    ends = [*whole, 20.0]
    share = (last - first) / (ends[last] - ends[first])
    assert part == pytest.approx([(each - ends[first]) * share for each in ends[first:last]])


@pytest.mark.parametrize("sigma", [1.0, 0.999, 14.6, 80.0, 700.0])
def test_a_run_that_begins_with_noise_is_a_whole_one(sigma: float) -> None:
    assert begun(sigma, flow=sigma <= 1) == 0
    assert late(EARLY, 0.0) == EARLY and late(EARLY, 0.5) == pytest.approx(2 * EARLY)


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_less_noise_at_the_start_is_further_on_the_way(one: float, other: float) -> None:
    noisier, later = sorted((one, other), reverse=True)
    assert 0 <= begun(noisier, flow=True) <= begun(later, flow=True) <= 1
    assert begun(later, flow=True) == pytest.approx(begun(later / max(1 - later, 1e-6), flow=False))
    assert EARLY <= late(EARLY, begun(noisier, flow=True)) <= late(EARLY, begun(later, flow=True)) < math.inf


@pytest.mark.parametrize("noise", [0.75, 0.5, 0.3, 0.1])
def test_the_start_of_a_part_takes_more_of_it(noise: float) -> None:
    """Image to image: `early` is a length on the whole way. (Back-tests move the later places a little more.)"""
    sigmas = shifted(1.5, 60, noise)
    part, whole = (Run(60, moved(1.0), sigmas=each, computed=10).computed for each in (sigmas, shifted(1.5, 60)))
    early = late(EARLY, begun(sigmas[0], flow=True))
    assert part[:3] == places(60, 10, early=early)[:3] and len(part) == 10 and early > EARLY
    assert whole[:3] == places(60, 10)[:3] and sum(part) > sum(whole)


@pytest.mark.parametrize("shift", [5.0, 8.0, 13.0])
def test_a_strongly_shifted_schedule_is_placed_by_noise(shift: float) -> None:
    """Its computed steps lie where those of the usual one lie in noise, later than by step."""
    sigmas, usual = shifted(shift, 40), shifted(USUAL, 40)
    by_noise, by_step = places(40, 12, even(sigmas)), places(40, 12)
    assert all(late >= early for late, early in zip(by_noise, by_step, strict=True)) and by_noise != by_step
    free = [i for i in range(1, 11) if by_noise[i - 1] + 1 < by_noise[i] < by_noise[i + 1] - 1]
    assert len(free) > 2 and all(abs(sigmas[by_noise[i]] - usual[by_step[i]]) < 0.1 for i in free)


def test_lists_that_are_uneven_in_other_ways_are_placed_by_step() -> None:
    upper, lower = [1 - 0.05 * i for i in range(7)], [0.499 * (12 - i) / 12 for i in range(13)]
    assert even((*upper, 0.5, *lower)) is None


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=40, unique=True), st.data())
def test_every_falling_schedule_can_be_placed(levels: list[float], data: Any) -> None:
    sigmas = (*sorted(levels, reverse=True), 0.0)
    stands = even(sigmas)
    total = len(sigmas) - 1
    found = places(total, data.draw(st.integers(2, total)), stands)
    assert found == sorted(set(found)) and (found[0], found[-1]) == (0, total - 1)
    assert stands is None or (stands[0] == 0 and list(stands) == sorted(stands) and max(stands) < total)


def test_what_is_no_whole_falling_schedule_is_placed_by_step() -> None:
    assert even((1.0, 0.5)) is None
    assert even((*shifted(1.5, 20)[:10],)) is None  # ends with noise left
    assert even((1.0, 0.9, 0.9, 0.5, 0.1, 0.0)) is None


@given(st.integers(2, 100), st.data())
def test_places_are_as_many_as_asked_with_both_ends(total: int, data: Any) -> None:
    count = data.draw(st.integers(2, total))
    found = places(total, count)
    assert (len(found), found[0], found[-1]) == (count, 0, total - 1)
    assert found == sorted(set(found))


def test_places_are_dense_early() -> None:
    gaps = [b - a for a, b in zip(places(50, 10), places(50, 10)[1:], strict=False)]
    assert gaps[0] < max(gaps) and gaps[-1] < max(gaps)


# the corrector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_a_straight_run_ends_where_the_full_run_ends(degree: int, speedup: float) -> None:
    """Whatever the forecasts missed, every computed step has paid it back."""
    run = Run(30, polynomial(*[1.0, 0.7][: degree + 1]), speedup=speedup)
    assert max(run.drift) < 2e-5
    if (
        degree and speedup > 2
    ):  # so there was something to pay back: the first forecasts hold, or follow half of the slope
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


# the forecast ---------------------------------------------------------------------------------------------------------


class Learned:
    """A history as the engine builds it."""

    def __init__(self, bands: int = 3) -> None:
        self.predictor = BackTested(bands)
        self.history: tuple[Feature, ...] = ()
        self.figures: dict[str, Tensor] = {}

    def add(self, time: float, value: Tensor, grid: Grid | None = GRID) -> Learned:
        new = Feature(at_time(time), value)
        learned, self.figures = self.predictor.learn(self.history, new, grid)
        older = tuple(Feature(f.at, f.value) for f in self.history)
        new = Feature(at_time(time), value, learned)
        self.history = (*older, new)[-self.predictor.depth :]
        return self

    def at(self, time: float, grid: Grid | None = GRID) -> Tensor:
        return self.predictor.predict(self.history, at_time(time), grid)

    @property
    def learned(self) -> Past:
        return dict(self.history[-1].learned)


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


# bands ----------------------------------------------------------------------------------------------------------------

GRIDS: list[Grid | None] = [(3, 4), (1, 12), (12, 1), (13, 9), (2, 3, 4), (6, 6), None]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bands", sorted(EDGES))
def test_bands_add_up_and_keep_inner_products(grid: Grid | None, bands: int) -> None:
    tokens = 12 if grid is None else int(torch.tensor(grid).prod())
    one, other = noise(1, (2, tokens, 5)), noise(2, (2, tokens, 5))
    rings = Rings(grid, EDGES[bands], CPU)
    assert rings.bands == (1 if grid is None else bands)
    there, back = rings.forward(one), rings.forward(other)
    parts = [rings.inverse(rings.scaled(there, torch.eye(rings.bands)[b].expand(2, -1))) for b in range(rings.bands)]
    assert torch.allclose(torch.stack(parts).sum(0), one, atol=1e-5)
    assert torch.allclose(rings.inverse(there), one, atol=1e-5)
    assert torch.allclose(rings.dots(there, back).sum(-1), (one * other).sum((1, 2)), atol=1e-3)  # Parseval
    assert torch.allclose(
        rings.dots(there, there), torch.stack([part.square().sum((1, 2)) for part in parts], 1), atol=1e-3
    )


def test_bands_are_rings_from_coarse_to_fine() -> None:
    rings = Rings((8, 8), EDGES[3], CPU)
    flat, checkers = torch.ones(1, 64, 1), (torch.arange(64) // 8 + torch.arange(64)).remainder(2).mul(2.0) - 1
    assert rings.dots(*[rings.forward(flat)] * 2)[0].gt(1e-3).tolist() == [True, False, False]
    power = rings.dots(*[rings.forward(checkers.reshape(1, 64, 1))] * 2)[0]
    assert power.argmax() == 2 and power[0] < 0.01 * power.sum()


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


# storage --------------------------------------------------------------------------------------------------------------


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
