"""The engine: one sampling run of one method at one site. The only mutable object besides the RunBook.

It knows steps, lanes, decisions and history; it knows nothing of ComfyUI, of blocks or of any method. Per evaluation:

    begin(sigma)             a denoiser evaluation starts: one tick of the method
      call = open(...)       one model call: which lanes (conditioning chunks) it holds
        enter(call, probe)   first call: signal -> gate -> plan, with the one device-to-host read; later calls follow
        predict(call)        if call.skip: the feature that stands in, a new tensor b t d
        keep(call, feature)  else: the computed feature goes into each lane's history
    end()                    the evaluation's record

Reading sigma is deferred to the first call's decision, so that it shares the read with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .coefficients import Calibration
from .history import SIGMA_TOLERANCE, History
from .trace import COMPUTED, PARTIAL, SKIPPED, Record, Recorder, Stopwatch
from .types import TRUNK, CacheError, Figures, Grid, Method, Past, Plan, Probe, Step, Verdict


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
    """What is kept of one conditioning chunk between evaluations."""

    history: History
    facts: Facts | None = None
    past: Past = field(default_factory=dict)
    computed_past: Past = field(default_factory=dict)

    def obstacle(self, facts: Facts, ready: int) -> str:
        """Why this lane cannot follow a skip, or an empty string."""
        if self.facts is None or len(self.history) < ready:
            return "no history"
        return facts.changed(self.facts)

    def tensors(self) -> list[Tensor]:
        kept = {id(t): t for t in (*self.past.values(), *self.computed_past.values())}
        return [*kept.values(), *(entry.value for entry in self.history.entries)]


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


class Session:
    """One run. `sigmas`: the run's T + 1 noise levels; `keep` makes every tensor that outlives a forward."""

    def __init__(
        self,
        method: Method,
        sigmas: Sequence[float],
        recorder: Recorder,
        keep: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        rule = method.rule(TRUNK)
        if rule is None:
            raise CacheError(f"{method.name} has no rule for the trunk, the only site of this engine so far")
        self.rule = rule
        self.absolute = method.feature == "absolute"
        self.sigmas = tuple(sigmas)
        self.recorder = recorder
        self.active = not method.never
        self._keep = keep
        self._lanes: dict[LaneKey, Lane] = {}
        self._leader: LaneKey | None = None
        self._ledger: Figures = {}
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
                lane.history = History(self.rule.predictor.depth)
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
            self._ledger, self._leader, self._consecutive = {}, None, 0

    def predict(self, call: Call, grid: Grid | None = None) -> Tensor:
        """The feature that stands in for a skipped call, rows of all lanes together: a new tensor b t d.

        `grid` is the token grid of the t tokens, where there is one.
        """
        assert self._evaluation is not None and self._evaluation.step is not None
        step, predictor = self._evaluation.step, self.rule.predictor
        if predictor.needs_grid and grid is None:
            self.recorder.note("this model's tokens lie on no grid that is known here, so bands are not told apart")
        return torch.cat([predictor.predict(self._lanes[key].history.entries, step, grid) for key in call.keys])

    def keep(self, call: Call, feature: Tensor) -> None:
        """Take the computed feature of a call (b t d, rows of all lanes) into the lanes' histories."""
        evaluation = self._evaluation
        if evaluation is None or evaluation.step is None or evaluation.rising or call.bypass or not call.reached:
            return
        for key, rows in zip(call.keys, call.rows, strict=True):
            lane = self._lanes.get(key)
            if lane is None:  # dropped by `compute` or `stand_down` in the meantime
                continue
            value = self._keep(feature[rows])
            lane.history = lane.history.push(evaluation.step, value)
            lane.past = self.rule.signal.observe(evaluation.step, value, lane.past)

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
        self._ledger = {}
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
        self._ledger = {}
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
            figures |= signal.score(look, lane.computed_past if signal.reference == "computed" else lane.past)
        if home != evaluation.sigma.device:
            figures = {name: _scalar(value, home) for name, value in _read(figures).items()}
        advanced = ledger if obstacle else gate.advance(figures, ledger, calibration)
        reading = _read(figures if obstacle else {**figures, **advanced})
        step = evaluation.step = self._locate(reading.pop("sigma"))
        evaluation.scores = reading
        before = evaluation.before
        evaluation.rising = before is not None and step.sigma > before * (1 + SIGMA_TOLERANCE)
        verdict = Verdict(False, obstacle) if obstacle else gate.decide(reading, step, calibration)
        if verdict.note:
            self.recorder.note(verdict.note)
        forced = self._forced(step, evaluation.rising)
        if forced:
            verdict = Verdict(False, forced, verdict.limits)
        if not evaluation.rising:
            self._leader = key
            self._ledger = {n: self._keep(v) for n, v in gate.settle(advanced, verdict.skip).items()}
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
        return Step(index, total, sigma, stage, offset)

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
    return torch.tensor(value, dtype=torch.float64, device=home)


def _read(figures: Figures) -> dict[str, float]:
    """The one device-to-host read of an evaluation: all scalars in one transfer, in float64 where the device has it."""
    dtype = torch.float32 if next(iter(figures.values())).device.type == "mps" else torch.float64
    values = torch.stack([value.to(dtype) for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
