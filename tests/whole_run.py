"""A run of the engine on features that are known, with Euler behind it, and a history as the engine builds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cache_core.backtest import BackTested
from cache_core.coefficients import IDENTITY
from cache_core.methods.auto import CUSTOM
from cache_core.methods.auto import auto as published
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder
from cache_core.track import Facts, LaneKey
from cache_core.types import Feature, Grid, Method, Past, Probe, Schedule, Step

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
