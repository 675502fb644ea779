"""Steps told by order (reports 14, 15), and what a run's own moves say of its sampler (reports 6, 12)."""

from __future__ import annotations

import itertools

import pytest
import torch

from cache_core.course import OTHER_SIZE, SIGMA_ROSE, SIGMA_ZERO, Course
from cache_core.motion import Motion
from cache_core.session import flow_noise
from cache_core.types import Schedule

T = 20
SIGMAS = tuple(1 - i / T for i in range(T + 1))


def course() -> Course:
    return Course(Schedule(SIGMAS, flow_noise))


def walk(shown: list[list[float]], report: bool) -> list[int]:
    """The steps of evaluations at these levels, a list a step, reported behind the step's first one."""
    run, found = course(), []
    for i, levels in enumerate(shown):
        for n, level in enumerate(levels):
            found.append(run.visit(level, ordered=True).step.index)
            if report and n == 0:
                run.report(i)
    return found


@pytest.mark.parametrize("report", [True, False])
def test_an_ordinary_sampler_is_located_by_its_levels(report: bool) -> None:
    euler = [[sigma] for sigma in SIGMAS[:-1]]
    heun = [[a, b] for a, b in itertools.pairwise(SIGMAS[:-1])]
    midpoint = [[a, (a + b) / 2] for a, b in itertools.pairwise(SIGMAS[:-1])]
    assert walk(euler, report) == list(range(T))
    assert walk(heun, report) == [n for i in range(T - 1) for n in (i, i + 1)]
    assert walk(midpoint, report) == [n for i in range(T - 1) for n in (i, i)]


def test_a_schedule_left_upwards_is_followed_by_order() -> None:
    """Churn: every step begins above its own level. The second one cannot be told from a stage of the first."""
    hat = [[sigma * 1.41] for sigma in SIGMAS[:-1]]
    assert walk(hat, report=True) == [0, 0, *range(2, T)]
    assert walk(hat, report=False) == list(range(T))  # at a constant distance from the first one on


def test_a_schedule_left_downwards_and_back_is_followed_by_order() -> None:
    lying = [[sigma * (1 - 0.5 * max(0.0, 1 - abs(0.5 - sigma) / 0.4))] for sigma in SIGMAS[:-1]]
    found = walk(lying, report=True)
    assert max(abs(index - i) for i, index in enumerate(found)) <= 1
    assert found[3:] == list(range(3, T))


def test_positions_fall_with_the_steps_however_the_levels_lie() -> None:
    run = course()
    sigmas = []
    for i, sigma in enumerate(SIGMAS[:-1]):
        sigmas.append(run.visit(sigma * 1.41, ordered=True).step.sigma)
        run.report(i)
    assert all(after < before for before, after in itertools.pairwise(sigmas[1:]))


def test_what_stands_apart_is_no_step() -> None:
    run = course()
    assert run.visit(0.0, ordered=True).apart == SIGMA_ZERO
    assert run.visit(1.0, ordered=True).apart == ""
    assert run.visit(0.9, ordered=True).apart == ""
    assert run.visit(0.95, ordered=True).apart == SIGMA_ROSE
    assert run.visit(0.5, ordered=True, apart=OTHER_SIZE).apart == OTHER_SIZE
    assert run.visit(0.5, ordered=True).step.stage == 0
    again = run.visit(1.0, ordered=True)
    assert again.again and not again.apart and again.step.stage == 0


def test_a_smaller_latent_between_the_steps_is_apart_and_a_new_size_is_not() -> None:
    run, large, small = course(), (1, 4, 8, 8), (1, 4, 4, 4)
    assert [run.other_size(size) for size in (large, small, large, small, large)] == [False, True, False, True, False]
    assert [run.other_size(size) for size in (small, small, small)] == [True, False, False]


