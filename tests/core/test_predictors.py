"""Predictors: exact where they claim to be, as published where they say so, linear always."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.methods.freqca import freqca
from cache_core.predictors import Hold, Linear, Weighted, bands, hermite, newton, taylor
from cache_core.types import CacheError, Feature, Method, Step

GRID = (4, 6)


def history(points: list[tuple[int, float]], values: list[torch.Tensor] | None = None) -> tuple[Feature, ...]:
    values = values or [torch.zeros(1)] * len(points)
    return tuple(Feature(at(step, sigma), value) for (step, sigma), value in zip(points, values, strict=True))


def at(step: int, sigma: float = 0.0) -> Step:
    return Step(step, 50, sigma)


ALL = [Hold(), Linear(0.5), Linear(1.0, "step"), newton(1), newton(2), taylor(1), taylor(2), hermite(1), hermite(2)]
UNEVEN = [(2, 0.9), (3, 0.85), (9, 0.4)]


@pytest.mark.parametrize("predictor", ALL)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_add_up_to_one_with_any_history(predictor: Weighted, count: int) -> None:
    points = UNEVEN[-count:]
    weights = predictor.weights(history(points), at(11, 0.3))
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1.0)


@given(
    st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4, unique=True),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.sampled_from([1, 2]),
)
@settings(max_examples=200, deadline=None)
def test_newton_is_exact_on_polynomials_at_uneven_spacing(
    sigmas: list[float], coefficients: list[float], order: int
) -> None:
    sigmas = sorted(sigmas, reverse=True)
    gaps = [a - b for a, b in itertools.pairwise(sigmas)]
    if min(gaps) < 0.02:
        return

    def polynomial(sigma: float) -> float:
        return sum(c * sigma**k for k, c in enumerate(coefficients[: order + 1]))

    entries = history([(i, s) for i, s in enumerate(sigmas[:3])])
    weights = newton(order).weights(entries, at(3, sigmas[3]))
    predicted = sum(w * polynomial(s) for w, s in zip(weights, sigmas[:3], strict=True))
    assert predicted == pytest.approx(polynomial(sigmas[3]), abs=1e-6 * max(1, *(abs(w) for w in weights)))


def test_linear_is_exact_on_a_line_and_its_damping_scales_the_slope() -> None:
    entries = history([(0, 1.0), (3, 0.7)])
    for sigma in (0.6, 0.35):
        assert Linear(1.0).weights(entries, at(5, sigma)) == pytest.approx(newton(1).weights(entries, at(5, sigma)))
    half = Linear(0.5).weights(entries, at(5, 0.4))
    assert half == pytest.approx([-0.5, 1.5])
    assert Linear(0.0).weights(entries, at(5, 0.4)) == pytest.approx(Hold().weights(entries, at(5, 0.4)))


@pytest.mark.parametrize(
    ("x", "first", "second"),
    [(1, 1.008, 0.004), (2, 2.016, 1.529), (3, 3.025, 4.070), (5, 5.041, 12.20), (8, 8.066, 32.02)],
)
def test_hermite_has_freqcas_weights(x: int, first: float, second: float) -> None:
    """alpha_1 and alpha_2 of the reference's table 1.5, read off a history whose differences are known (N = 6)."""
    n = 6
    w = hermite(2).weights(history([(2, 0.9), (8, 0.6), (14, 0.3)]), at(14 + x))
    curvature = w[0] * n * n  # weight of the oldest feature: alpha_2 / N²
    slope = -w[1] * n - 2 * curvature / n  # middle: -alpha_1 / N - 2 alpha_2 / N²
    assert curvature == pytest.approx(second, abs=5e-3)
    assert slope == pytest.approx(first, abs=1e-3)


