"""What the node costs while it skips nothing: end to end on a middling model, and its own time on a minimal one.

The effect is far below what a machine drifts by, so it needs many short runs: each round makes one run of every kind
in random order, and only runs of one round are compared. An untouched clone of the model is the control: it is the
model itself, so what it differs by is what the clock cannot tell apart.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.lab import Lab, Sampled
from bench.lab.sizes import Size, build, conditioning, moderate, reduced
from cache_core import methods

NONE, NEVER, CLONE = "no node", "gate never", "an untouched clone"
STEPS = 10
MIDDLING, SMALLEST = moderate(256, 2, 4, 32), moderate(128, 1, 1, 16)
GPU_BLOCKS = (2, 4)
"""Of a real model on a GPU: few enough for many rounds, wide enough that the GPU and not Python sets the pace."""


@dataclass(slots=True)
class Idle:
    """Round by round: `shares`, each kind's run over the run without the node, minus 1; `own`, the seconds that the
    node adds to an evaluation of the minimal model. `evaluation`: seconds of one of the middling model, no node.
    """

    size: Size
    evaluation: float = 0.0
    shares: dict[str, list[float]] = field(default_factory=dict)
    own: list[float] = field(default_factory=list)


def middling(size: Size, device: str) -> Size:
    """The model to time: a piece of the one that the bench is about on a GPU, a small FLUX else."""
    if device == "cpu" or size.dtype == torch.float32:
        return MIDDLING
    double, single = GPU_BLOCKS
    return reduced(size, double, single) if size.singles else reduced(size, double + single)


def measure(lab: Lab, size: Size, rounds: int, cfg: float, say: Callable[[str], None], until: float = math.inf) -> Idle:
    """Both measurements, `rounds` rounds each, fewer where the first would last beyond `until` of `time.monotonic`.
    `size` is what the bench is about.
    """
    idle = Idle(middling(size, lab.device), shares={NEVER: [], CLONE: []})
    say(f"The idle node: {rounds} rounds")
    evaluations = []
    for runs in _rounds(lab, idle.size, (NONE, NEVER, CLONE), rounds, cfg):
        for name, shares in idle.shares.items():
            shares.append(runs[name].total / runs[NONE].total - 1)
        evaluations += runs[NONE].seconds[1:]
        if time.monotonic() > until:
            break
    idle.evaluation = statistics.median(evaluations)
    for runs in _rounds(lab, SMALLEST, (NONE, NEVER), rounds, cfg):
        idle.own.append((runs[NEVER].total - runs[NONE].total) / STEPS)
    return idle


def _rounds(lab: Lab, size: Size, names: tuple[str, ...], rounds: int, cfg: float) -> Iterator[Mapping[str, Sampled]]:
    """One run of each kind a round, in random order, the same order at every call."""
    model = build(size, lab.device)
    models = {NONE: model, NEVER: lab.attach(model, never()), CLONE: model.clone()}
    noise = torch.randn(size.latent, generator=torch.Generator().manual_seed(0))
    positive, negative = conditioning(size, 1), conditioning(size, 2)
    shuffled = random.Random(0)
    for index in range(-1, rounds):
        order = shuffled.sample(names, len(names))
        runs = {name: lab.sample(models[name], noise, positive, negative, cfg, STEPS) for name in order}
        if not all(all(run.computed) for run in runs.values()):
            raise RuntimeError("an evaluation was skipped where none may be")
        if index >= 0:  # the first loads the model
            yield runs


def never() -> Any:
    """The method of an Apply node that is switched off by its settings."""
    return methods()["spectralcache"](threshold=0.0)
