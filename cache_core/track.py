"""One rule in one run: its lanes, leader, ledger, evidence and histories. `Session` is the run that it is part of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .coefficients import Calibration
from .corrections import Debt
from .course import SIGMA_ROSE
from .history import History
from .storage import packed, unpacked
from .trace import Stopwatch
from .types import WHOLE, Correction, Feature, Figures, Grid, Past, Probe, Rule, Step, Unit, Verdict

if TYPE_CHECKING:
    from .session import Session

REST = 3
"""A lane may be absent for so many evaluations (guidance that is switched off and on) before it is forgotten."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What must not change between the evaluation a feature was computed in and the one it is used in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    control: Hashable = frozenset()
    weights: Hashable = frozenset()

    def changed(self, before: Facts) -> str:
        """The reason to compute, or an empty string."""
        names = ("shape", "dtype", "device", "control", "weights")
        return next((f"{name} changed" for name in names if getattr(self, name) != getattr(before, name)), "")


@dataclass(frozen=True, slots=True)
class LaneKey:
    """One conditioning chunk: which it is (model, device, position, uuid, window), the foreign patches on it, what
    other packs say of the call (simple values of options of theirs), and which of its repeats in one evaluation.
    """

    conditioning: Hashable
    patches: Hashable = ()
    flags: Hashable = ()
    repeat: int = 0


@dataclass(slots=True)
class Trail:
    """What is kept of one unit of a lane. repair: the correction of a step that is computed more than once; debt: what
    is still to be paid back.
    """

    history: History
    repair: tuple[int, Tensor] | None = None
    debt: Debt | None = None


@dataclass(slots=True)
class Lane:
    """What a rule keeps of one conditioning chunk between evaluations.

    gap: the steps skipped since the newest computed one; stored: whether this evaluation was computed into it; rests:
    evaluations since it was last there.
    """

    trails: dict[Unit, Trail] = field(default_factory=dict)
    facts: Facts | None = None
    section: Hashable = None
    past: Past = field(default_factory=dict)
    computed_past: Past = field(default_factory=dict)
    gap: tuple[Step, ...] = ()
    stored: bool = False
    rests: int = 0

    def obstacle(self, facts: Facts, ready: int) -> str:
        """Why this lane cannot follow a skip, or an empty string."""
        if self.facts is None or min((len(trail.history) for trail in self.trails.values()), default=0) < ready:
            return "no history"
        return facts.changed(self.facts)

    def restart(self) -> None:
        """Nothing is forecast from before a change to behind it."""
        self.trails, self.past, self.computed_past, self.gap = {}, {}, {}, ()

    def tensors(self) -> Iterator[Tensor]:
        yield from {id(t): t for t in (*self.past.values(), *self.computed_past.values())}.values()
        for trail in self.trails.values():
            for entry in trail.history.entries:
                yield from (entry.value, *entry.learned.values())
            if trail.repair:
                yield trail.repair[1]
            if trail.debt:
                yield trail.debt.amount


@dataclass(slots=True, eq=False)
class Call:
    """One model call. `rows` are each lane's rows of the batch, `left_out` the share of its work that did not run."""

    keys: tuple[LaneKey, ...]
    rows: tuple[slice, ...]
    bypass: bool = False
    left_out: float = 0.0