def test_taylor_is_taylorseers_and_not_the_parabola() -> None:
    """y = t² at 0, 1, 2, 3: published 15, 23, 33 where 16, 25, 36 is right (reference: libs_and_style A1.6)."""
    entries = history([(1, 0.9), (2, 0.8), (3, 0.7)])
    squares = [1.0, 4.0, 9.0]

    def predicted(predictor: Weighted, step: int) -> float:
        return sum(w * y for w, y in zip(predictor.weights(entries, at(step)), squares, strict=True))

    assert [predicted(taylor(2), step) for step in (4, 5, 6)] == pytest.approx([15, 23, 33])
    assert [predicted(newton(2, "step"), step) for step in (4, 5, 6)] == pytest.approx([16, 25, 36])


def test_uneven_spacing_is_respected_unless_the_released_arithmetic_is_asked_for() -> None:
    """First step behind the warm-up: anchors 1, 2, 8. On t² the second derivative is 2; the release finds 7 / 6."""
    entries = history([(1, 0.9), (2, 0.8), (8, 0.4)])
    squares = [1.0, 4.0, 64.0]

    def curvature(published: bool) -> float:
        one = taylor(2, published).weights(entries, at(9))
        line = taylor(1, published).weights(entries, at(9))
        return 2 * sum((a - b) * y for a, b, y in zip(one, line, squares, strict=True))

    assert curvature(False) == pytest.approx(2.0)
    assert curvature(True) == pytest.approx((10.0 - 3.0) / 6)


@pytest.mark.parametrize("published", [False, True])
def test_the_warm_up_forms_no_second_difference(published: bool) -> None:
    """Derivatives exist from step 2 on: at step 2 only the first, from steps 1 and 2 (reference 1.4)."""
    warm, later = history([(0, 1.0), (1, 0.9), (2, 0.8)]), history([(1, 0.9), (2, 0.8), (6, 0.4)])
    assert hermite(2, published=published).weights(warm, at(4))[0] == 0
    assert hermite(2, published=published).weights(later, at(8))[0] != 0


@pytest.mark.parametrize("order", [-1, 3])
def test_an_order_that_the_history_cannot_serve_is_refused(order: int) -> None:
    for predictor in (newton, taylor, hermite):
        with pytest.raises(CacheError, match=f"order {order} needs"):
            predictor(order)


# bands ----------------------------------------------------------------------------------------------------------------


def random_history(seed: int = 0) -> tuple[Feature, ...]:
    generator = torch.Generator().manual_seed(seed)
    return history(UNEVEN, [torch.randn(1, 24, 5, generator=generator) for _ in UNEVEN])


@pytest.mark.parametrize("transform", ["dct", "fft"])
@pytest.mark.parametrize("low", [Hold(), hermite(2), newton(1)])
@pytest.mark.parametrize("high", [Hold(), hermite(2), newton(2)])
def test_bands_are_each_predicted_by_their_own(transform: str, low: Weighted, high: Weighted) -> None:
    """Against the definition: split every feature, predict each band, add."""
    from cache_core.spectrum import low_pass

    entries, now = random_history(), at(11, 0.3)
    lows = [low_pass(e.value, GRID, transform, 0.4) for e in entries]
    highs = [e.value - part for e, part in zip(entries, lows, strict=True)]
    expected = sum(w * v for w, v in zip(low.weights(entries, now), lows, strict=True))
    expected = expected + sum(w * v for w, v in zip(high.weights(entries, now), highs, strict=True))
    predictor = bands(low, high, transform, 0.4)
    assert torch.allclose(predictor.predict(entries, now, GRID), expected, atol=1e-4)


def test_hold_in_both_bands_is_hold() -> None:
    entries = random_history()
    assert bands(Hold(), Hold(), "dct", 0.3).predict(entries, at(11, 0.3), GRID) is entries[-1].value


