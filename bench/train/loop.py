"""One training run: resumable, stopped without loss, the same whether or not it was interrupted.

A step draws everything random from (seed, step), so that a checkpoint needs no generator's state, and a run that was
stopped and continued goes the way of one that was not. A checkpoint holds weights, their average, the optimisers'
states by the parameters' names, and the step; it is written beside the old one and then renamed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.host.provision import SetupError, try_lock
from bench.train.ahead import Ahead
from bench.train.optimiser import Average, optimisers, schedule

SAVE_SECONDS, LOG_STEPS = 180, 20
SHEET_SECONDS = 600
"""Of processor time: on a busy machine a sheet takes as long as many steps."""


class Task(Protocol):
    """What is learned. `loss` draws its batch from the step alone."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def batches(self) -> Ahead[Any]: ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of this step's batch, and figures for the log."""

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        """Write a contact sheet of what these weights make."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one task is trained. steps: the goal, which may be raised later."""

    steps: int
    rate: float = 1e-3
    muon: bool = True
    average: float = 0.999
    clip: float = 1.0
    warmup: int = 100
    cool: float = 0.2


@dataclass(slots=True)
class Stop:
    """Set by Ctrl-C or SIGTERM: the step in hand ends, a checkpoint is written."""

    asked: bool = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Turns both signals into a wish for the time of the block."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def precision(device: str) -> torch.dtype | None:
    """bfloat16 where the device has units for it, else None: on other processors it is slower than float32."""
    if device == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        able = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    else:
        able = torch.cuda.is_bf16_supported()
    return torch.bfloat16 if able else None


def _moved(mover: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in mover.param_groups for parameter in group["params"]]


@dataclass(slots=True)
class Run:
    """A task, its folder and its state."""

    task: Task
    settings: Settings
    folder: Path
    device: str = "cpu"
    step: int = 0
    seconds: float = 0.0
    movers: list[torch.optim.Optimizer] = field(init=False)
    average: Average = field(init=False)
    _names: dict[nn.Parameter, str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task.model.to(self.device)
        self._names = {parameter: name for name, parameter in self.task.model.named_parameters()}
        self.movers = optimisers(self.task.model, self.settings.rate, self.settings.muon, precision(self.device))
        self.average = Average(self.task.model, self.settings.average)
        if self.checkpoint.exists():
            self.load()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.task.model.load_state_dict(state["model"])
        self.average.weights = state["average"]
        for mover in self.movers:
            for parameter in _moved(mover):
                saved = state["optimiser"].get(self._names[parameter], {})
                mover.state[parameter] = {key: value.to(self.device) for key, value in saved.items()}

    def begin(self, weights: dict[str, Tensor], step: int) -> None:
        """Start from weights that were trained so far elsewhere; what the optimisers knew is lost."""
        self.task.model.load_state_dict(weights)
        self.average = Average(self.task.model, self.settings.average)
        self.step = step

    def save(self) -> None:
        """Write the checkpoint; whatever happens meanwhile, one whole file is there."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.task.model.state_dict(),
            "average": self.average.weights,
            "optimiser": {
                self._names[parameter]: dict(mover.state[parameter])
                for mover in self.movers
                for parameter in _moved(mover)
            },
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, self.checkpoint)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Only one process trains in a folder; who it is stands in `pid`."""
        with open(self.folder / "lock", "a+b") as handle:
            if not try_lock(handle):
                raise SetupError(f"Another process trains in {self.folder}; end it first, or let it go on.")
            (self.folder / "pid").write_text(str(os.getpid()), "utf-8")
            yield

    def train(self, until: int | None = None) -> bool:
        """Steps until the goal, or until stopped: False. `until` ends earlier, for tests and trials."""
        with self.alone():
            if self.checkpoint.exists():  # another process may have gone on since this one looked
                self.load()
            return self._train(until)

    def _train(self, until: int | None) -> bool:
        goal = min(self.settings.steps, until or self.settings.steps)
        saved, shown = time.monotonic(), time.process_time()
        log: list[dict[str, float]] = []
        with stoppable() as stop:
            while self.step < goal and not stop.asked:
                log.append(self.one_step())
                if self.step % LOG_STEPS == 0 or self.step == goal:
                    self.write_log(log)
                    log = []
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if time.process_time() - shown > SHEET_SECONDS:
                    self.show()
                    shown = time.process_time()
            if log:
                self.write_log(log)
            self.save()
            if not stop.asked:
                self.show()
        self.task.batches.close()
        return not stop.asked

    def one_step(self) -> dict[str, float]:
        """One batch, one move. Returns its figures."""
        wall, processor = time.monotonic(), time.process_time()
        share = schedule(self.step, self.settings.steps, self.settings.warmup, self.settings.cool)
        kind = precision(self.device)
        with torch.autocast(self.device, dtype=kind or torch.bfloat16, enabled=kind is not None):
            loss, figures = self.task.loss(self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), self.settings.clip)
        for mover in self.movers:
            for group in mover.param_groups:
                group["lr"] = self.settings.rate * share
            if torch.isfinite(norm):
                mover.step()
            mover.zero_grad()
        self.step += 1
        self.average.update(self.task.model, self.step)
        spent = time.monotonic() - wall
        self.seconds += spent
        return {"loss": loss.item(), "gradient": float(norm), **figures,
                "wall": spent, "processor": time.process_time() - processor}  # fmt: skip

    def write_log(self, rows: list[dict[str, float]]) -> None:
        """One line: the step and the mean of every figure since the last line."""
        keys = dict.fromkeys(key for row in rows for key in row)
        means = {key: [row[key] for row in rows if key in row] for key in keys}
        line = {"step": self.step, **{key: round(sum(values) / len(values), 5) for key, values in means.items()}}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def show(self) -> None:
        """A contact sheet of the averaged weights."""
        self.task.show(self.average.weights, self.step, self.folder / f"sheet-{self.step:06d}.png")
