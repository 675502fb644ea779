"""The engine: one sampling run of one method at one site. The only mutable object besides the RunBook.

It knows steps, lanes, decisions and history; it knows nothing of ComfyUI, of blocks or of any method. Per evaluation:

    begin(sigma)             a denoiser evaluation starts: one tick of the method
      call = open(...)       one model call: which lanes (conditioning chunks) it holds
        enter(call, probe)   first call: signal -> gate -> plan, with the one device-to-host read; later calls follow
        predict(call)        if call.skip: the feature that stands in, a new tensor b t d
        keep(call, feature)  else: the computed feature goes into each lane's history; returns a correction, if any
    end()                    the evaluation's record

Reading sigma is deferred to the first call's decision, so that it shares the read with the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .coefficients import Calibration
from .history import SIGMA_TOLERANCE, History
from .trace import COMPUTED, PARTIAL, SKIPPED, Record, Recorder, Stopwatch
from .types import TRUNK, CacheError, Feature, Figures, Grid, Method, Past, Plan, Probe, Step, Verdict


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
    """One conditioning chunk: which it is (model, device, position, uuid, window), and the foreign patches on it."""

    conditioning: Hashable
    patches: Hashable = ()


@dataclass(slots=True)
class Lane:
    """What is kept of one conditioning chunk between evaluations.

    gap: the steps skipped since the newest computed one; repair: the correction of a step that is computed more than
    once.
    """

    history: History
    facts: Facts | None = None
    past: Past = field(default_factory=dict)
    computed_past: Past = field(default_factory=dict)
    gap: tuple[Step, ...] = ()
    repair: tuple[int, Tensor] | None = None

    def obstacle(self, facts: Facts, ready: int) -> str:
        """Why this lane cannot follow a skip, or an empty string."""
        if self.facts is None or len(self.history) < ready:
            return "no history"
        return facts.changed(self.facts)

    def tensors(self) -> list[Tensor]:
        kept = {id(t): t for t in (*self.past.values(), *self.computed_past.values())}
        learned = [tensor for entry in self.history.entries for tensor in entry.learned.values()]
        repair = [self.repair[1]] if self.repair else []
        return [*kept.values(), *(entry.value for entry in self.history.entries), *learned, *repair]


@dataclass(slots=True)
class Call:
    """One model call. `skip` says whether the site is skipped; `rows` are each lane's rows of the batch."""

    keys: tuple[LaneKey, ...]
    rows: tuple[slice, ...]
    bypass: bool = False
    reached: bool = False
    skip: bool = False


@dataclass(slots=True)
class Evaluation:
    """The evaluation in progress."""

    sigma: Tensor
    watch: Stopwatch
    before: float | None
    plan: Plan | None = None
    step: Step | None = None
    rising: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    seen: dict[Hashable, LaneKey] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)


def flow_time(sigma: float) -> float:
    """log(sigma / (1 - sigma)): noise over signal of a flow model, sigma 0 .. 1; pure noise keeps a trace of signal."""
    return math.log((sigma + LEAST) / (max(1 - sigma, 0.0) + LEAST_SIGNAL))


def plain_time(sigma: float) -> float:
    """log(sigma): noise over signal where the signal keeps its scale (epsilon and v-prediction models)."""
    return math.log(sigma + LEAST)


LEAST, LEAST_SIGNAL = 1e-6, 0.004
"""Both ends of a run lie infinitely far away in log-SNR; these keep them within reach, and every sigma apart."""


