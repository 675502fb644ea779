"""The runs of `bench mine`: kept one by one, pictures too, so that whatever stops it costs one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.lab.arms import Arm
from bench.lab.grid import Group, control, row
from bench.lab.lab import Sampled
from bench.lab.painter import Painter
from bench.lab.pairs import Pair
from bench.lab.runner import Runner
from bench.lab.store import Store, digest
from bench.tables.mine.grid import evaluations, expected
from bench.tables.mine.loading import Unusable, free
from cache_core.metrics import psnr

CONVERGED = "heun"
Say = Callable[[str], None]


class Keeper(Runner):
    """A Runner that keeps every picture, and measures each against a converged one too (`exact` steps of heun)."""

    def __init__(self, studio: Painter, folder: Path, exact: int) -> None:
        super().__init__(studio, Store(folder))
        self.folder, self.exact = folder, exact
        self._converged: tuple[Pair, torch.Tensor] | None = None

    def file(self, arm: Arm, pair: Pair, steps: int) -> Path:
        """Where a run's picture is, once it was made."""
        return self.folder / f"{self.key(arm, pair, steps)}.png"

    def missing(self, arm: Arm, pair: Pair, steps: int) -> bool:
        return self.store.get(self.key(arm, pair, steps)) is None

    def reference(self, pair: Pair, steps: int) -> None:
        """The full run and the converged picture of a pair: nothing can be measured without them."""
        self._full(pair, steps)
        self._exactly(pair)

    def key(self, arm: Arm, pair: Pair, steps: int) -> str:
        return digest([super().key(arm, pair, steps), str(self.exact)])

    def _uncached(self, pair: Pair, steps: int, sampler: str) -> Sampled:
        """Once: what a GPU's own noise is, the table's row of the full run made again says."""
        return self.studio.make(self.studio.model, pair, steps, None, sampler)

    def _seen(self, arm: Arm, pair: Pair, steps: int, picture: torch.Tensor) -> float | None:
        save(picture, self.file(arm, pair, steps))
        converged = self._exactly(pair)
        return None if converged is None else psnr(picture, converged)

    def _exactly(self, pair: Pair) -> torch.Tensor | None:
        if not self.exact:
            return None
        if self._converged is None or self._converged[0] != pair:
            file = self.folder / f"{digest([self._ground, repr(pair), str(self.exact)])}.pt"
            if file.exists():
                latent = torch.load(file, weights_only=True)
            else:
                latent = self.studio.make(self.studio.model, pair, self.exact, None, CONVERGED).latent
                torch.save(latent.clone(), file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
            self._converged = (pair, self.studio.picture(latent))
        return self._converged[1]


def save(picture: torch.Tensor, file: Path) -> None:
    """The first of b h w c."""
    pixels = (picture[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file)


@dataclass(slots=True)
class Progress:
    """How far it is. made: evaluations' worth of runs that were made here, in `seconds`; left: of those to come."""

    left: float
    second: float
    made: float = 0.0
    seconds: float = 0.0

    def did(self, work: float, seconds: float) -> None:
        self.left, self.made, self.seconds = self.left - work, self.made + work, self.seconds + seconds

    def line(self) -> str:
        rate = self.seconds / self.made if self.made else self.second
        return f"about {duration(self.left * rate)} left"


@dataclass(slots=True)
class Made:
    """What there is when it ends, however it ends. failed: name of an arm to the reason; finished: runs with their
    controls; done: pairs with every arm.
    """

    failed: dict[str, str] = field(default_factory=dict)
    finished: set[tuple[Pair, str]] = field(default_factory=set)
    done: list[Pair] = field(default_factory=list)
    stopped: bool = False


def make(runner: Keeper, group: Group, second: float, say: Say, after: Callable[[Made], None]) -> Made:
    """Every run of the group that is not there yet; `after` each pair, and when it is stopped.

    An arm that fails is left out from then on, with its reason. `second`: of one evaluation, measured before.
    """
    made = Made()
    todo = {(pair, arm.name) for pair in group.pairs for arm in group.arms if runner.missing(arm, pair, group.steps)}
    work = {arm.name: expected(arm, group.steps) for arm in group.arms}
    first = evaluations((), group.steps, runner.exact)
    progress = Progress(sum(work[name] for _, name in todo) + first * len({pair for pair, _ in todo}), second)
    try:
        for pair in group.pairs:
            if any((pair, arm.name) in todo for arm in group.arms):
                say(f"{pair.prompt[:60]}: the full run{' and a converged one' if runner.exact else ''}")
                begun = time.monotonic()
                reference(runner, pair, group.steps)
                progress.did(first, time.monotonic() - begun)
            for arm in group.arms:
                if arm.name not in made.failed:
                    _one(runner, group, pair, arm, (pair, arm.name) in todo, progress, made, say)
            made.done.append(pair)
            after(made)
    except KeyboardInterrupt:
        made.stopped = True
        say("Stopped. What is finished is kept: the same command goes on from here.")
        after(made)
    return made


def reference(runner: Keeper, pair: Pair, steps: int) -> None:
    """Without a full run there is nothing to compare with."""
    try:
        runner.reference(pair, steps)
    except runner.studio.lab.comfy.model_management.OOM_EXCEPTION as error:
        free(runner.studio.lab)
        raise Unusable("out of memory in the full run: a smaller --size, or --weight-dtype fp8_e4m3fn") from error


def _one(runner: Keeper, group: Group, pair: Pair, arm: Arm, new: bool, at: Progress, made: Made, say: Say) -> None:
    started = time.monotonic()
    try:
        outcome = runner.outcome(arm, pair, group.steps)
        control(runner.outcome, outcome, pair, group)
        made.finished.add((pair, arm.name))
    except Exception as error:  # the others are still worth having; the page says what failed and why
        memory = isinstance(error, runner.studio.lab.comfy.model_management.OOM_EXCEPTION)
        made.failed[arm.name] = "out of memory" if memory else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        free(runner.studio.lab)
        say(f"  {arm.name}: left out ({made.failed[arm.name]})")
        return
    finally:
        if new:
            at.did(expected(arm, group.steps), time.monotonic() - started)
    if new:
        told = "identical" if math.isinf(outcome.psnr) else f"{outcome.psnr:.1f} dB"
        say(f"  {arm.name}: {outcome.computed:g} of {outcome.evaluations} computed, {told}, {outcome.seconds:.1f} s; "
            f"{at.line()}")  # fmt: skip


def records(runner: Keeper, group: Group, made: Made) -> list[Mapping[str, Any]]:
    """A row an arm, over the pairs that have them all; of a first pair that is not finished, what there is."""
    pairs = tuple(made.done) or group.pairs[:1]
    rows = []
    for arm in group.arms:
        if arm.name in made.failed or any((pair, arm.name) not in made.finished for pair in pairs):
            continue
        whole = Group(group.steps, group.cfg, pairs, (arm,), group.sampler)
        outcomes = [runner.outcome(arm, pair, group.steps) for pair in pairs]
        exact = [outcome.exact for outcome in outcomes if outcome.exact is not None]
        extra = {
            "seconds": sum(outcome.seconds for outcome in outcomes) / len(outcomes),
            "exact": sum(exact) / len(exact) if exact else None,
        }
        rows.append({**row(whole, arm, runner.outcome), **extra})
    return rows


def duration(seconds: float) -> str:
    """For people."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} hours"
