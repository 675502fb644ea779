"""What Cache Calibrate records of a cache: each sample in full, and once more with the cache that is on the model.

Only what every evaluation ends with is looked at: the norm of the predicted noise and the denoised latent, of which the
full run's are held on the processor's side until the sample is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cache_core.gains import Learner
from ..cache_core.gates import Never
from ..cache_core.predictors import Hold
from ..cache_core.session import flow_noise, plain_noise
from ..cache_core.track import Seen
from ..cache_core.types import GUIDED, Method, Rule, Schedule, Signal

FULL = Method("Cache Calibrate", (Rule((GUIDED,), Signal(), Never(), Hold()),))
"""Nothing is skipped."""


class Comparer:
    """Looks on at the runs of one kind, in full (method None) or with a cache, for the `learner` of both. flow: whether
    the model is a flow model; `ticked` is told of every evaluation.
    """

    trials = 1
    """Evaluations that it makes a step."""

    def __init__(self, learner: Learner, method: Method | None, flow: bool, ticked: Callable[[], None]) -> None:
        self.learner, self.cached, self.flow, self.ticked = learner, method is not None, flow, ticked
        self.method = FULL if method is None else method
        self.schedule: Schedule | None = None
        self._seen: set[int] = set()

    def begin(self) -> None:
        """Another sample."""
        self._seen.clear()

    def observe(self, seen: Seen) -> None:
        """Nothing inside is looked at."""

    def around(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, *args: Any, **kw: Any
    ) -> Tensor:
        """PREDICT_NOISE: the first evaluation of a step counts."""
        out: Tensor = executor(x, timestep, model_options, *args, **kw)
        levels = (model_options or {}).get("transformer_options", {}).get("sample_sigmas")
        if levels is not None:
            noise = flow_noise if self.flow else plain_noise
            self.schedule = self.schedule or Schedule(tuple(levels.tolist()), noise, self.flow)
            step = self.schedule.at(float(timestep.flatten()[0]))
            if step.index not in self._seen:
                self._seen.add(step.index)
                told = self.learner.cached if self.cached else self.learner.full
                told(step.index, (x - step.signal * out).float().norm().cpu(), out.detach().to("cpu", copy=True))
        self.ticked()
        return out

    def tables(self) -> dict[str, Tensor]:
        """What was recorded, once every sample is done; runs in full tell nothing by themselves."""
        if self.schedule is None or not self.cached:
            return {}
        total = self.schedule.total
        return {
            "sigmas": torch.tensor(self.schedule.sigmas[:-1]),
            "gain.noise": self.learner.noise(total),
            "gain.channels": self.learner.channels(total),
        }