class Session:
    """One run. `sigmas`: the run's T + 1 noise levels; `keep` makes every tensor that outlives a forward; `time` is the
    logarithm of noise over signal at a noise level; `corrects` is False where the sampler does not take what it is told
    times a difference of sigmas, so that nothing can be paid back.
    """

    def __init__(
        self,
        method: Method,
        sigmas: Sequence[float],
        recorder: Recorder,
        keep: Callable[[Tensor], Tensor] = torch.clone,
        time: Callable[[float], float] = flow_time,
        corrects: bool = True,
    ) -> None:
        rule = method.rule(TRUNK)
        if rule is None:
            raise CacheError(f"{method.name} has no rule for the trunk, the only site of this engine so far")
        self.rule = rule
        self.absolute = method.feature == "absolute"
        self._correction = method.correction if corrects else None
        self.sigmas = tuple(sigmas)
        self.recorder = recorder
        self.active = not method.never
        self._keep = keep
        self._time = time
        self._lanes: dict[LaneKey, Lane] = {}
        self._leader: LaneKey | None = None
        self._ledger: Figures = {}
        self._evidence: Figures = {}
        self._stages: dict[int, int] = {}
        self._previous_sigma: float | None = None
        self._consecutive = 0
        self._unread: list[tuple[Record, Tensor]] = []
        self._evaluation: Evaluation | None = None

    # one evaluation ---------------------------------------------------------------------------------------------------

    def begin(self, sigma: Tensor) -> None:
        """Start an evaluation at `sigma` (any shape, its first element counts; read later)."""
        self._evaluation = Evaluation(sigma.flatten()[0], Stopwatch(sigma.device), self._previous_sigma)

    def open(self, keys: Sequence[LaneKey], rows: Sequence[slice]) -> Call:
        """Open a model call. One that repeats a conditioning of this evaluation bypasses the cache."""
        call = Call(tuple(keys), tuple(rows))
        evaluation = self._evaluation
        if evaluation is None:  # a model call outside any denoiser evaluation
            call.bypass = True
            return call
        call.bypass = len({key.conditioning for key in keys}) < len(keys)
        call.bypass |= any(key.conditioning in evaluation.seen for key in keys)
        evaluation.calls.append(call)
        if not call.bypass:
            evaluation.seen.update((key.conditioning, key) for key in keys)
        return call

    def enter(self, call: Call, facts: Facts, probe: Callable[[slice], Probe], calibration: Calibration) -> None:
        """Decide (first call of the evaluation) or follow; sets `call.skip`. `probe` looks at one lane's rows."""
        evaluation = self._evaluation
        if evaluation is None or call.bypass or not self.active:
            return
        call.reached = True
        lanes = [self._lanes.setdefault(key, Lane(History(self.rule.predictor.depth))) for key in call.keys]
        looks = [self.rule.signal.look(probe(rows)) for rows in call.rows]
        obstacles = [lane.obstacle(facts, self.rule.predictor.ready) for lane in lanes]
        if evaluation.plan is None:
            evaluation.plan = self._decide(call.keys[0], lanes[0], looks[0], obstacles[0], calibration)
        call.skip = evaluation.plan.skips(TRUNK) and not any(obstacles)
        for lane, look in zip(lanes, looks, strict=True):
            if evaluation.rising:
                continue
            if lane.facts != facts:  # no forecast from before a change to behind it
                lane.history, lane.gap, lane.repair = History(self.rule.predictor.depth), (), None
            lane.facts = facts
            lane.past = {name: self._keep(tensor) for name, tensor in look.items()}
            if not call.skip:
                lane.computed_past = lane.past if self.rule.signal.reference == "computed" else {}

    def compute(self, call: Call, reason: str) -> None:
        """Compute this evaluation although nothing was decided: the site cannot skip it."""
        call.reached = True
        self._lanes.clear()
        if self._evaluation is not None and self._evaluation.plan is None:
            self._evaluation.plan = Plan({TRUNK: Verdict(False, reason)})
            self._ledger, self._evidence, self._leader, self._consecutive = {}, {}, None, 0

    def predict(self, call: Call, grid: Grid | None = None) -> Tensor:
        """The feature that stands in for a skipped call, rows of all lanes together: a new tensor b t d.

        `grid` is the token grid of the t tokens, where there is one.
        """
        assert self._evaluation is not None and self._evaluation.step is not None
        step, predictor = self._evaluation.step, self.rule.predictor
        if predictor.needs_grid and grid is None:
            self.recorder.note("this model's tokens lie on no grid that is known here, so bands are not told apart")
        lanes = [self._lanes[key] for key in call.keys]
        for lane in lanes:
            if not lane.gap or lane.gap[-1].index < step.index:  # a step counts once, however often it is evaluated
                lane.gap = (*lane.gap, step)
        return torch.cat([predictor.predict(lane.history.entries, step, grid) for lane in lanes])

    def keep(self, call: Call, feature: Tensor, grid: Grid | None = None) -> Tensor | None:
        """Take the computed feature of a call (b t d, rows of all lanes) into the lanes' histories.

        Returns what is to be added to the feature before the model goes on with it (b t d, a new tensor), or None.
        """
        evaluation = self._evaluation
        if evaluation is None or evaluation.step is None or evaluation.rising or call.bypass or not call.reached:
            return None
        repairs = [
            None if lane is None else self._learn(key, lane, evaluation.step, feature[rows], grid)
            for key, rows in zip(call.keys, call.rows, strict=True)
            for lane in [self._lanes.get(key)]  # None: dropped by `compute` or `stand_down` in the meantime
        ]
        if all(repair is None for repair in repairs):
            return None
        parts = zip(repairs, call.rows, strict=True)
        return torch.cat([torch.zeros_like(feature[rows]) if r is None else r.to(feature.dtype) for r, rows in parts])

    def _learn(self, key: LaneKey, lane: Lane, step: Step, feature: Tensor, grid: Grid | None) -> Tensor | None:
        """One lane's computed feature: into its history, with what it teaches; returns its correction."""
        predictor, correction = self.rule.predictor, self._correction
        value = self._keep(feature)
        history, before = lane.history.entries, lane.history.before(step.sigma)
        inherited = history[-1].learned if len(before) < len(history) else {}  # of the entry that this one replaces
        new = Feature(step.position, step.sigma, value, inherited, step.time)
        repair = lane.repair[1] if lane.repair and lane.repair[0] == step.index else None
        if correction is not None and lane.gap:
            repair = correction.repair(history, new, lane.gap, lambda at: predictor.predict(history, at, grid), step)
        learned, figures = predictor.learn(before, new, grid)
        new = replace(new, learned={name: self._keep(tensor) for name, tensor in learned.items()})
        lane.history = lane.history.push(new)
        lane.gap, lane.repair = (), None
        if repair is not None and max(self._stages.values()) > 1:  # further evaluations of this step need it too
            lane.repair = (step.index, self._keep(repair))
        lane.past = self.rule.signal.observe(step, value, lane.past)
        if key == self._leader and figures:
            self._evidence = {name: self._keep(figure) for name, figure in figures.items()}
        return repair

    def end(self) -> None:
        """Finish the evaluation: its record, and what is not needed any more goes."""
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:
            return
        evaluation.watch.stop()
        record = self._record(evaluation)
        self.recorder.records.append(record)
        self.recorder.watches.append(evaluation.watch)
        if evaluation.step is None:
            self._unread.append((record, self._keep(evaluation.sigma)))
        present = set(evaluation.seen.values())
        self._lanes = {key: lane for key, lane in self._lanes.items() if key in present}
        self.recorder.cache_bytes = max(self.recorder.cache_bytes, self.bytes())

    # the run ----------------------------------------------------------------------------------------------------------

    def stand_down(self, why: str) -> bool:
        """Compute everything from here on and free what is held; returns whether the sentence is new."""
        self.active = False
        self.recorder.stood_down = True
        self._lanes.clear()
        self._ledger, self._evidence = {}, {}
        return self.recorder.note(why)

    def close(self) -> None:
        """Free everything. Locates the evaluations whose sigma nobody had to read while sampling."""
        if self._unread:
            sigmas = torch.stack([sigma for _, sigma in self._unread]).tolist()
            for (record, _), sigma in zip(self._unread, sigmas, strict=True):
                step = self._locate(sigma)
                record.step, record.stage, record.sigma = step.index, step.stage, step.sigma
        self._unread.clear()
        self._lanes.clear()
        self._ledger, self._evidence = {}, {}
        self._evaluation = None
        self.active = False

    def bytes(self) -> int:
        """Memory held now, in bytes."""
        return sum(t.numel() * t.element_size() for lane in self._lanes.values() for t in lane.tensors())

    # decisions --------------------------------------------------------------------------------------------------------

    def _decide(self, key: LaneKey, lane: Lane, look: Past, obstacle: str, calibration: Calibration) -> Plan:
        """The evaluation's plan, from its first lane."""
        evaluation = self._evaluation
        assert evaluation is not None
        gate, signal = self.rule.gate, self.rule.signal
        if not obstacle and key != self._leader:
            obstacle = "first lane changed"
        home = self._home(evaluation.sigma.device)
        ledger = self._ledger or {n: _scalar(v, home) for n, v in gate.start().items()}
        figures: Figures = {"sigma": evaluation.sigma}
        if not obstacle:
            figures |= self._evidence
            figures |= signal.score(look, lane.computed_past if signal.reference == "computed" else lane.past)
        if home != evaluation.sigma.device:
            figures = {name: _scalar(value, home) for name, value in _read(figures).items()}
        if obstacle:
            self._evidence = {}
        advanced = ledger if obstacle else gate.advance(figures, ledger, calibration)
        reading = _read(figures if obstacle else {**figures, **advanced})
        step = evaluation.step = self._locate(reading.pop("sigma"))
        before = evaluation.before
        evaluation.rising = before is not None and step.sigma > before * (1 + SIGMA_TOLERANCE)
        verdict = Verdict(False, obstacle) if obstacle else gate.decide(reading, step, calibration)
        if verdict.note:
            self.recorder.note(verdict.note)
        forced = self._forced(step, evaluation.rising)
        if forced:
            verdict = replace(verdict, skip=False, reason=forced)
        evaluation.scores = dict(reading if verdict.scores is None else verdict.scores)
        if not evaluation.rising:
            self._leader = key
            self._ledger = {n: self._keep(v) for n, v in gate.settle(advanced, verdict.skip, step).items()}
            self._consecutive = self._consecutive + 1 if verdict.skip else 0
        return Plan({TRUNK: verdict})

    def _forced(self, step: Step, rising: bool) -> str:
        """Why the engine computes whatever the gate says (invariant 5), or an empty string."""
        if step.index == 0:
            return "first step"
        if step.index == step.total - 1:
            return "last step"
        return "sigma rose" if rising else ""

    def _home(self, device: torch.device) -> torch.device:
        """Where the accumulators live: on the device if it has float64 (MPS has not) and something is measured."""
        return device if self.rule.signal.needs and device.type != "mps" else torch.device("cpu")

    def _locate(self, sigma: float) -> Step:
        """step = the largest i <= T - 1 with sigmas[i] >= sigma·(1 - 1e-4), else 0; stage counts earlier visits."""
        total = len(self.sigmas) - 1
        floor = sigma * (1 - SIGMA_TOLERANCE)
        index = max((i for i in range(total) if self.sigmas[i] >= floor), default=0)
        stage = self._stages.get(index, 0)
        self._stages[index] = stage + 1
        self._previous_sigma = sigma
        above, below = self.sigmas[index : index + 2]
        offset = min(max((above - sigma) / (above - below), 0.0), 1.0) if above > below else 0.0
        return Step(index, total, sigma, stage, offset, above - below, self._time(sigma))

    def _record(self, evaluation: Evaluation) -> Record:
        plan = evaluation.plan or Plan({})
        idle = "stood down" if self.recorder.stood_down else "bypassed" if self.active else "off"
        verdict = plan.verdicts.get(TRUNK, Verdict(False, idle))
        rows = sum(r.stop - r.start for call in evaluation.calls for r in call.rows)
        ran = sum(r.stop - r.start for call in evaluation.calls if not call.skip for r in call.rows)
        action = COMPUTED if not verdict.skip else PARTIAL if ran else SKIPPED
        step = evaluation.step
        return Record(
            step=step.index if step else 0,
            stage=step.stage if step else 0,
            sigma=step.sigma if step else float("nan"),
            lanes=len(evaluation.seen),
            calls=len(evaluation.calls),
            action=action,
            skip=verdict.skip,
            work=ran / rows if rows else 1.0,
            reason=verdict.reason,
            scores=evaluation.scores,
            limits=dict(verdict.limits),
            consecutive=self._consecutive,
        )


def _scalar(value: float, home: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device=home)  # filled there: torch.tensor copies, which waits


def _read(figures: Figures) -> dict[str, float]:
    """The one device-to-host read of an evaluation: all scalars in one transfer, in float64 where the device has it."""
    dtype = torch.float32 if next(iter(figures.values())).device.type == "mps" else torch.float64
    values = torch.stack([value.to(dtype) for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