def moves(*steps: str, skipped: tuple[int, ...] = (), again: bool = False) -> Motion:
    """What is seen of a sampler's moves down from 1; `again`: its last evaluation lies above the one before it."""
    random = torch.Generator().manual_seed(0)
    seen = Motion(torch.clone, True)
    x = torch.randn(1, 4, 16, 16, generator=random)
    smooth = torch.linspace(0, 3, 16).sin().expand(1, 4, 16, 16)
    slopes, shown, answers = [], [x], []
    for i, step in enumerate((*steps, "")):
        sigma = torch.tensor(2.0 if again and i == len(steps) else 1 - 0.05 * i)
        seen.arrive(x, sigma)
        told, noise = (torch.randn(1, 4, 16, 16, generator=random) for _ in range(2))
        slopes.append((x - told) / sigma)
        answers.append(told)
        seen.leave(told, computed=i not in skipped)
        seen.read({name: figure.reshape(-1).tolist() for name, figure in seen.figures().items()})
        if not step:
            continue
        before = [slopes[max(i - back, 0)] for back in range(4)]
        straight = x - 0.05 * slopes[-1]
        x = {
            "told": straight,
            "further": x - 0.2 * slopes[-1],
            "two": x - 0.05 * (1.5 * before[0] - 0.5 * before[1]),
            "four": x - 0.05 * (55 * before[0] - 59 * before[1] + 37 * before[2] - 9 * before[3]) / 24,
            "exponential": 0.9 * x + 0.2 * told - 0.1 * answers[max(i - 1, 0)],
            "stage": shown[max(i - 1, 0)] - 0.02 * (slopes[-1] + before[1]),
            "smooth": straight + 0.1 * smooth,
            "noise": straight + 0.1 * noise,
            "little": straight + 0.01 * noise,
            "anew": (0.05 + 0.05 * i) * told + (0.95 - 0.05 * i) * noise,
        }[step]
        shown.append(x)
    return seen


@pytest.mark.parametrize("step", ["told", "further", "two", "four", "exponential", "stage", "smooth"])
def test_a_sampler_that_follows_what_it_is_told_is_no_noisy_one(step: str) -> None:
    """Whatever it makes of older answers, and however rough these are."""
    seen = moves(*[step] * 8)
    assert (seen.stochastic, seen.gone) == (False, 0.0)


@pytest.mark.parametrize("step", ["noise", "little"])
def test_noise_of_the_samplers_own_is_seen(step: str) -> None:
    assert moves(step).stochastic


@pytest.mark.parametrize("before", ["told", "four"])
def test_noise_that_begins_late_is_seen(before: str) -> None:
    """At its first computed evaluation: moves between two skipped ones are not looked at."""
    assert moves(*[before] * 7, "noise").stochastic
    assert not moves(*[before] * 7, "noise", skipped=(8,)).stochastic
    assert moves(*[before] * 7, "noise", "noise", skipped=(7, 8)).stochastic


def test_a_schedule_that_starts_again_says_nothing() -> None:
    assert not moves("told", "told", "anew", again=True).stochastic


def test_a_latent_that_is_thrown_away_always_is_made_anew() -> None:
    """From pure noise, other samplers do it in the stages of their first step."""
    assert moves(*["anew"] * 4).gone > 0.9
    assert moves(*["anew"] * 3).gone == 0.0 and moves(*["anew"] * 3).doubtful(0.9)
    assert moves(*["anew"] * 3, "noise").gone < 0.2
    assert moves("told", *["anew"] * 5).gone == 0.0
    assert not moves("noise").doubtful(0.9) and not moves("told").doubtful(0.9)


def test_what_cannot_be_compared_is_not_measured() -> None:
    seen = Motion(torch.clone, True)
    x = torch.randn(1, 4, 8, 8)
    seen.arrive(x, torch.tensor(1.0))
    seen.look_away()
    seen.leave(x * 0.5)
    seen.arrive(torch.randn(1, 4, 8, 8), torch.tensor(0.9))
    assert not seen.figures()


@pytest.mark.parametrize(("same", "expected"), [("denoised", True), ("slope", True), ("input", False), ("none", False)])
def test_a_model_that_repeats_itself_is_seen(same: str, expected: bool) -> None:
    """One answer for two inputs is a cache's; for one and the same input it is the model's."""
    random = torch.Generator().manual_seed(0)
    x, other, answer, new = (torch.randn(1, 4, 8, 8, generator=random) for _ in range(4))
    seen = Motion(torch.clone, True)
    for latent, level, first in ((x, 1.0, True), (x if same == "input" else other, 0.8, False)):
        sigma = torch.tensor(level)
        told = {"slope": latent - sigma * answer, "none": answer if first else new}.get(same, answer)
        seen.computed(latent, told, sigma)
    seen.read({name: figure.reshape(-1).tolist() for name, figure in seen.figures().items()})
    assert seen.repeats is expected
