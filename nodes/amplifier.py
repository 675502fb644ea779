"""How far an error of one evaluation moves the picture: the same run again, with one evaluation off by a little.

The run before that evaluation is replayed from what was answered then, so that it costs only what follows; the answer
is off in the direction in which the derivative was moving, as a forecast's is. One sample, at a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..cache_core.gates import Never
from ..cache_core.predictors import Hold
from ..cache_core.session import flow_noise
from ..cache_core.track import Seen
from ..cache_core.types import GUIDED, Method, Rule, Schedule, Signal

SHARE = 0.02
"""How far an answer is off, of the derivative's norm."""
PLACES = (0.0, 0.12, 0.3, 0.6, 1.0)
"""Where, of the run's steps."""
BUDGET = 256 * 2**20
"""Bytes of answers that are held, on the processor's side; of a run with more nothing is learned."""


class Amplifier:
    """Looks on at several runs of one sample. `ticked` is told of every evaluation that is made."""

    def __init__(self, steps: int, ticked: Callable[[], None]) -> None:
        self.steps, self.ticked = steps, ticked
        self.places = sorted({round(place * (steps - 1)) for place in PLACES})
        self.schedule: Schedule | None = None
        self._answers: list[Tensor] = []
        self._first: dict[int, int] = {}  # the first evaluation of each step
        self._sizes: dict[int, Tensor] = {}
        self._moves: dict[int, Tensor] = {}
        self._exact: Tensor | None = None
        self._found: dict[int, float] = {}
        self._before: Tensor | None = None
        self._run, self._count, self.left = -1, 0, 1

    @property
    def method(self) -> Method:
        """Nothing is skipped."""
        return Method("Cache Calibrate", (Rule((GUIDED,), Signal(), Never(), Hold()),))

    @property
    def evaluations(self) -> int:
        """That it makes in all."""
        return self.steps + sum(self.steps - place for place in self.places)

    def observe(self, seen: Seen) -> None:
        """Nothing inside is looked at."""

    def around(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, *args: Any, **kw: Any
    ) -> Any:
        """PREDICT_NOISE."""
        levels = (model_options or {}).get("transformer_options", {}).get("sample_sigmas")
        if levels is not None:
            self.schedule = self.schedule or Schedule(tuple(levels.tolist()), flow_noise)
        number, self._count = self._count, self._count + 1
        wanted = None if self._run < 0 else self._first.get(self.places[self._run])
        if wanted is not None and number < wanted:
            return self._answers[number].to(x)
        out = executor(x, timestep, model_options, *args, **kw)
        self.ticked()
        if self._run < 0:
            self._remember(number, x, out, timestep)
        elif number == wanted:
            return out - timestep.flatten()[0] * self._moves[self.places[self._run]].to(x)
        return out

    def finish(self, latent: Tensor) -> None:
        """A run is over: what has become of the latent. `left` says how many more are wanted."""
        latent, self._count = latent.float().cpu(), 0
        if self._exact is None:
            self._exact, self.left = latent, 1 + len(self._moves)
        elif self.schedule is not None and self.places[self._run] in self._moves:
            place = self.places[self._run]
            width = self.schedule.sigmas[place] - self.schedule.sigmas[place + 1]
            usual = torch.stack(list(self._sizes.values())).square().mean().sqrt()
            off = SHARE * self._sizes[place] / usual * width
            self._found[place] = float((latent - self._exact).norm() / self._exact.norm() / off)
        self._run, self.left = self._run + 1, self.left - 1

    def table(self, total: int) -> Tensor:
        """t: straight lines between the places; not measured: NaN."""
        known = sorted(self._found.items())
        table = torch.full((total,), torch.nan)
        if len(known) < len(self.places) or total != self.steps:
            return table
        for (left, low), (right, high) in pairwise(known):
            shares = torch.linspace(0, 1, right - left + 1)
            table[left : right + 1] = low + (high - low) * shares
        return table

    def _remember(self, number: int, x: Tensor, out: Tensor, sigma: Tensor) -> None:
        """The answer, and in which direction the derivative was moving."""
        if self.schedule is None or out.numel() * out.element_size() * self.steps > BUDGET:
            return
        self._answers.append(out.cpu())
        step = self.schedule.index(float(sigma.flatten()[0]))
        if step in self._first:
            return
        self._first[step] = number
        derivative = ((x - out) / sigma.view(-1, *(1 for _ in x.shape[1:]))).float().cpu()
        self._sizes[step] = derivative.norm()
        if step in self.places:
            move = torch.randn_like(derivative) if self._before is None else derivative - self._before
            self._moves[step] = SHARE * self._sizes[step] * move / move.norm()
        self._before = derivative
