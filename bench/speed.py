"""`bench speed`: what a skipped evaluation costs, what the node costs while it skips nothing, and what a run gains.

Every arm is one way to sample the same picture. A round runs all of them, in an order that turns from round to round;
figures are lower quartiles over rounds, so that they hold while other programs disturb most of them, with bootstrap
intervals over the rounds.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.big_models import Size, build, conditioning
from bench.lab import ROOT, Lab, Sampled
from cache_core import methods
from cache_core.spectrum import Transform, low_pass
from cache_core.types import TRUNK

NONE, NEVER, REFUSING, SKIPPING = "no node", "gate never", "recording, refusing", "SpectralCache"
FREQCA, FREQCA_FFT, UNSPLIT = "FreqCa, DCT", "FreqCa, FFT", "FreqCa, no transform"
READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
TRANSFORM_REPEATS, TRANSFORM_LOOPS = 15, 5
CUTOFF = 0.1


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


Rounds = Sequence[dict[str, Sampled]]
"""Each round: the run of every arm."""


@dataclass(slots=True)
class Measured:
    """All runs, round by round, and what was measured beside them."""

    size: Size
    steps: int
    rounds: list[dict[str, Sampled]] = field(default_factory=list)
    transforms: dict[str, float] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)

    def evaluations(self, arm: str, computed: bool) -> list[float]:
        """Seconds of the arm's computed or skipped evaluations; a run's first one, which sets up, is left out."""
        return [seconds for run in self.runs(arm) for seconds in _of_kind(run, computed)]

    def runs(self, arm: str) -> list[Sampled]:
        return [results[arm] for results in self.rounds]


def calm(runs: Sequence[Sampled]) -> float:
    """Seconds of a whole run: at each evaluation the lower quartile over the runs, and that of what is around them.

    One run's sum would carry whatever disturbed any of its evaluations.
    """
    places = [quartile([run.seconds[i] for run in runs]) for i in range(len(runs[0].seconds))]
    return math.fsum(places) + quartile([run.total - math.fsum(run.seconds) for run in runs])


def quartile(values: Sequence[float]) -> float:
    """The lower quartile: calm while most measurements are disturbed."""
    return sorted(values)[len(values) // 4]


def skip_share(rounds: Rounds, arm: str) -> float:
    """A skipped evaluation in a computed one of the run without a node."""
    skipped = [s for results in rounds for s in _of_kind(results[arm], False)]
    return quartile(skipped) / quartile([s for results in rounds for s in _of_kind(results[NONE], True)])


def overhead(rounds: Rounds, arm: str) -> float:
    """The whole run over the run without a node, minus 1."""
    return calm([results[arm] for results in rounds]) / calm([results[NONE] for results in rounds]) - 1


def speedup(rounds: Rounds, arm: str) -> float:
    return 1 / (1 + overhead(rounds, arm))


def over_expected(rounds: Rounds, arm: str) -> float:
    """The speed-up over T / (C + s·S), with s the measured share of a skip."""
    computed, total = sum(rounds[0][arm].computed), len(rounds[0][arm].computed)
    return speedup(rounds, arm) / (total / (computed + skip_share(rounds, arm) * (total - computed)))


def _of_kind(run: Sampled, computed: bool) -> list[float]:
    return [s for s, ran in list(zip(run.seconds, run.computed, strict=True))[1:] if ran == computed]


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
    names = list(models)
    for index in range(rounds):
        turn = index % len(names)
        result.rounds.append({name: sample(name) for name in [*names[turn:], *names[:turn]]})
        seconds = quartile(_of_kind(result.rounds[-1][NONE], True))
        say(f"round {index + 1} of {rounds}: a computed evaluation takes {seconds:.3f} s")
    result.transforms = transforms(lab, size)
    _require_skips(result)
    return result


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
    return {kind: quartile(list(_loops(lab, lambda k=kind: low_pass(values, grid, k, CUTOFF)))) for kind in kinds}


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
