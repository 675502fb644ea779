"""The learned forecast and correction, on courses that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cache_core import methods
from cache_core.backtest import BackTested
from cache_core.calibrated import Calibrated, CalibratedRepay, Course, Expectation, course_of
from cache_core.corrections import Repay
from cache_core.placement import places
from cache_core.profile import Profile
from cache_core.session import flow_noise
from cache_core.types import CacheError, Feature, Schedule, Step

T = 20
SCHEDULE = Schedule(tuple(0.98 - 0.96 * i / T for i in range(T + 1)), flow_noise)
STEPS = [SCHEDULE.at(sigma) for sigma in SCHEDULE.sigmas[:-1]]


def curve(step: Step) -> torch.Tensor:
    """b n d: moves along two directions, one of them bent, so that no straight line meets it."""
    first, second, third = torch.randn(3, 1, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return first + second * step.log_noise + third * math.sin(step.log_noise)


def course(steps: list[Step] = STEPS) -> Course:
    rows = torch.stack([curve(step).flatten() for step in steps])
    gram = rows @ rows.T
    return Course(tuple(step.sigma for step in steps), gram / gram.diagonal().mean())


def features(*indices: int) -> tuple[Feature, ...]:
    """Computed at these steps, with what the back-test has learned."""
    found: list[Feature] = []
    for i in indices:
        new = Feature(STEPS[i], curve(STEPS[i]).float())
        found.append(replace(new, learned=BackTested(1).learn(tuple(found), new)[0]))
    return tuple(found)


def off(found: torch.Tensor, step: Step) -> float:
    return float((found - curve(step)).norm() / curve(step).norm())


def test_a_course_of_three_directions_is_forecast_from_three_features() -> None:
    history = features(3, 6, 10)
    learned, tested = Calibrated(1, course()), BackTested(1)
    assert learned.depth == 3
    for ahead in (11, 13, 15):
        error = off(learned.predict(history, STEPS[ahead]), STEPS[ahead])
        assert error < 0.02 and error < off(tested.predict(history[-2:], STEPS[ahead]), STEPS[ahead]) / 2


def test_the_same_between_the_recorded_levels() -> None:
    """Another number of steps: the Gram matrix is interpolated, and stays one."""
    other = Schedule(tuple(0.95 - 0.9 * i / 37 for i in range(38)), flow_noise)
    steps = [other.at(sigma) for sigma in other.sigmas[:-1]]
    products = course().products(steps)
    rows = torch.stack([curve(step).flatten() for step in steps])
    expected = rows @ rows.T
    expected /= course_scale()
    assert torch.allclose(products, expected, rtol=0.05, atol=0.02)
    assert float(torch.linalg.eigvalsh(products).min()) > -1e-9


def course_scale() -> torch.Tensor:
    rows = torch.stack([curve(step).flatten() for step in STEPS])
    return (rows @ rows.T).diagonal().mean()


def test_beyond_the_recording_the_back_test_counts() -> None:
    narrow, history = Calibrated(1, course(STEPS[5:])), features(3, 6, 10)
    plain = BackTested(1)
    assert torch.equal(narrow.predict(history, STEPS[12]), plain.predict(history, STEPS[12]))
    assert not torch.equal(narrow.predict(history, STEPS[12]), history[-1].value)
    history = features(6, 8, 10)
    assert not torch.equal(narrow.predict(history, STEPS[12]), plain.predict(history, STEPS[12]))
    bare = Step(12, T, STEPS[12].sigma, log_noise=STEPS[12].log_noise)
    assert torch.equal(narrow.predict(history, bare), plain.predict(history, bare))
    learned, usual = CalibratedRepay(course=course(STEPS[5:])), Repay()
    known = [STEPS[6], STEPS[8], STEPS[12]]
    assert learned.weights(known, STEPS[10]) != usual.weights(known, STEPS[10])
    assert learned.weights([STEPS[2], *known], STEPS[10]) == usual.weights([STEPS[2], *known], STEPS[10])


def test_the_corrector_interpolates_what_was_recorded() -> None:
    known, at = [STEPS[6], STEPS[8], STEPS[12]], STEPS[10]
    errors = []
    for correction in (CalibratedRepay(course=course()), Repay()):
        found = sum(w * curve(step) for w, step in zip(correction.weights(known, at), known, strict=True))
        errors.append(off(found, at))  # type: ignore[arg-type]
    assert errors[0] < 0.01 and errors[0] < errors[1] / 2


def profile(gram: torch.Tensor) -> Profile:
    about = {"name": "toy", "family": "Toy", "sampler": "euler", "scheduler": "simple", "steps": T, "cfg": 1.0,
             "date": "2026-11-29"}  # fmt: skip
    sigmas = torch.tensor(SCHEDULE.sigmas[:-1])
    return Profile(about, {"sigmas": sigmas, "course.gram": gram, "course.amplified": torch.full((T,), torch.nan)})


def test_auto_takes_both_from_a_profile() -> None:
    rule: Any = methods()["auto"](profile(course().gram), computed=8).rules[0]
    assert isinstance(rule.predictor, Calibrated) and isinstance(rule.correction, CalibratedRepay)
    assert torch.equal(rule.predictor.course.gram, course().gram)
    plain: Any = methods()["auto"](None, computed=8).rules[0]
    assert type(plain.predictor) is BackTested and type(plain.correction) is Repay
    with pytest.raises(CacheError, match="choose another site"):
        methods()["auto"](profile(course().gram), site="trunk")


@pytest.mark.parametrize("spoil", ["nan", "negative", "lopsided", "indefinite", "huge"])
def test_what_is_no_gram_matrix_is_refused(spoil: str) -> None:
    gram = course().gram.clone()
    gram[2, 5] = {"nan": math.nan, "lopsided": gram[2, 5] + 1.0}.get(spoil, gram[2, 5])
    if spoil in ("indefinite", "huge"):
        gram[2, 5] = gram[5, 2] = 1e3 if spoil == "indefinite" else 1e300
    if spoil == "negative":
        gram[3, 3] = -1.0
    with pytest.raises(CacheError, match="no Gram matrix"):
        course_of(profile(gram))


def amplified(gram: torch.Tensor, by: torch.Tensor) -> Profile:
    made = profile(gram)
    return Profile(made.about, {**made.tables, "course.amplified": by})


def test_the_expected_error_is_that_of_runs_like_the_recorded_ones() -> None:
    """One gap by hand: what the corrector leaves of the gap's steps, as a vector, against the Gram matrix's answer."""
    found = Expectation(amplified(course().gram, torch.linspace(4.0, 1.0, T)))
    computed = (0, 3, 6, 10, *range(11, T))
    scale = float(torch.stack([curve(step).flatten() for step in STEPS]).square().sum(1).mean().sqrt())
    total = 0.0
    for last in range(1, 4):
        known = [STEPS[i] for i in computed[max(last - 2, 0) : last + 1]]
        gap = range(computed[last - 1] + 1, computed[last])
        left = torch.zeros_like(curve(STEPS[0]))
        for step in gap:
            weights = course().weights(known, STEPS[step])
            made = sum(w * curve(at) for w, at in zip(weights, known, strict=True))
            left += (SCHEDULE.sigmas[step] - SCHEDULE.sigmas[step + 1]) * (curve(STEPS[step]) - made)
        factor = float(torch.linspace(4.0, 1.0, T)[computed[last]])
        total += (factor * float(left.norm()) / scale) ** 2
    assert found.error(computed) == pytest.approx(math.sqrt(total), rel=1e-3) and total > 0
    assert found.error(tuple(range(T))) == 0
    assert math.isnan(Expectation(profile(course().gram)).error(computed))


def test_the_error_of_a_run_is_told_on_its_own_levels() -> None:
    found = amplified(course().gram, torch.linspace(4.0, 1.0, T))
    method = methods()["auto"](found, computed=10)
    computed = places(T, 10)
    assert method.expected is not None
    assert method.expected(SCHEDULE, computed) == Expectation(found).error(computed)
    other = Schedule(tuple(s**2 for s in SCHEDULE.sigmas), flow_noise)
    unknown = methods()["auto"](profile(course().gram), computed=10).expected
    assert method.expected(other, computed) is None and unknown is not None and unknown(SCHEDULE, computed) is None
    assert methods()["auto"](None, computed=8).expected is None


@pytest.mark.parametrize(("params", "counts"), [({"computed": 10}, True), ({"computed": 9}, False),
                                                ({"quality": "Custom", "speedup": 2.0}, True)])  # fmt: skip
def test_over_wide_gaps_the_back_test_counts(params: dict[str, Any], counts: bool) -> None:
    """From half of the profile's 20 steps on, however many steps the run has."""
    method = methods()["auto"](amplified(course().gram, torch.linspace(4.0, 1.0, T)), **params)
    rule, history = method.rules[0], features(3, 6, 10)
    plain: Any = methods()["auto"](None, **params).rules[0]
    same = torch.equal(rule.predictor.predict(history, STEPS[12]), plain.predictor.predict(history, STEPS[12]))
    assert same != counts and method.remark is not None and method.expected is not None
    weights = [r.correction.weights([STEPS[6], STEPS[8], STEPS[12]], STEPS[10]) for r in (rule, plain)]
    assert (weights[0] == weights[1]) != counts
    assert bool(method.remark(SCHEDULE)) != counts and ("10 computed" in method.remark(SCHEDULE)) != counts
    assert (method.expected(SCHEDULE, places(T, 8)) is None) != counts