@dataclass(slots=True)
class Evaluation:
    """The evaluation in progress. apart: why it belongs to no step, or nothing (`course`); again: the schedule starts
    again here; shown: the noise level that the model is shown; beside: what was opened beside its model calls; spared:
    the rows of model calls that were not made because a result was derived instead.
    """

    sigma: Tensor
    watch: Stopwatch
    step: Step | None = None
    apart: str = ""
    again: bool = False
    shown: float = 0.0
    seen: dict[Hashable, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    whole: Call | None = None
    beside: list[Call] = field(default_factory=list)
    spared: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observer is told: a feature that was computed, or (skipped) that stands in, and the figures with it."""

    rule: Rule
    lane: LaneKey
    unit: Unit
    feature: Feature
    figures: Figures
    scores: dict[str, float]
    skipped: bool


Observe = Callable[[Seen], None]


class Track:
    """One rule in one run: lanes, leader, ledger, evidence and this evaluation's verdict. A site holds one.

    parts: the same for each unit that decides for itself, the track then decides nothing as a whole; section: which
    part of the run a noise level lies in, where a site cannot see for itself that conditionings come and go at known
    noise levels. A feature is not carried from one section into another.
    """

    def __init__(self, session: Session, rule: Rule) -> None:
        self.session, self.rule = session, rule
        self.section: Callable[[float], Hashable] | None = None
        self.parts: dict[Unit, Track] = {}
        self.verdict: Verdict | None = None
        self.scores: dict[str, float] = {}
        self.consecutive = 0
        self._figures: Figures = {}
        self._trust: dict[Unit, Tensor | None] = {}
        self._entered: list[Call] = []
        self._lanes: dict[LaneKey, Lane] = {}
        self._leader: LaneKey | None = None
        self._ledger: Figures = {}
        self._evidence: Figures = {}

    def part(self, unit: Unit) -> Track:
        """The track of a unit that decides for itself: made when it is first asked for, and kept for the run."""
        return self.parts.setdefault(unit, Track(self.session, self.rule))

    def enter(self, call: Call, facts: Facts, probe: Callable[[slice], Probe], calibration: Calibration) -> bool:
        """Decide (first call of the evaluation) or follow: whether to skip. `probe` looks at one lane's rows."""
        evaluation = self.session.evaluation
        if evaluation is None or call.bypass or not self.session.active:
            return False
        self._entered.append(call)
        if evaluation.apart and self.verdict is None:
            self.verdict = Verdict(False, evaluation.apart)
        if evaluation.apart:
            return False
        lanes = [self._lanes.setdefault(key, Lane()) for key in call.keys]
        looks = [self.rule.signal.look(probe(rows)) for rows in call.rows]
        obstacles = [lane.obstacle(facts, self.rule.predictor.ready) for lane in lanes]
        if self.verdict is None:
            self.verdict = self._decide(evaluation, call.keys[0], lanes[0], looks[0], obstacles[0], calibration)
        skip = self.verdict.skip and not any(obstacles)
        for lane, look in zip(lanes, looks, strict=True):
            lane.rests = 0
            if self._apart():  # which may have been found out by the decision
                continue
            if lane.facts != facts:
                lane.restart()
            lane.facts = facts
            lane.past |= {name: self.session.keep(tensor) for name, tensor in look.items()}
            if not skip:
                lane.computed_past = dict(lane.past) if self.rule.signal.reference == "computed" else {}
        return skip

    def _apart(self) -> str:
        evaluation = self.session.evaluation
        return evaluation.apart if evaluation is not None else ""

    def reached(self, call: Call) -> bool:
        """Whether this call was entered in this evaluation."""
        return call in self._entered or any(part.reached(call) for part in self.parts.values())

    def compute(self, call: Call, reason: str) -> None:
        """Compute this evaluation although nothing was decided: the site cannot skip it."""
        self._entered.append(call)
        for each in (self, *self.parts.values()):
            each._lanes.clear()
        if self.session.evaluation is not None and self.verdict is None:
            self.verdict = Verdict(False, reason)
            self._ledger, self._evidence, self._leader, self.consecutive = {}, {}, None, 0

    def reset(self, call: Call | None = None) -> None:
        """Forget everything, this evaluation's decision too unless an earlier call has followed a skip: another place
        of the rule begins anew, in this same evaluation (with `call`, where there is one).
        """
        if call is not None:
            call.left_out = 0.0
        if self.verdict is not None and not any(earlier.left_out for earlier in self._entered):
            self.verdict = None
        self._entered.clear()
        self._lanes.clear()
        self._ledger, self._evidence, self._leader, self.consecutive = {}, {}, None, 0
        for part in self.parts.values():
            part.reset(call)

    def explain(self, reason: str) -> None:
        """Why this evaluation is computed, where the site knows better."""
        if self.verdict is not None and not self.verdict.skip:
            self.verdict = replace(self.verdict, reason=reason)

    def holds(self, call: Call, unit: Unit) -> bool:
        """Whether every lane of the call has what is needed to skip this unit."""
        trails = [self._lanes[key].trails.get(unit) for key in call.keys if key in self._lanes]
        ready = [trail is not None and len(trail.history) >= self.rule.predictor.ready for trail in trails]
        return len(ready) == len(call.keys) and all(ready)

    def predict(self, call: Call, unit: Unit = WHOLE, grid: Grid | None = None) -> Tensor:
        """The feature that stands in for a skipped unit, rows of all lanes together: a new tensor b t d.

        `grid` is the token grid of the t tokens, where there is one.
        """
        evaluation, predictor = self.session.evaluation, self.rule.predictor
        assert evaluation is not None and evaluation.step is not None
        step = evaluation.step
        if predictor.needs_grid and grid is None:
            self.session.recorder.note("this model's tokens lie on no grid that is known here, so bands are not told "
                                       "apart")  # fmt: skip
        parts = []
        for key in call.keys:
            lane = self._lanes[key]
            if not lane.gap or lane.gap[-1].index < step.index:  # a step counts once, however often it is evaluated
                lane.gap = (*lane.gap, step)
            history = self._entries(lane, lane.trails[unit].history.entries)
            parts.append(self._scaled(predictor.predict(history, step, grid, self._figures), history[-1].at))
            self._tell(key, unit, Feature(step, parts[-1]), {}, skipped=True)
        return torch.cat(parts)

    def store(
        self, call: Call, feature: Tensor, unit: Unit = WHOLE, grid: Grid | None = None, tap: Tensor | None = None
    ) -> Tensor | None:
        """Take the computed feature of a call (b t d, rows of all lanes) into the lanes' histories; `tap` is the stream
        that the signal asked for.

        Returns what is to be added to the feature before the model goes on with it (b t d, a new tensor), or None.
        """
        evaluation = self.session.evaluation
        if evaluation is None or evaluation.step is None or evaluation.apart or call not in self._entered:
            return None
        repairs: list[Tensor | None] = []
        for key, rows in zip(call.keys, call.rows, strict=True):
            lane = self._lanes.get(key)
            if lane is None:  # dropped by `compute` or `stand_down` in the meantime
                repairs.append(None)
                continue
            seen = None if tap is None else tap[rows]
            repairs.append(self._learn(key, lane, evaluation.step, feature[rows], unit, grid, seen))
        if all(repair is None for repair in repairs):
            return None
        parts = zip(repairs, call.rows, strict=True)
        return torch.cat([torch.zeros_like(feature[rows]) if r is None else r.to(feature.dtype) for r, rows in parts])

    def leave_out(self, call: Call, share: float = 1.0) -> None:
        """Say that this share of the call's work does not run."""
        call.left_out += share

    def end(self) -> None:
        """The evaluation is over: what is not needed any more goes. One that an outer skip left out changes nothing."""
        evaluation = self.session.evaluation
        if self._entered and not (evaluation and evaluation.apart):
            for key, lane in list(self._lanes.items()):
                lane.gap, lane.stored = () if lane.stored else lane.gap, False
                lane.rests += 1  # 0 while it is entered
                if lane.rests > REST + 1:
                    del self._lanes[key]
        self.verdict, self.scores, self._figures, self._trust = None, {}, {}, {}
        self._entered.clear()
        for part in self.parts.values():
            part.end()

    def begin_again(self) -> None:
        """The schedule starts again: nothing is forecast from one pass into the next, and the budget is a new one."""
        for lane in self._lanes.values():
            lane.restart()
        self._ledger, self._evidence, self._leader, self.consecutive = {}, {}, None, 0
        for part in self.parts.values():
            part.begin_again()

    def clear(self) -> None:
        """Free everything."""
        self._lanes.clear()
        self._ledger, self._evidence, self._figures, self._trust = {}, {}, {}, {}
        for part in self.parts.values():
            part.clear()

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is held for later evaluations, but for scalars."""
        for lane in self._lanes.values():
            yield from lane.tensors()
        for part in self.parts.values():
            yield from part.tensors()

    def _learn(
        self, key: LaneKey, lane: Lane, step: Step, feature: Tensor, unit: Unit, grid: Grid | None, tap: Tensor | None
    ) -> Tensor | None:
        """One lane's computed feature: into its history, with what it teaches; returns its correction."""
        predictor, keep = self.rule.predictor, self.session.keep
        trail = lane.trails.setdefault(unit, Trail(History(predictor.depth)))
        value = keep(feature)
        history = self._entries(lane, trail.history.entries)
        before = history[: len(trail.history.before(step.sigma))]
        inherited = history[-1].learned if len(before) < len(history) else {}  # of the entry that this one replaces
        new = Feature(step, value, inherited)
        repair = trail.repair[1] if trail.repair and trail.repair[0] == step.index else None
        correction = self.rule.correction
        if correction is not None and lane.gap and history:
            repair = correction.repair(history, new, lane.gap, lambda at: predictor.predict(history, at, grid), step)
            trust = self._trusted(correction, unit, history, new)
            repair = repair if trust is None else repair * trust
        if correction is not None and (repair is not None or trail.debt) and trail.repair is None:
            repair, debt = correction.bounded(repair, trail.debt, new, lane.gap, step)
            trail.debt = debt and replace(debt, amount=keep(debt.amount))
        learned, figures = predictor.learn(before, new, grid)
        new = replace(new, learned={name: keep(tensor) for name, tensor in learned.items()})
        trail.history, trail.repair = trail.history.push(self._held(new)), None
        if repair is not None and self.session.revisits:  # further evaluations of this step need it too
            trail.repair = (step.index, keep(repair))
        held = {id(tensor) for tensor in (value, *lane.past.values())}
        seen = self.rule.signal.observe(step, value, lane.past, tap, grid)
        lane.past = {name: tensor if id(tensor) in held else keep(tensor) for name, tensor in seen.items()}
        if key == self._leader and figures:
            known = self._evidence if lane.stored else {}  # another unit's of this evaluation: the worst one counts
            worst = {name: torch.maximum(known.get(name, figure), figure) for name, figure in figures.items()}
            self._evidence = {name: keep(figure) for name, figure in worst.items()}
        lane.stored = True
        self._tell(key, unit, new, figures, skipped=False)
        return repair

    def _trusted(
        self, correction: Correction, unit: Unit, history: tuple[Feature, ...], new: Feature
    ) -> Tensor | None:
        """The share of a repair that is paid: in one evaluation the first lane's, where rows are as many. (Guidance
        takes the difference of lanes, and a repair of one of them alone would be multiplied.)
        """
        if unit not in self._trust:
            trust = correction.trusted(history, new)
            self._trust[unit] = None if trust is None else self.session.keep(trust)
        known = self._trust[unit]
        if known is None or known.shape[0] == new.value.shape[0]:
            return known
        return correction.trusted(history, new)

    def _held(self, feature: Feature) -> Feature:
        """The feature as it is kept for later evaluations."""
        if self.rule.store == "device":
            return feature
        held = packed(feature, self.rule.store)
        return replace(held, value=self.session.keep(held.value),
                       learned={name: self.session.keep(tensor) for name, tensor in held.learned.items()})  # fmt: skip

    def _entries(self, lane: Lane, entries: tuple[Feature, ...]) -> tuple[Feature, ...]:
        """Kept features as they were."""
        facts = lane.facts
        if self.rule.store == "device" or facts is None:
            return entries
        return tuple(unpacked(entry, self.rule.store, facts.dtype, facts.device) for entry in entries)

    def _scaled(self, feature: Tensor, anchor: Step) -> Tensor:
        """What stands in, times what the gate says of features that were computed at the anchor."""
        gain = self.verdict.gain if self.verdict is not None else None
        return feature if gain is None else feature * gain(anchor)

    def _tell(self, key: LaneKey, unit: Unit, feature: Feature, figures: Figures, skipped: bool) -> None:
        if self.session.observe is not None:
            self.session.observe(Seen(self.rule, key, unit, feature, figures, self.scores, skipped))

    def _decide(
        self, evaluation: Evaluation, key: LaneKey, lane: Lane, look: Past, obstacle: str, calibration: Calibration
    ) -> Verdict:
        """The evaluation's verdict, from its first lane."""
        gate, signal = self.rule.gate, self.rule.signal
        home = self._home(evaluation.sigma.device)
        ledger = self._ledger or {n: _scalar(v, home) for n, v in gate.start().items()}
        figures: Figures = {"sigma": evaluation.sigma} if evaluation.step is None else {}  # another rule's read has it
        if not obstacle:
            figures |= self._evidence
            figures |= signal.score(look, lane.computed_past if signal.reference == "computed" else lane.past)
        self._figures = figures
        beside = self.session.figures() if evaluation.step is None else {}
        if home != evaluation.sigma.device:
            wide = self.session.has_float64(evaluation.sigma.device)
            values, told = _read(figures, beside, wide)
            self.session.read(told)
            figures, beside = {name: _scalar(value, home) for name, value in values.items()}, {}
        advanced = ledger if obstacle else gate.advance(figures, ledger, calibration)
        reading, told = _read({**figures, **advanced}, beside)
        self.session.read(told)
        step = evaluation.step or self.session.locate(reading.pop("sigma"))
        if evaluation.again:
            advanced = {n: _scalar(v, home) for n, v in gate.start().items()}
            reading, obstacle = dict(gate.start()), "the schedule starts again"
        crossed = not evaluation.apart and self._crossed(lane, step)
        obstacle = obstacle or ("conditioning changed" if crossed else "")
        if obstacle:
            self._evidence = {}
        verdict = Verdict(False, obstacle) if obstacle else gate.decide(reading, step, calibration)
        if verdict.note:
            self.session.recorder.note(verdict.note)
        forced = self._forced(step, evaluation.apart)
        if forced:
            verdict = replace(verdict, skip=False, reason=forced)
        self.scores = {} if obstacle else dict(reading if verdict.scores is None else verdict.scores)
        if not evaluation.apart:
            self._leader = key
            settled = gate.settle(advanced, reading, verdict.skip, step)
            self._ledger = {n: self.session.keep(v) for n, v in settled.items()}
            self.consecutive = self.consecutive + 1 if verdict.skip else 0
        return verdict

    def _crossed(self, lane: Lane, step: Step) -> bool:
        """Whether the run has come into another section, where the lane's history begins anew."""
        section = self.section(step.sigma) if self.section else None
        crossed, lane.section = section != lane.section, section
        if crossed:
            lane.restart()
        return crossed

    def _forced(self, step: Step, apart: str) -> str:
        """Why the engine computes whatever the gate says (invariant 5), or an empty string."""
        if self.session.alarm:
            return "left alone"
        if apart and apart != SIGMA_ROSE:
            return apart
        if step.index == 0:
            return "first step"
        if self.session.in_doubt:
            return "the sampler is looked at"
        if self.session.too_short:
            return "too few steps"
        if step.index == step.total - 1 and not step.open:
            return "last step"
        return apart

    def _home(self, device: torch.device) -> torch.device:
        """Where the accumulators live: on the device if it has float64 and something is measured."""
        return device if self.rule.signal.needs and self.session.has_float64(device) else torch.device("cpu")


def _scalar(value: float, home: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device=home)  # filled there: torch.tensor copies, which waits


def _read(
    figures: Figures, beside: Figures | None = None, wide: bool = True
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The one device-to-host read of an evaluation: all scalars, and beside them figures of any length, in one
    transfer, in float64 where the device has it.
    """
    vectors = beside or {}
    if not figures and not vectors:
        return {}, {}
    dtype = torch.float64 if wide else torch.float32
    parts = [value.reshape(-1) for value in (*figures.values(), *vectors.values())]
    values = torch.cat([part.to(dtype) for part in parts]).tolist()
    scalars = dict(zip(figures, values, strict=False))
    ends = list(itertools.accumulate((value.numel() for value in vectors.values()), initial=len(figures)))
    told = (values[start:end] for start, end in itertools.pairwise(ends))
    return scalars, dict(zip(vectors, told, strict=True))
