"""An arm is one way to make a picture: a small frozen class a kind, each with its own set-up."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bench.lab.store import code_version, digest
from cache_core import methods, placement
from cache_core.types import Method

if TYPE_CHECKING:
    from bench.lab.painter import Painter

EULER = "euler"
TWICE = ("heun", "dpm_2")
"""Samplers that evaluate each step twice, but the last."""
SHOWN = ("family", "name", "core", "quick")
"""What only names an arm or says where it is measured: no figure depends on it."""

method_version = functools.cache(code_version)


class SetUp(NamedTuple):
    """What is sampled: a model, the number of steps, and noise levels where they are not the scheduler's."""

    model: Any
    steps: int
    sigmas: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """core: measured at every number of steps and guidance, not only on the main grid. quick: part of --quick."""

    family: str
    name: str
    core: bool = field(default=False, kw_only=True)
    quick: bool = field(default=False, kw_only=True)
    sampler: str = field(default=EULER, kw_only=True)

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        """For a pair whose full run has `steps` steps."""
        raise NotImplementedError

    @property
    def solver(self) -> str:
        """The sampler that it runs on; `sampler` is its full run's."""
        return self.sampler

    def version(self) -> str:
        """Of the code of ours that it goes through; nothing for arms without."""
        return ""

    def key(self) -> str:
        """What a finished run is known by, besides its version: kind and settings."""
        settings = {name: value for name, value in asdict(self).items() if name not in SHOWN}
        return json.dumps([type(self).__name__, settings], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Plain(Arm):
    """The plain sampler with this many steps."""

    count: int

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        return SetUp(studio.model, self.count)


@dataclass(frozen=True, slots=True)
class Dense(Arm):
    """The plain sampler with this many steps, on an early-dense subset of the full run's noise levels."""

    count: int
    power: float

    def chosen(self, steps: int) -> list[int]:
        return places(steps, self.count, self.power)

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        return SetUp(studio.model, self.count, studio.sigmas(steps)[[*self.chosen(steps), steps]])


@dataclass(frozen=True, slots=True)
class Alike(Dense):
    """The same on the noise levels that SpectralCache Auto's plan computes."""

    power: float = field(default=0.0, init=False)

    def chosen(self, steps: int) -> list[int]:
        return list(placement.places(steps, self.count))

    def version(self) -> str:
        return digest([Path(placement.__file__).read_text("utf-8")])


@dataclass(frozen=True, slots=True)
class Cached(Arm):
    """A method of cache_core, named by its file; without a name one that a table composes itself (`made`)."""

    method: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> Method:
        return methods()[self.method](**self.params)

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        return SetUp(studio.lab.attach(studio.model, self.made()), steps)

    def version(self) -> str:
        return method_version((self.method,) if self.method else ())


@dataclass(frozen=True, slots=True)
class Shipped(Arm):
    """EasyCache or LazyCache, which ComfyUI ships (comfy_extras.nodes_easycache), with their nodes' other defaults.

    EasyCache adds its cached change to the model's input in place. In float32, as here, that input is the tensor from
    which ComfyUI then forms the denoised latent, which ruins the picture; in half precision a cast copies it. So it is
    measured as it works there, on a copy, unless `repaired` is off.
    """

    kind: str
    threshold: float
    repaired: bool = True

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        node = getattr(importlib.import_module("comfy_extras.nodes_easycache"), f"{self.kind}Node")
        guarded = studio.model.clone()
        if self.repaired:
            guarded.add_wrapper_with_key("diffusion_model", "bench copies the input", copied_input)
        made = node.execute(
            guarded, reuse_threshold=self.threshold, start_percent=0.15, end_percent=0.95, verbose=False
        )
        return SetUp(made.args[0], steps)


def copied_input(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)


@dataclass(frozen=True, slots=True)
class On(Arm):
    """Another arm on another sampler, and on another scheduler, than the full run that it is compared with."""

    arm: Arm
    other: str
    scheduler: str = "simple"

    @property
    def solver(self) -> str:
        return self.other

    def set_up(self, studio: Painter, steps: int) -> SetUp:
        model, count, _ = self.arm.set_up(studio, steps)
        return SetUp(model, count, studio.sigmas(count, self.scheduler))

    def version(self) -> str:
        return self.arm.version()

    def key(self) -> str:
        return json.dumps([type(self).__name__, self.arm.key(), self.other, self.scheduler])


def evaluations(sampler: str, steps: int) -> int:
    """Of a full run."""
    return 2 * steps - 1 if sampler in TWICE else steps


def places(total: int, count: int, power: float) -> list[int]:
    """Steps round((T - 1)·(k / (F - 1))^p), k = 0 .. F - 1: the first, the last, and dense early for p > 1.

    Places that would fall together move on by one step, so that there are F of them.
    """
    found: list[int] = []
    for k in range(count):
        place = round((total - 1) * (k / (count - 1)) ** power) if count > 1 else 0
        found.append(max(place, found[-1] + 1) if found else place)
    while found and found[-1] > total - 1:  # only where count is near total
        found = [min(place, total - count + i) for i, place in enumerate(found)]
    return found
