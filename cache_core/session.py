"""The engine: one sampling run. `Session` is the run (schedule, calls, records), a `track.Track` one rule in it.

It knows steps, lanes, decisions and history; it knows nothing of ComfyUI, of blocks or of any method. An evaluation:

    session.begin(sigma)         a denoiser evaluation starts: one tick of the method
      call = session.open(...)   one model call: which lanes (conditioning chunks) it holds (`open_all`: the evaluation
                                 as a whole; `open_beside`: a part of it that is no call)
        track.enter(call, ...)   first call: signal -> gate -> verdict, with the one device-to-host read; others follow
        track.predict(call)      on a skip: the feature that stands in, a new tensor b t d
        track.store(call, ...)   else: the computed feature into each lane's history; returns a correction, if any
        track.leave_out(call)    how much of the call did not run
    session.end()                the evaluation's record

Reading sigma is deferred to the first decision, so that it shares the read with the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .trace import COMPUTED, PARTIAL, SKIPPED, Record, Recorder, Stopwatch
from .track import Call, Evaluation, LaneKey, Observe, Track
from .types import SIGMA_TOLERANCE, CacheError, Method, Schedule, Step, Verdict


class Session:
    """One run. `schedule`: its noise levels; `keep` makes every tensor that outlives a forward; `corrects` is False
    where the sampler does not take what it is told times a difference of sigmas, so that nothing can be paid back;
    `observe` is told of every feature, computed or standing in.
    """

    def __init__(
        self,
        method: Method,
        schedule: Schedule,
        recorder: Recorder,
        keep: Callable[[Tensor], Tensor] = torch.clone,
        corrects: bool = True,
        observe: Observe | None = None,
    ) -> None:
        if not method.rules:
            raise CacheError(f"{method.name} has no rule, so there is nothing to run")
        self.method, self.schedule, self.recorder = method, schedule, recorder
        self.keep, self.corrects, self.observe = keep, corrects, observe
        self.active = not method.never
        self.tracks = tuple(Track(self, rule) for rule in method.rules)
        self.evaluation: Evaluation | None = None
        self._stages: dict[int, int] = {}
        self._previous_sigma: float | None = None
        self._skipped = False
        self._unread: list[tuple[Record, Tensor]] = []

    @property
    def revisits(self) -> bool:
        """Whether the sampler evaluates steps more than once."""
        return max(self._stages.values(), default=0) > 1

    def begin(self, sigma: Tensor) -> None:
        """Start an evaluation at `sigma` (any shape, its first element counts; read later)."""
        self.evaluation = Evaluation(sigma.flatten()[0], Stopwatch(sigma.device), self._previous_sigma)

    def open_all(self, key: LaneKey, rows: int) -> Call:
        """Open the evaluation as a whole, before any of its model calls, as one lane."""
        assert self.evaluation is not None
        self.evaluation.whole = Call((key,), (slice(0, rows),))
        return self.evaluation.whole

    def open_beside(self, key: LaneKey, rows: int) -> Call:
        """Open a part of the evaluation that is no model call itself, as one lane. Opened again, it bypasses."""
        call, evaluation = Call((key,), (slice(0, rows),)), self.evaluation
        call.bypass = evaluation is None or any(key in other.keys for other in evaluation.beside)
        if evaluation is not None:
            evaluation.beside.append(call)
        return call

    def called(self) -> int:
        """Rows of the model calls of this evaluation until now."""
        calls = self.evaluation.calls if self.evaluation else ()
        return sum(_rows(call) for call in calls)

    def spare(self, rows: int) -> None:
        """Say that so many rows of model calls are not made in this evaluation."""
        if self.evaluation is not None:
            self.evaluation.spared += rows

    def open(self, keys: Sequence[LaneKey], rows: Sequence[slice]) -> Call:
        """Open a model call. One that repeats a conditioning of this evaluation bypasses the cache."""
        call = Call(tuple(keys), tuple(rows))
        evaluation = self.evaluation
        if evaluation is None:  # a model call outside any denoiser evaluation
            call.bypass = True
            return call
        call.bypass = len({key.conditioning for key in keys}) < len(keys)
        call.bypass |= any(key.conditioning in evaluation.seen for key in keys)
        evaluation.calls.append(call)
        if not call.bypass:
            evaluation.seen.update((key.conditioning, key) for key in keys)
        return call

    def locate(self, sigma: float) -> Step:
        """Where the evaluation in progress stands. Counts it as a visit of its step, once."""
        evaluation = self.evaluation
        if evaluation is not None and evaluation.step is not None:
            return evaluation.step
        index = self.schedule.index(sigma)
        stage = self._stages.get(index, 0)
        self._stages[index] = stage + 1
        step, self._previous_sigma = self.schedule.at(sigma, stage), sigma
        if evaluation is not None:
            before = evaluation.before
            evaluation.step, evaluation.rising = step, before is not None and sigma > before * (1 + SIGMA_TOLERANCE)
        return step

    def adjusted(self, x: Tensor, denoised: Tensor) -> Tensor:
        """What the method makes of an evaluation's result; the result itself while the run has skipped nothing."""
        evaluation, output = self.evaluation, self.method.output
        if output is None or not self.active or evaluation is None or evaluation.step is None:
            return denoised
        self._skipped |= any(track.verdict is not None and track.verdict.skip for track in self._deciding())
        return output.adjust(evaluation.step, x, denoised) if self._skipped else denoised

    def end(self) -> None:
        """Finish the evaluation: its record, and what is not needed any more goes."""
        evaluation = self.evaluation
        if evaluation is None:
            return
        evaluation.watch.stop()
        record = self._record(evaluation)
        self.recorder.records.append(record)
        self.recorder.watches.append(evaluation.watch)
        if evaluation.step is None:
            self._unread.append((record, self.keep(evaluation.sigma)))
        for track in self.tracks:
            track.end()
        self.evaluation = None
        self.recorder.cache_bytes = max(self.recorder.cache_bytes, self.bytes())

    def stand_down(self, why: str) -> bool:
        """Compute everything from here on and free what is held; returns whether the sentence is new."""
        self.active = False
        self.recorder.stood_down = True
        for track in self.tracks:
            track.clear()
        return self.recorder.note(why)

    def close(self) -> None:
        """Free everything. Locates the evaluations whose sigma nobody had to read while sampling."""
        self.evaluation = None
        if self._unread:
            sigmas = torch.stack([sigma for _, sigma in self._unread]).tolist()
            for (record, _), sigma in zip(self._unread, sigmas, strict=True):
                step = self.locate(sigma)
                record.step, record.stage, record.sigma = step.index, step.stage, step.sigma
        self._unread.clear()
        for track in self.tracks:
            track.clear()
        self.active = False

    def bytes(self) -> int:
        """Memory held now, in bytes."""
        held = {id(t): t for track in self.tracks for t in track.tensors()}
        return sum(t.numel() * t.element_size() for t in held.values())

    def _deciding(self) -> list[Track]:
        """Every track and its parts, in the order in which they decide."""
        return [each for track in self.tracks for each in (track, *track.parts.values())]

    def _record(self, evaluation: Evaluation) -> Record:
        deciding = self._deciding()
        verdicts = [track.verdict for track in deciding if track.verdict is not None]
        idle = "stood down" if self.recorder.stood_down else "bypassed" if self.active else "off"
        verdict = next((v for v in verdicts if v.skip), verdicts[0] if verdicts else Verdict(False, idle))
        ran = sum(_rows(call) * (1.0 - _whole(call.left_out)) for call in evaluation.calls)
        rows = self.called() + evaluation.spared
        work = ran / rows if rows else 1.0
        work *= 1.0 - (evaluation.whole.left_out if evaluation.whole else 0.0)
        action = COMPUTED if not verdict.skip else PARTIAL if work else SKIPPED
        step = evaluation.step
        return Record(
            step=step.index if step else 0,
            stage=step.stage if step else 0,
            sigma=step.sigma if step else float("nan"),
            lanes=len(evaluation.seen),
            calls=len(evaluation.calls),
            action=action,
            skip=verdict.skip,
            work=work,
            reason=verdict.reason,
            scores={name: value for track in reversed(deciding) for name, value in track.scores.items()},
            limits={name: value for v in reversed(verdicts) for name, value in v.limits.items()},
            consecutive=max(track.consecutive for track in deciding),
            derived=evaluation.spared,
        )


def _rows(call: Call) -> int:
    return sum(rows.stop - rows.start for rows in call.rows)


def _whole(share: float) -> float:
    """A sum of shares, at most all of it: thirds add up to a whole."""
    return 1.0 if share > 1 - 1e-9 else share


def flow_noise(sigma: float) -> float:
    """log(sigma / (1 - sigma)): noise over signal of a flow model, sigma 0 .. 1; pure noise keeps a trace of signal."""
    return math.log((sigma + LEAST) / (max(1 - sigma, 0.0) + LEAST_SIGNAL))


def plain_noise(sigma: float) -> float:
    """log(sigma): noise over signal where the signal keeps its scale (epsilon and v-prediction models)."""
    return math.log(sigma + LEAST)


LEAST, LEAST_SIGNAL = 1e-6, 0.004
"""Both ends of a run lie infinitely far away in log-SNR; these keep them within reach, and every sigma apart."""
