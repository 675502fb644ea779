"""What Cache Calibrate records of whole runs: scalars of the trunk and of the two sides of guidance at every noise
level, and how the guided result's ODE derivatives lie to each other.

Nothing is asked twice here: a sample costs one full run. Of every derivative so many values are held, at the same
places each, that one run's fit into `BUDGET` bytes on the processor's side; inner products over more than 10 000 places
drawn at random are within a few percent, and their ratios, which are what is used, closer. Beside them the engine holds
one residual and one modulated input a conditioning.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cache_core.coefficients import Calibration
from ..cache_core.guidance import BranchDistance
from ..cache_core.predictors import Hold
from ..cache_core.session import flow_noise
from ..cache_core.signals import EmbeddingL1, ModulatedL1
from ..cache_core.track import Seen
from ..cache_core.types import (
    BRANCH,
    GUIDED,
    TRUNK,
    Feature,
    Figures,
    Gate,
    Grid,
    Method,
    Past,
    Predictor,
    Probe,
    Rule,
    Schedule,
    Signal,
    Step,
    Verdict,
)
from .conditioning import side
from .sites.common import derivative

BUDGET = 64 * 2**20
SEED = 0
"""Of the places that are looked at."""


class Recording(Gate):
    """Compute everything, with all that a skip would need."""

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(False, "recorded")


class Entering(Signal):
    """TeaCache's signal and PromptTea's together. Figures: "d" and "embedding"."""

    parts = (ModulatedL1(), EmbeddingL1())
    needs = frozenset(name for part in parts for name in part.needs)

    def look(self, probe: Probe) -> Past:
        return {name: tensor for part in self.parts for name, tensor in part.look(probe).items()}

    def score(self, now: Past, before: Past) -> Figures:
        return {name: figure for part in self.parts for name, figure in part.score(now, before).items()}


class Compared(Predictor):
    """Against the feature before: "change" |F_t - F_(t-1)|_1 / |F_(t-1)|_1, "magnitude" mean |f_t|_2 / |f_(t-1)|_2 over
    tokens.
    """

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        if not history:
            return {}, {}
        before, now = history[-1].value.float(), new.value.float()
        change = (now - before).abs().mean() / before.abs().mean()
        return {}, {"change": change, "magnitude": (now.norm(dim=-1) / before.norm(dim=-1)).mean()}


@dataclass(frozen=True)
class Differing(BranchDistance):
    """The two sides' difference, told as it is found."""

    told: Callable[[Step, Tensor], None]

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        found = super().observe(step, feature, past, tap, grid)
        if "distance" in found:
            self.told(step, found["distance"])
        return found


