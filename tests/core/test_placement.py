"""Where the computed steps lie: dense early, by noise where a schedule is strongly shifted, later on part of a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tests.whole_run import Features, Run, noise


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
