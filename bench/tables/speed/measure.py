"""`bench speed`: what a skipped evaluation costs, what the node costs while it skips nothing, and what a run gains.

Every arm is one way to sample the same picture. A round runs all of them, in an order that turns from round to round,
with a run without the node before and behind every few. Ratios are taken inside a round, against what a run without
the node would have taken at that moment (between its two neighbours), so that a machine that gets slower or faster
cancels; figures are medians over rounds with bootstrap intervals over the rounds.

Two more arms are floors, what ComfyUI itself spends where everything is skipped that a site can skip: the model with
its blocks taken out (site trunk), and the sampler with the model call taken out (site model).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.lab import Lab, Sampled
from bench.lab.sizes import Size, build, conditioning
from bench.tables.speed import idle
from bench.tables.speed.idle import NONE, Idle
from bench.tables.speed.waits import Waits, counted
from cache_core import methods
from cache_core.spectrum import Transform, low_pass
from cache_core.types import TRUNK

REFUSING, SKIPPING, AUTO = "recording, refusing", "SpectralCache", "SpectralCache Auto"
FREQCA, FREQCA_FFT, UNSPLIT = "FreqCa, DCT", "FreqCa, FFT", "FreqCa, no transform"
SKIPS = (AUTO, SKIPPING, UNSPLIT, FREQCA, FREQCA_FFT)
NO_BLOCKS, NO_MODEL = "without any block", "without the model"
FLOORS = (NO_BLOCKS, NO_MODEL)
BLOCK_LISTS = ("double_blocks", "single_blocks", "transformer_blocks")
KEY = "bench floor"
TRANSFORM_REPEATS, TRANSFORM_LOOPS = 15, 5
CUTOFF = 0.1
COUNTED = {"cpu": (SKIPPING, FREQCA), "cuda": (AUTO, SKIPPING, FREQCA)}
"""Arms whose waits are counted. Auto keeps its ledger on the CPU whatever the device: reading it there waits for
nothing, but on a CPU looks like all other reads.
"""
LONG_STEPS, LONG_COMPUTED, LONG_RUNS = 100, 12, 6
"""A run in which nearly every step is skipped."""
GROUP = {"cpu": 2, "cuda": 4}
"""Arms between two runs without a node: a GPU with nothing else to do drifts less."""


def arms() -> dict[str, Any]:
    """Name to method; None for no node at all. Auto as it comes; the others skip three in four: plenty to time,
    whatever the model.
    """
    made = methods()
    return {
        NONE: None,
        REFUSING: made["spectralcache"](threshold=1e-6),
        AUTO: made["auto"](quality="Custom"),
        SKIPPING: made["spectralcache"](threshold=10.0, max_consecutive=3, gamma_low=1000.0, gamma_high=1000.0),
        FREQCA: made["freqca"](interval=4, transform="dct", cutoff=CUTOFF),
        FREQCA_FFT: made["freqca"](interval=4, transform="fft", cutoff=CUTOFF),
        UNSPLIT: made["freqca"](interval=4, transform="none"),
    }


def floors(model: Any) -> dict[str, Any]:
    """Clones of the model on which the host does all of its own work, and nothing else is done."""
    from comfy.patcher_extension import WrappersMP

    blocks, call = model.clone(), model.clone()
    blocks.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _without_blocks)
    call.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _without_model)
    return {NO_BLOCKS: blocks, NO_MODEL: call}


def _without_blocks(executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
    """SAMPLER_SAMPLE: the model is loaded; its lists of blocks are empty until the run ends."""
    diffusion_model = guider.model_patcher.model.diffusion_model
    lists = {name: blocks for name in BLOCK_LISTS if (blocks := getattr(diffusion_model, name, None)) is not None}
    for name in lists:
        setattr(diffusion_model, name, torch.nn.ModuleList())
    try:
        return executor(guider, *args, **kwargs)
    finally:
        for name, blocks in lists.items():
            setattr(diffusion_model, name, blocks)


def _without_model(_: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """APPLY_MODEL: an answer at once."""
    return x


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
    """All runs of one number of steps, round by round."""

    steps: int
    rounds: list[Round] = field(default_factory=list)

    def evaluations(self, arm: str, computed: bool) -> list[float]:
        """Seconds of the arm's computed or skipped evaluations; a run's first one, which sets up, is left out."""
        return [seconds for each in self.rounds for run in each.all(arm) for seconds in of_kind(run, computed)]


@dataclass(slots=True)
class Speeds:
    """One model: its runs for each number of steps, and what was measured beside them. long: Auto's of LONG_STEPS."""

    size: Size
    device: str
    idle: Idle
    runs: list[Measured]
    transforms: dict[str, float] = field(default_factory=dict)
    waits: dict[str, Waits] = field(default_factory=dict)
    long: list[Sampled] = field(default_factory=list)


def of_kind(run: Sampled, computed: bool) -> list[float]:
    """Seconds of computed or of skipped evaluations, the first of the run left out."""
    return [s for s, ran in list(zip(run.seconds, run.computed, strict=True))[1:] if ran == computed]


def skip_share(each: Round, arm: str) -> float:
    """A skipped evaluation in a computed one of the run without a node."""
    return statistics.median(of_kind(each.run(arm), False)) / each.base(arm).evaluation


def floor_of(each: Round, arm: str) -> str:
    """The arm in which everything is skipped that the arm's site can skip."""
    trace = each.run(arm).trace
    assert trace is not None
    return NO_BLOCKS if trace["site"] == TRUNK.kind else NO_MODEL


