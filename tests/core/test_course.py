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


def moves(*steps: str, suspect: bool = False) -> Motion:
    """What is seen of a sampler's moves from 1 to 0.9, and so on."""
    random = torch.Generator().manual_seed(0)
    seen = Motion(torch.clone, True, suspect=suspect)
    x = torch.randn(1, 4, 16, 16, generator=random)
    smooth = torch.linspace(0, 3, 16).sin().expand(1, 4, 16, 16)
    for level, step in zip((1.0, 0.9, 0.8, 0.7), (*steps, ""), strict=False):
        sigma = torch.tensor(level)
        seen.arrive(x, sigma)
        seen.read({name: float(figure) for name, figure in seen.figures().items()})
        if not step:
            break
        told, noise = (torch.randn(1, 4, 16, 16, generator=random) for _ in range(2))
        slope = (x - told) / sigma
        seen.leave(x, told, sigma)
        x = {
            "told": x - 0.1 * slope,
            "further": x - 0.2 * slope,
            "stage": x - 0.05 * slope,
            "smooth": x - 0.1 * slope + 0.1 * smooth,
            "noise": x - 0.15 * slope + 0.1 * noise,
            "anew": told + level * noise,
        }[step]
    return seen


@pytest.mark.parametrize("step", ["told", "further", "stage", "smooth"])
def test_a_sampler_that_follows_what_it_is_told_is_no_noisy_one(step: str) -> None:
    seen = moves(step)
    assert (seen.measured, seen.stochastic, seen.gone) == (True, False, 0.0)


def test_noise_of_the_samplers_own_is_seen() -> None:
    assert moves("noise").stochastic


def test_later_moves_count_where_the_sampler_is_said_to_add_noise() -> None:
    """They follow what was told before, too, so that else nothing can be said of them."""
    assert not moves("told", "noise").stochastic
    assert moves("told", "noise", suspect=True).stochastic
    assert not moves("told", "told", suspect=True).stochastic


def test_a_latent_that_is_thrown_away_twice_is_made_anew() -> None:
    """From pure noise, other samplers do it once."""
    assert moves("anew", "anew").gone > 0.9
    assert moves("anew").gone == 0.0
    assert moves("anew", "noise").gone < 0.5


def test_what_cannot_be_compared_is_not_measured() -> None:
    seen = Motion(torch.clone, True)
    x = torch.randn(1, 4, 8, 8)
    seen.arrive(x, torch.tensor(1.0))
    seen.look_away()
    seen.leave(x, x * 0.5, torch.tensor(1.0))
    seen.arrive(torch.randn(1, 4, 8, 8), torch.tensor(0.9))
    assert not seen.figures() and not seen.measured


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
    seen.read({name: float(figure) for name, figure in seen.figures().items()})
    assert seen.repeats is expected
