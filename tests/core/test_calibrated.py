"""The learned forecast and correction, on courses that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cache_core import methods
from cache_core.backtest import BackTested
from cache_core.calibrated import Calibrated, CalibratedRepay, Course, course_of
from cache_core.corrections import Repay
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
    return tuple(Feature(STEPS[i], curve(STEPS[i]).float()) for i in indices)


def off(found: torch.Tensor, step: Step) -> float:
    return float((found - curve(step)).norm() / curve(step).norm())


def test_a_course_of_three_directions_is_forecast_from_three_features() -> None:
    history = features(3, 6, 10)
    learned, tested = Calibrated(1, course()), BackTested(1)
    assert learned.depth == 3
    for ahead in (11, 13, 15):
        assert off(learned.predict(history, STEPS[ahead]), STEPS[ahead]) < 0.02
        assert off(tested.predict(history[-2:], STEPS[ahead]), STEPS[ahead]) > 0.05


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


@pytest.mark.parametrize("spoil", ["nan", "negative", "lopsided"])
def test_what_is_no_gram_matrix_is_refused(spoil: str) -> None:
    gram = course().gram.clone()
    gram[2, 5] = {"nan": math.nan, "lopsided": gram[2, 5] + 1.0}.get(spoil, gram[2, 5])
    if spoil == "negative":
        gram[3, 3] = -1.0
    with pytest.raises(CacheError, match="no Gram matrix"):
        course_of(profile(gram))
