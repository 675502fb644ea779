"""The noise that a sampler draws, told from what it was told."""

from __future__ import annotations

import torch

from cache_core.coefficients import IDENTITY
from cache_core.drawn import Drawn
from cache_core.methods import auto, methods
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder
from cache_core.track import Facts, LaneKey
from cache_core.types import Probe, Schedule

LEVELS = [torch.tensor(level) for level in (1.0, 0.8, 0.5, 0.2)]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 4, 6, 6)), generator=torch.Generator().manual_seed(seed))


def run(drawn: Drawn, noise: list[torch.Tensor]) -> torch.Tensor:
    """Euler's steps to a fixed picture, each with noise beside it; the last latent."""
    x, picture = normal(0), normal(1)
    for i, sigma in enumerate(LEVELS):
        drawn.arrive(x, sigma)
        drawn.leave(x, picture, sigma)
        if i < len(noise):
            x = picture + (x - picture) * (LEVELS[i + 1] / sigma) + noise[i]
    return x


def test_a_sampler_that_goes_where_it_is_told_has_drawn_nothing() -> None:
    drawn = Drawn(torch.clone)
    run(drawn, [torch.zeros(1)] * 3)
    assert drawn.total is not None and drawn.total.abs().max() < 1e-5


def test_what_was_drawn_is_in_the_derivative_of_a_model_that_takes_it_out() -> None:
    """The picture stays, so that the derivative less the noise is the one at the start, whatever was drawn."""
    drawn, noise = Drawn(torch.clone), [0.3 * normal(seed) for seed in (2, 3, 4)]
    x = run(drawn, noise)
    assert drawn.total is not None
    expected = sum(each / level for each, level in zip(noise, LEVELS[1:], strict=True))
    torch.testing.assert_close(drawn.total, expected)
    torch.testing.assert_close((x - normal(1)) / LEVELS[-1] - drawn.total, normal(0) - normal(1))


def test_rows_of_a_call_are_the_latent_once_or_several_times() -> None:
    drawn = Drawn(torch.clone)
    assert drawn.within(normal(0)) is None  # nothing is known yet
    run(drawn, [normal(seed) for seed in (2, 3, 4)])
    twice = drawn.within(normal(0, 4, 4, 6, 6))
    assert twice is not None and torch.equal(twice, torch.cat([drawn.total, drawn.total]))
    assert drawn.within(normal(0, 2, 4, 6, 4)) is None  # a tile
    assert drawn.within(normal(0, 3, 4, 6, 6)) is None


def test_another_size_leaves_what_is_known_as_it_is() -> None:
    drawn = Drawn(torch.clone)
    run(drawn, [normal(seed) for seed in (2, 3, 4)])
    before = drawn.total
    drawn.arrive(normal(5, 2, 4, 3, 3), LEVELS[1])
    drawn.leave(normal(5, 2, 4, 3, 3), normal(6, 2, 4, 3, 3), LEVELS[1])
    assert drawn.total is before
    assert len(list(drawn.tensors())) == 4
    drawn.arrive(normal(7), LEVELS[3])  # and the next latent is compared with the last one of its own size
    assert drawn.total is not before
    drawn.clear()
    assert not list(drawn.tensors()) and drawn.within(normal(0)) is None


def test_what_was_drawn_before_a_schedule_starts_again_is_forgotten() -> None:
    """A second pass begins from another latent (detailers, restarts of a sampler)."""
    method = methods()["auto"](computed=6, quality="Custom")
    sigmas = tuple(1 - i / 12 for i in range(13))
    session = Session(method, Schedule(sigmas, flow_noise), Recorder("toy", {}, "toy", "model", 12), measures=True)
    (track,), held, x, picture = session.tracks, [], normal(0), normal(1)
    for i, sigma in enumerate([*sigmas[:-1], *sigmas[:3]]):
        level = torch.tensor([sigma])
        session.begin(level)
        session.look(x)
        call = session.open([LaneKey("cond")], [slice(0, 2)])
        track.enter(call, Facts(x.shape, x.dtype, torch.device("cpu")), lambda _: Probe(), IDENTITY)
        held.append(session.drawn.total is not None)
        session.answer(x, picture)
        session.end()
        x = picture + (x - picture) * (1 - 1 / 12 / sigma) + 0.3 * normal(100 + i)
    session.close()
    assert session.motion is not None and session.motion.stochastic
    assert held[11] and not held[12]


def test_auto_alone_keeps_noise_apart() -> None:
    """Published methods stay as published."""
    rules = {name: made(**{}).rules for name, made in methods().items() if name != "auto"}
    assert not any(rule.drawn for own in rules.values() for rule in own)
    assert all(rule.drawn == auto.DRAWN for rule in methods()["auto"]().rules)
