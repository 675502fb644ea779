"""`bench speed`: what a skipped evaluation costs, what the node costs while it skips nothing, and what a run gains.

Every arm is one way to sample the same picture. A round runs all of them, in an order that turns from round to round,
with a run without the node before and behind every two. Ratios are taken inside a round, against what a run without
the node would have taken at that moment (between its two neighbours), so that a machine that gets slower or faster
cancels; figures are medians over rounds with bootstrap intervals over the rounds.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.big_models import Size, build, conditioning, moderate
from bench.lab import ROOT, Lab, Sampled
from cache_core import methods
from cache_core.spectrum import Transform, low_pass
from cache_core.types import TRUNK

NONE, NEVER, REFUSING, SKIPPING = "no node", "gate never", "recording, refusing", "SpectralCache"
FREQCA, FREQCA_FFT, UNSPLIT = "FreqCa, DCT", "FreqCa, FFT", "FreqCa, no transform"
READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
TRANSFORM_REPEATS, TRANSFORM_LOOPS = 15, 5
CUTOFF = 0.1
GROUP = 2
"""Arms between two runs without a node."""
SMALLEST, IDLE_ROUNDS, IDLE_STEPS = (128, 1, 1, 16), 60, 10
"""The model on which the idle node's own time shows: what it does does not grow with the model."""


def arms() -> dict[str, Any]:
    """Name to method; None for no node at all. Skipping arms skip three in four: plenty to time, whatever the model."""
    made = methods()
    return {
        NONE: None,
        NEVER: made["spectralcache"](threshold=0.0),
        REFUSING: made["spectralcache"](threshold=1e-6),
        SKIPPING: made["spectralcache"](threshold=10.0, max_consecutive=3, gamma_low=1000.0, gamma_high=1000.0),
        FREQCA: made["freqca"](interval=4, transform="dct", cutoff=CUTOFF),
        FREQCA_FFT: made["freqca"](interval=4, transform="fft", cutoff=CUTOFF),
        UNSPLIT: made["freqca"](interval=4, transform="none"),
    }


@dataclass(frozen=True, slots=True)
class Base:
    """Seconds that a run without a node, and one evaluation of it, would have taken at some moment of a round."""

    total: float
    evaluation: float


@dataclass(frozen=True, slots=True)
class Round:
    """The runs of one round in the order in which they were made; the first and the last are without a node."""

    runs: tuple[tuple[str, Sampled], ...]

    def run(self, arm: str) -> Sampled:
        return next(run for name, run in self.runs if name == arm)

    def all(self, arm: str) -> list[Sampled]:
        return [run for name, run in self.runs if name == arm]

    def base(self, arm: str) -> Base:
        """Between the runs without a node before and behind the arm's, by the time in between."""
        ends = list(itertools.accumulate(run.wall for _, run in self.runs))
        middles = [end - run.wall / 2 for end, (_, run) in zip(ends, self.runs, strict=True)]
        here = next(i for i, (name, _) in enumerate(self.runs) if name == arm)
        plain = [i for i, (name, _) in enumerate(self.runs) if name == NONE]
        before, behind = max(i for i in plain if i < here), min(i for i in plain if i > here)
        share = (middles[here] - middles[before]) / (middles[behind] - middles[before])
        first, second = (self.runs[i][1] for i in (before, behind))

        def between(a: float, b: float) -> float:
            return a + share * (b - a)

        return Base(
            between(first.total, second.total),
            between(statistics.median(of_kind(first, True)), statistics.median(of_kind(second, True))),
        )

    @property
    def spread(self) -> float:
        """How far the runs without a node lie apart: the longest over the shortest, minus 1."""
        totals = [run.total for run in self.all(NONE)]
        return max(totals) / min(totals) - 1


@dataclass(slots=True)
class Measured:
    """All runs, round by round, and what was measured beside them.

    idle: seconds that the node adds to an evaluation while its gate is never, on the smallest model, round by round.
    """

    size: Size
    steps: int
    rounds: list[Round] = field(default_factory=list)
    transforms: dict[str, float] = field(default_factory=dict)
    idle: list[float] = field(default_factory=list)
    reads: Counter[str] = field(default_factory=Counter)

    def evaluations(self, arm: str, computed: bool) -> list[float]:
        """Seconds of the arm's computed or skipped evaluations; a run's first one, which sets up, is left out."""
        return [seconds for each in self.rounds for run in each.all(arm) for seconds in of_kind(run, computed)]


def of_kind(run: Sampled, computed: bool) -> list[float]:
    """Seconds of computed or of skipped evaluations, the first of the run left out."""
    return [s for s, ran in list(zip(run.seconds, run.computed, strict=True))[1:] if ran == computed]


def skip_share(each: Round, arm: str) -> float:
    """A skipped evaluation in a computed one of the run without a node."""
    return statistics.median(of_kind(each.run(arm), False)) / each.base(arm).evaluation


def overhead(each: Round, arm: str) -> float:
    """The whole run over the run without a node, minus 1."""
    return each.run(arm).total / each.base(arm).total - 1


def speedup(each: Round, arm: str) -> float:
    return each.base(arm).total / each.run(arm).total