class Watcher:
    """Records over several runs of one model on the same noise levels. described: whether the model's blocks are known;
    guided: whether there are two sides of guidance; `ticked` is told of every evaluation.
    """

    def __init__(self, described: bool, guided: bool, ticked: Callable[[], None]) -> None:
        self.described, self.guided, self.ticked = described, guided, ticked
        self.schedule: Schedule | None = None
        self.samples = 0
        self._scalars: dict[tuple[str, int, int, int], list[Any]] = defaultdict(list)
        self._course: dict[int, Tensor] = {}
        self._places: Tensor | None = None
        self._gram: Tensor | None = None
        self._leader: dict[tuple[int, int], int] = {}

    trials = 1
    """Evaluations that it makes a step."""

    @property
    def method(self) -> Method:
        """Nothing is skipped."""
        rules = []
        if self.described:
            rules.append(Rule((TRUNK,), Entering(), Recording(), Compared()))
        if self.guided:
            rules.append(Rule((BRANCH,), Differing(self._differ), Recording(), Hold()))
        return Method("Cache Calibrate", tuple(rules) or (Rule((GUIDED,), Signal(), Recording(), Hold()),))

    def begin(self) -> None:
        """Another sample."""
        self._add_course()
        self.samples += 1

    def around(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, *args: Any, **kw: Any
    ) -> Any:
        """PREDICT_NOISE: an evaluation, and where its derivative points."""
        out = executor(x, timestep, model_options, *args, **kw)
        levels = (model_options or {}).get("transformer_options", {}).get("sample_sigmas")
        if levels is not None:
            self.schedule = self.schedule or Schedule(tuple(levels.tolist()), flow_noise)
            self._course.setdefault(self.schedule.index(float(timestep.flatten()[0])), self._seen(x, out, timestep))
        self.ticked()
        return out

    def observe(self, seen: Seen) -> None:
        """A residual of the trunk; the first evaluation of a step counts."""
        if seen.rule.places[0].kind != TRUNK.kind or seen.feature.at.stage or not seen.figures:
            return
        step, lane = seen.feature.at.index, side(seen.lane)
        for name, figure in seen.figures.items():
            self._scalars[name, lane, self.samples - 1, step].append(figure)
        if (self.samples, step) not in self._leader:  # what was scored is the leading conditioning's
            self._leader[self.samples, step] = lane
            for name in ("d", "embedding"):
                if name in seen.scores:
                    self._scalars[name, lane, self.samples - 1, step].append(seen.scores[name])

    def tables(self) -> dict[str, Tensor]:
        """What was recorded, once every sample is done: the groups of which there is something."""
        self._add_course()
        if self.schedule is None:
            return {}
        tables = {"sigmas": torch.tensor(self.schedule.sigmas[:-1])}
        known = {name for name, *_ in self._scalars}
        if {"change", "d"} <= known:
            change, d, magnitude = (self._table(name) for name in ("change", "d", "magnitude"))
            embedding = self._table("embedding").flatten(0, 1).nanmean(0)
            tables |= {"trunk.change": change, "trunk.signal": d, "trunk.magnitude": magnitude}
            tables["trunk.embedding"] = embedding
        if "difference" in known:
            tables["branch.difference"] = self._table("difference")[0]
        if self._gram is not None:
            gram = self._gram / self._gram.diagonal().mean()
            amplified = torch.full((self.schedule.total,), torch.nan)
            tables |= {"course.gram": gram, "course.amplified": amplified}
        return tables

    def _differ(self, step: Step, distance: Tensor) -> None:
        if not step.stage:
            self._scalars["difference", 0, self.samples - 1, step.index].append(distance)

    def _seen(self, x: Tensor, out: Tensor, sigma: Tensor) -> Tensor:
        """Of the derivative as much as is looked at."""
        assert self.schedule is not None
        found = derivative(x, out, sigma).flatten()
        if self._places is None:
            fitting = BUDGET // (found.element_size() * self.schedule.total)
            drawn = torch.randint(found.numel(), (fitting,), generator=torch.Generator().manual_seed(SEED))
            self._places = drawn if fitting < found.numel() else torch.arange(found.numel())
        return found[self._places.to(found.device)].float().cpu()

    def _add_course(self) -> None:
        """The sample's Gram matrix to the others': t t. Of a run that left steps out there is none."""
        course, self._course = self._course, {}
        if self.schedule is None or len(course) < self.schedule.total:
            return
        rows = torch.stack([course[step] for step in range(self.schedule.total)]).double()
        gram = rows @ rows.T / rows.shape[1]
        self._gram = gram if self._gram is None else self._gram + gram

    def _table(self, name: str) -> Tensor:
        """c n t of one figure: the mean over what is of one side (areas, batches)."""
        assert self.schedule is not None
        sides = 1 + max(lane for known, lane, *_ in self._scalars if known in ("change", name))
        table = torch.full((sides, self.samples, self.schedule.total), torch.nan)
        for (known, lane, sample, step), figures in self._scalars.items():
            if known == name:
                table[lane, sample, step] = sum(float(figure) for figure in figures) / len(figures)
        return table


def joined(recorded: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tables of all recorders, no infinite figure among them."""
    tables = dict(itertools.chain.from_iterable(tables.items() for tables in recorded))
    return {name: table.nan_to_num(torch.nan, torch.nan, torch.nan) for name, table in tables.items()}
