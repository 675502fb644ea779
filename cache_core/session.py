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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .course import OTHER_SIZE, SIGMA_ROSE, Course
from .drawn import Drawn
from .motion import Motion
from .trace import COMPUTED, PARTIAL, SKIPPED, Record, Recorder, Stopwatch
from .track import Call, Evaluation, LaneKey, Observe, Track
from .types import BUDGET, CacheError, Figures, Method, Schedule, Step, Verdict


class Session:
    """One run. `schedule`: its noise levels; `keep` makes every tensor that outlives a forward; `observe` is told of
    every feature, computed or standing in; `has_float64` says whether a device can hold accumulators; `measures`:
    whether the sampler's own moves can be seen between evaluations (`motion`).
    """

    def __init__(
        self,
        method: Method,
        schedule: Schedule,
        recorder: Recorder,
        keep: Callable[[Tensor], Tensor] = torch.clone,
        observe: Observe | None = None,
        has_float64: Callable[[torch.device], bool] = lambda device: True,
        measures: bool = False,
    ) -> None:
        if not method.rules:
            raise CacheError(f"{method.name} has no rule, so there is nothing to run")
        self.method, self.schedule, self.recorder = method, schedule, recorder
        self.keep, self.observe, self.has_float64 = keep, observe, has_float64
        self.active = not method.never
        self.motion = Motion(keep, measures) if self.active else None
        self.drawn, self._draws = Drawn(keep), any(rule.drawn for rule in method.rules)
        self.parts: Motion | None = None
        self.tracks = tuple(Track(self, rule) for rule in method.rules)
        self.evaluation: Evaluation | None = None
        self.course = Course(schedule)
        self.too_short = False
        self._skipped = False
        self._unread: list[tuple[Record, Tensor]] = []

    @property
    def revisits(self) -> bool:
        """Whether the sampler evaluates steps more than once."""
        return self.course.revisits

    def begin(self, sigma: Tensor) -> None:
        """Start an evaluation at `sigma` (any shape, its first element counts; read later)."""
        self.evaluation = Evaluation(sigma.flatten()[0], Stopwatch(sigma.device))

    def look(self, x: Tensor) -> None:
        """See what the sampler has come to in the evaluation that has begun."""
        evaluation = self.evaluation
        if evaluation is None or not self.active:
            return
        if self.course.other_size(tuple(x.shape)):
            evaluation.apart = OTHER_SIZE
        elif self.motion is not None:
            self.motion.arrive(x, evaluation.sigma)
            if self._draws and self.motion.stochastic:
                self.drawn.arrive(x, evaluation.sigma)

    def answer(self, x: Tensor, denoised: Tensor) -> None:
        """See what the sampler is told: the result of the evaluation that is about to end."""
        evaluation = self.evaluation
        if evaluation is None or not self.active or self.motion is None or evaluation.apart not in ("", SIGMA_ROSE):
            return
        computed = not any(track.verdict is not None and track.verdict.skip for track in self.tracks)
        if computed and not evaluation.apart:
            self.motion.computed(x, denoised, evaluation.sigma)
        self.motion.leave(denoised, computed)
        if self._draws and self.motion.stochastic:
            self.drawn.leave(x, denoised, evaluation.sigma)

    @property
    def alarm(self) -> str:
        """Why the run has to be left alone from here on, or an empty string."""
        if self.motion is None:
            return ""
        if self.motion.repeats:
            return ANOTHER_CACHE
        if self.rolled:
            return ROLLED
        return THROWN_AWAY if self.motion.gone > THROWN else ""

    @property
    def in_doubt(self) -> bool:
        """Whether the sampler has thrown every latent away until now; its next moves tell whether it always does."""
        return self.motion is not None and self.motion.doubtful(THROWN)

    @property
    def rolled(self) -> bool:
        """Whether the model is shown other parts of the picture from one evaluation to the next."""
        parts = self.parts
        return parts is not None and parts.gone > ELSEWHERE and not (self.motion and self.motion.stochastic)

    def look_at_part(self, x: Tensor) -> None:
        """See the first model call's latent, where something hands the picture over in parts."""
        evaluation = self.evaluation
        if self.parts is not None and evaluation is not None and not evaluation.apart and len(evaluation.calls) == 1:
            self.parts.arrive(x, evaluation.sigma)

    def answer_part(self, x: Tensor, denoised: Tensor) -> None:
        """See the first model call's result."""
        evaluation = self.evaluation
        if self.parts is not None and evaluation is not None and not evaluation.apart and len(evaluation.calls) == 1:
            self.parts.leave(denoised)

    def read(self, reading: Mapping[str, Sequence[float]]) -> None:
        """Take what the run itself has asked for."""
        for motion in self._motions():
            motion.read(reading)

    def figures(self) -> Figures:
        """What the run itself wants read: each of any length."""
        return {name: figure for motion in self._motions() for name, figure in motion.figures().items()}

    def in_parts(self) -> None:
        """Something around the model hands it the picture in parts: watch whether they are the same ones."""
        self.parts = Motion(self.keep, True, "part ", once=True)

    def _motions(self) -> list[Motion]:
        return [motion for motion in (self.motion, self.parts) if motion is not None]

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
        """Open a model call. The n-th repeat of a conditioning in one evaluation (tiles, further passes of a guider) is
        a lane of its own.
        """
        evaluation = self.evaluation
        if evaluation is None:  # a model call outside any denoiser evaluation
            return Call(tuple(keys), tuple(rows), bypass=True)
        call = Call(tuple(self._numbered(evaluation, key) for key in keys), tuple(rows))
        evaluation.calls.append(call)
        return call

    @staticmethod
    def _numbered(evaluation: Evaluation, key: LaneKey) -> LaneKey:
        repeat = evaluation.seen.get(key.conditioning, 0)
        evaluation.seen[key.conditioning] = repeat + 1
        return replace(key, repeat=repeat)

    def locate(self, sigma: float) -> Step:
        """Where the evaluation in progress stands. Counts it as a visit of its step, once."""
        evaluation = self.evaluation
        if evaluation is None:
            return self.course.visit(sigma, ordered=False).step
        if evaluation.step is None:
            stand = self.course.visit(sigma, ordered=True, apart=evaluation.apart)
            evaluation.step, evaluation.apart, evaluation.shown = stand.step, stand.apart, sigma
            if stand.again:
                evaluation.again = True
                self.drawn.clear()
                for track in self.tracks:
                    track.begin_again()
        return evaluation.step

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
        watched = _size(tensor for motion in self._motions() for tensor in motion.tensors())
        self.recorder.watch_bytes = max(self.recorder.watch_bytes, watched)

    def stand_down(self, why: str) -> bool:
        """Compute everything from here on and free what is held; returns whether the sentence is new."""
        self.active = False
        self.recorder.stood_down = True
        self._free()
        return self.recorder.note(why)

    def close(self) -> None:
        """End the run and free everything."""
        self.pause()
        self._free()

    def expected(self) -> float | None:
        """The relative error of the last latent that the method expects, by the steps that were computed."""
        ask = self.method.expected
        if ask is None or self.recorder.stood_down:
            return None
        computed = {record.step for record in self.recorder.records if record.action != SKIPPED}
        return ask(self.schedule, sorted(computed))

    def go_on(self, levels: Sequence[float], recorder: Recorder) -> None:
        """Take up a paused run at the first of these noise levels, where it has stopped: both are one run. One that
        does not end without noise is not the last.
        """
        done = self.schedule.sigmas[:-1]
        self.schedule = replace(self.schedule, sigmas=(*done, *levels), open=levels[-1] > 0)
        self.course, self.recorder = Course(self.schedule, len(done)), recorder
        self.too_short, self.active = False, True

    def pause(self) -> None:
        """End the run, but hold what the next one needs to go on with it. Locates the evaluations whose sigma nobody
        had to read while sampling.
        """
        self.evaluation = None
        if self._unread:
            sigmas = torch.stack([sigma for _, sigma in self._unread]).tolist()
            for (record, _), sigma in zip(self._unread, sigmas, strict=True):
                step = self.locate(sigma)
                record.step, record.stage, record.sigma = step.index - self.course.first, step.stage, step.sigma
        self._unread.clear()
        records = self.recorder.records
        rose = sum(record.reason == SIGMA_ROSE for record in records)
        if self.active and rose > 1 and any(BUDGET in record.limits for record in records):
            self.recorder.note(
                f"the sampler goes back up in noise within its steps; these {rose} evaluations are computed beyond the "
                "budget"
            )
        self.active = False

    def _free(self) -> None:
        for track in self.tracks:
            track.clear()
        for motion in self._motions():
            motion.clear()
        self.drawn.clear()

    def bytes(self) -> int:
        """Memory that the rules hold now, in bytes."""
        holders: tuple[Track | Drawn, ...] = (*self.tracks, self.drawn)
        return _size(tensor for holder in holders for tensor in holder.tensors())

    def _deciding(self) -> list[Track]:
        """Every track and its parts, in the order in which they decide."""
        return [each for track in self.tracks for each in (track, *track.parts.values())]

    def _record(self, evaluation: Evaluation) -> Record:
        deciding = self._deciding()
        verdicts = [track.verdict for track in deciding if track.verdict is not None]
        idle = "stood down" if self.recorder.stood_down else "bypassed" if self.active else "off"
        idle = evaluation.apart or idle
        ran = sum(_rows(call) * (1.0 - _whole(call.left_out)) for call in evaluation.calls)
        rows = self.called() + evaluation.spared
        work = ran / rows if rows else 1.0
        work *= 1.0 - (evaluation.whole.left_out if evaluation.whole else 0.0)
        after_all = self.recorder.stood_down and work == 1.0  # what was to be skipped was computed
        skipping = [verdict for verdict in verdicts if verdict.skip and not after_all]
        verdict = [*skipping, *(v for v in verdicts if not v.skip), Verdict(False, idle)][0]
        action = COMPUTED if not verdict.skip else PARTIAL if work else SKIPPED
        step = evaluation.step
        return Record(
            step=step.index - self.course.first if step else 0,
            stage=step.stage if step else 0,
            sigma=evaluation.shown if step else float("nan"),
            lanes=sum(evaluation.seen.values()),
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


ANOTHER_CACHE = "the model gives one result for different inputs, as another cache does; remove one of the two"
THROWN, ELSEWHERE = 0.9, 0.3
"""Shares of a latent that is thrown away: by a sampler that makes it anew, by a look at another part of the picture."""
ROLLED = "the model is shown other parts of the picture at every step, so nothing is known of the next ones"
THROWN_AWAY = "the sampler makes the latent anew from fresh noise at every step: a forecast would show as grain"
LEAST, LEAST_SIGNAL = 1e-6, 0.004
"""Both ends of a run lie infinitely far away in log-SNR; these keep them within reach, and every sigma apart."""


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, of which one may come twice."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(each): each for each in tensors}.values())