def over_expected(each: Round, arm: str) -> float:
    """The speed-up over T / (C + s·S), with s the round's share of a skip."""
    ran = each.run(arm).computed
    skipped = len(ran) - sum(ran)
    return speedup(each, arm) * (sum(ran) + skip_share(each, arm) * skipped) / len(ran)


def order(names: Sequence[str], turn: int) -> list[str]:
    """One round: the arms from the `turn`-th on, and a run without a node around every `GROUP` of them."""
    turned = [*names[turn % len(names) :], *names[: turn % len(names)]]
    groups = [turned[i : i + GROUP] for i in range(0, len(turned), GROUP)]
    return [NONE, *itertools.chain.from_iterable([*group, NONE] for group in groups)]


def measure(lab: Lab, size: Size, steps: int, rounds: int, cfg: float, say: Callable[[str], None]) -> Measured:
    """Everything, on one model."""
    say(f"Building {size.name} ({size.tokens} image tokens)")
    model = build(size, lab.device)
    models = {name: model if method is None else lab.attach(model, method) for name, method in arms().items()}
    noise = torch.randn(size.latent, generator=torch.Generator().manual_seed(0))
    positive, negative = conditioning(size, 1), conditioning(size, 2)

    def sample(name: str) -> Sampled:
        return lab.sample(models[name], noise, positive, negative, cfg, steps)

    result = Measured(size, steps)
    with counted_reads(result.reads):
        sample(SKIPPING)  # loads the model too
    for name in (NONE, FREQCA):
        sample(name)
    names = [name for name in models if name != NONE]
    for index in range(rounds):
        result.rounds.append(Round(tuple((name, sample(name)) for name in order(names, index))))
        last = result.rounds[-1]
        seconds = statistics.median(of_kind(last.runs[0][1], True))
        say(f"round {index + 1} of {rounds}: a computed evaluation takes {seconds:.3f} s, runs without the node lie "
            f"{last.spread:.0%} apart")  # fmt: skip
    result.transforms = transforms(lab, size)
    result.idle = idle(lab, cfg)
    _require_skips(result)
    return result


def idle(lab: Lab, cfg: float) -> list[float]:
    """Seconds an evaluation that gate never adds, on the smallest model, each between two runs without the node."""
    size = moderate(*SMALLEST)
    model = build(size, lab.device)
    models = (model, lab.attach(model, arms()[NEVER]))
    noise = torch.randn(size.latent, generator=torch.Generator().manual_seed(0))
    positive, negative = conditioning(size, 1), conditioning(size, 2)

    def total(attached: bool) -> float:
        return lab.sample(models[attached], noise, positive, negative, cfg, IDLE_STEPS).total

    for attached in (True, False):
        total(attached)
    plain, differences = [total(False)], []
    for _ in range(IDLE_ROUNDS):
        with_node = total(True)
        plain.append(total(False))
        differences.append((with_node - (plain[-2] + plain[-1]) / 2) / IDLE_STEPS)
    return differences


def _require_skips(result: Measured) -> None:
    """A figure of an arm that did not do what its name says would be nonsense."""
    for name in (SKIPPING, FREQCA, FREQCA_FFT, UNSPLIT):
        if not result.evaluations(name, computed=False):
            raise RuntimeError(f"{name} skipped nothing in {result.steps} steps; use more with --steps")
    for name in (NONE, NEVER, REFUSING):
        if result.evaluations(name, computed=False):
            raise RuntimeError(f"{name} skipped an evaluation")


def transforms(lab: Lab, size: Size) -> dict[str, float]:
    """Seconds of one low-pass of one lane, on its own."""
    grid = (size.latent[-2] // 2, size.latent[-1] // 2)
    values = torch.randn(1, size.tokens, size.hidden, device=lab.device)
    kinds: tuple[Transform, ...] = ("dct", "fft")
    return {kind: statistics.median(_loops(lab, lambda k=kind: low_pass(values, grid, k, CUTOFF))) for kind in kinds}


def _loops(lab: Lab, call: Callable[..., Any]) -> Iterator[float]:
    call()
    for _ in range(TRANSFORM_REPEATS):
        started = lab.clock()
        for _ in range(TRANSFORM_LOOPS):
            call()
        yield (lab.clock() - started) / TRANSFORM_LOOPS


@contextmanager
def counted_reads(counts: Counter[str]) -> Iterator[None]:
    """Counts where the pack's own lines copy from the device to the host, by file and line.

    On a GPU each of them waits for everything queued before it. Conversions that torch makes in C are not seen.
    """
    originals = {name: getattr(torch.Tensor, name) for name in READERS}
    ours = (str(ROOT / "cache_core"), str(ROOT / "nodes"))

    def counting(name: str) -> Callable[..., Any]:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            if caller.f_code.co_filename.startswith(ours):
                counts[f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"] += 1
            return originals[name](tensor, *args, **kwargs)

        return read

    try:
        for name in READERS:
            setattr(torch.Tensor, name, counting(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


def cache_features(run: Sampled, size: Size) -> float:
    """What a lane's cache holds, in tensors as large as one feature of its site (image tokens, or the latent)."""
    assert run.trace is not None
    lanes = max(e["lanes"] for e in run.trace["evaluations"])
    numbers = size.tokens * size.hidden if run.trace["site"] == TRUNK else math.prod(size.latent)
    return run.trace["cache_bytes"] / lanes / (numbers * size.dtype.itemsize)