def own_share(each: Round, arm: str) -> float:
    """What a skipped evaluation costs above ComfyUI's own work, in a computed one of the run without a node."""
    return skip_share(each, arm) - skip_share(each, floor_of(each, arm))


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


def beyond_computed(run: Sampled) -> float:
    """What a run took beyond its computed evaluations, in these: the skipped ones, set-up, sampler and end."""
    return run.total / (sum(run.computed) * statistics.median(of_kind(run, True))) - 1


def order(names: Sequence[str], turn: int, group: int) -> list[str]:
    """One round: the arms from the `turn`-th on, and a run without a node around every `group` of them."""
    turned = [*names[turn % len(names) :], *names[: turn % len(names)]]
    groups = [turned[i : i + group] for i in range(0, len(turned), group)]
    return [NONE, *itertools.chain.from_iterable([*group, NONE] for group in groups)]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. until: no round but the first is begun that would end after this moment of
    `time.monotonic`; a quarter of the time until then goes to the idle node.
    """

    steps: tuple[int, ...]
    rounds: int
    idle_rounds: int
    cfg: float
    until: float = math.inf


def measure(lab: Lab, size: Size, plan: Plan, say: Callable[[str], None]) -> Speeds:
    """Everything, on one model."""
    quarter = time.monotonic() + (plan.until - time.monotonic()) / 4
    result = Speeds(size, lab.device, idle.measure(lab, size, plan.idle_rounds, plan.cfg, say, quarter), [])
    say(f"Building {size.name} ({size.tokens} image tokens)")
    model = build(size, lab.device)
    models = {name: model if method is None else lab.attach(model, method) for name, method in arms().items()}
    models.update(floors(model))
    noise = torch.randn(size.latent, generator=torch.Generator().manual_seed(0))
    positive, negative = conditioning(size, 1), conditioning(size, 2)

    def sample(model: Any, steps: int) -> Sampled:
        return lab.sample(model, noise, positive, negative, plan.cfg, steps)

    sample(model, plan.steps[0])  # loads it
    for name in COUNTED[lab.device]:
        waits = result.waits[name] = Waits()
        with counted(waits, lab.device):
            sample(lab.attach(waits.numbered(model), arms()[name]), plan.steps[0])
    result.transforms = transforms(lab, size)
    many = lab.attach(model, methods()["auto"](quality="Custom", computed=LONG_COMPUTED))
    result.long = [sample(many, LONG_STEPS) for _ in range(LONG_RUNS)]
    result.runs = [Measured(steps) for steps in plan.steps]
    names = [name for name in models if name != NONE]
    for index in range(plan.rounds):
        begun = time.monotonic()
        for measured in result.runs:
            made = order(names, index, GROUP[lab.device])
            measured.rounds.append(Round(tuple((name, sample(models[name], measured.steps)) for name in made)))
            _require(measured)
            say(f"round {index + 1} of {plan.rounds}, {progress(measured)}")
        if 2 * time.monotonic() - begun > plan.until:
            break
    return result


def progress(measured: Measured) -> str:
    last = measured.rounds[-1]
    seconds = statistics.median(of_kind(last.runs[0][1], True))
    return (
        f"{measured.steps} steps: a computed evaluation takes {seconds:.3f} s, runs without the node lie "
        f"{last.spread:.0%} apart"
    )


def _require(measured: Measured) -> None:
    """A figure of an arm that did not do what its name says would be nonsense."""
    for name in (*SKIPS, *FLOORS):
        if not measured.evaluations(name, computed=False):
            raise RuntimeError(f"{name} skipped nothing in {measured.steps} steps; use more with --steps")
    for name, wrong in ((NONE, False), (REFUSING, False), (NO_BLOCKS, True), (NO_MODEL, True)):
        if measured.evaluations(name, computed=wrong):
            raise RuntimeError(f"{name} {'computed' if wrong else 'skipped'} an evaluation")
    for each in measured.rounds:
        for name, run in each.runs:
            if run.trace is not None and run.trace["state"] != "done":
                raise RuntimeError(f"{name}: {run.trace['state']} ({'; '.join(run.trace['notes'])})")


def transforms(lab: Lab, size: Size) -> dict[str, float]:
    """Seconds of one low-pass of one lane, on its own."""
    values = torch.randn(1, size.tokens, size.hidden, device=lab.device).to(size.dtype)
    kinds: tuple[Transform, ...] = ("dct", "fft")

    def once(kind: Transform) -> Callable[[], torch.Tensor]:
        return lambda: low_pass(values, size.grid, kind, CUTOFF)

    return {kind: statistics.median(_loops(lab, once(kind))) for kind in kinds}


def _loops(lab: Lab, call: Callable[..., Any]) -> Iterator[float]:
    call()
    for _ in range(TRANSFORM_REPEATS):
        started = lab.clock()
        for _ in range(TRANSFORM_LOOPS):
            call()
        yield (lab.clock() - started) / TRANSFORM_LOOPS


def cache_features(run: Sampled, size: Size) -> float:
    """What a lane's cache holds, in tensors as large as one feature of its site: image tokens in the model's dtype, or
    the latent as the sampler has it, in float32.
    """
    assert run.trace is not None
    lanes = max(e["lanes"] for e in run.trace["evaluations"])
    trunk = size.tokens * size.hidden * size.dtype.itemsize
    feature = trunk if run.trace["site"] == TRUNK.kind else math.prod(size.latent) * torch.float32.itemsize
    return run.trace["cache_bytes"] / lanes / feature