def test_without_a_grid_the_high_band_stands_in_for_all() -> None:
    entries, now = random_history(), at(11, 0.3)
    got = bands(Hold(), newton(2), "dct", 0.3).predict(entries, now, None)
    assert torch.equal(got, newton(2).predict(entries, now))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arithmetic_is_float32_and_the_result_in_the_features_precision(dtype: torch.dtype) -> None:
    entries = tuple(Feature(e.at, e.value.to(dtype)) for e in random_history())
    exact = tuple(Feature(e.at, e.value.to(dtype).double()) for e in random_history())
    now = at(11, 0.3)
    got = newton(2).predict(entries, now)
    weights = newton(2).weights(exact, now)
    expected = sum(w * e.value for w, e in zip(weights, exact, strict=True))
    assert got.dtype == dtype
    assert torch.allclose(got.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_nothing_stored_is_written_to() -> None:
    entries = random_history()
    copies = [e.value.clone() for e in entries]
    for predictor in (
        newton(2),
        hermite(2),
        bands(Hold(), hermite(2), "dct", 0.3),
        bands(newton(1), Hold(), "fft", 0.3),
    ):
        predictor.predict(entries, at(11, 0.3), GRID)
    assert all(torch.equal(e.value, copy) for e, copy in zip(entries, copies, strict=True))


# the method -----------------------------------------------------------------------------------------------------------


def computed_steps(method: Method, total: int) -> list[int]:
    from cache_core.coefficients import IDENTITY

    gate = method.rules[0].gate
    return [t for t in range(total) if not gate.decide({}, Step(t, total, 1 - t / total), IDENTITY).skip]


@pytest.mark.parametrize(
    ("total", "interval", "computed"),
    [
        (50, 6, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44, 49]),
        (50, 9, [0, 1, 2, 11, 20, 29, 38, 47, 49]),
        (50, 10, [0, 1, 2, 12, 22, 32, 42, 49]),
        (28, 6, [0, 1, 2, 8, 14, 20, 26, 27]),
        (20, 4, [0, 1, 2, 6, 10, 14, 18, 19]),
        (8, 2, [0, 1, 2, 4, 6, 7]),
        (4, 2, [0, 1, 2, 3]),
    ],
)
def test_freqcas_schedule(total: int, interval: int, computed: list[int]) -> None:
    """The released schedules, plus the last step."""
    assert computed_steps(freqca(interval=interval), total) == computed


def test_last_steps_and_the_window() -> None:
    assert computed_steps(freqca(interval=5, last_steps=3), 20)[-4:] == [12, 17, 18, 19]
    inside = computed_steps(freqca(interval=5, warmup_steps=1, start_percent=0.5, end_percent=0.7), 20)
    assert [t for t in range(20) if t not in inside] == [11, 12, 13, 14]


def test_interval_one_is_off_and_a_fixed_schedule_reads_nothing() -> None:
    assert freqca(interval=1).never
    assert freqca(interval=3).rules[0].signal.needs == frozenset()
    assert freqca(schedule="adaptive").rules[0].signal.needs == {"modulated"}
    assert freqca(schedule="adaptive", threshold=0).never


@pytest.mark.parametrize("low", [0, 1, 2])
@pytest.mark.parametrize("high", [0, 1, 2])
@pytest.mark.parametrize("predictor", ["hermite", "newton", "taylor", "linear"])
def test_history_is_at_most_three_features(low: int, high: int, predictor: str) -> None:
    depth = freqca(low_order=low, high_order=high, predictor=predictor).rules[0].predictor.depth
    assert depth == (max(low, high) + 1 if predictor != "linear" else min(2, max(low, high) + 1)) <= 3


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"cutoff": 0.0}, "cutoff is 0.0; use a number from 0.001 to 1"),
        ({"high_order": 3}, "high_order is 3; use a number from 0 to 2"),
        ({"interval": 0}, "interval is 0"),
        ({"transform": "wavelet"}, "transform is 'wavelet'; use dct or fft or none"),
        ({"predictor": "magic"}, "predictor is 'magic'"),
        ({"start_percent": 0.9, "end_percent": 0.1}, "start_percent 0.9 is above end_percent 0.1"),
    ],
)
def test_bad_parameters_name_the_value_and_the_way_out(params: dict, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        freqca(**params)
