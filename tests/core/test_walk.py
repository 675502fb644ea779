"""The walk: systems of the papers composed from the engine's parts and run on a toy transformer. What cannot be
composed here has no place in `cache_core.types`.

The toy: three layers of attention and MLP on 2 tokens of width 2, two conditionings, a falling schedule. Its sites are
a few lines each; the real ones are in nodes/sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_core.coefficients import IDENTITY, Calibration
from cache_core.gates import AtMost, Every, all_of
from cache_core.predictors import Hold, Linear
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder
from cache_core.track import Call, Facts, LaneKey, Seen, Track
from cache_core.types import (
    BRANCH,
    TRUNK,
    UNET,
    Figures,
    Gate,
    Method,
    Output,
    Past,
    Place,
    Probe,
    Rule,
    Schedule,
    Signal,
    Step,
    Verdict,
)  # fmt: skip

LAYERS, STEPS = 3, 12
ATTENTION, MLP = Place("attention"), Place("mlp")
SCHEDULE = Schedule(tuple(1 - i / STEPS for i in range(STEPS + 1)), flow_noise)
CPU = torch.device("cpu")


# parts that only the walk has -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask(Gate):
    """A fixed schedule that is resolved from the run's own: skip where `table(schedule)` says so."""

    table: Callable[[Schedule], frozenset[int]]
    only: frozenset[int] | None = None

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        assert step.schedule is not None
        return Verdict(step.index in self.table(step.schedule), "table", only=self.only)


@dataclass(frozen=True)
class BelowAnchor(Gate):
    """First-Block Cache: the change against the last computed evaluation, nothing accumulated."""

    threshold: float

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(reading["d"] < self.threshold, "threshold", {"d": self.threshold})


@dataclass(frozen=True)
class HeadChange(Signal):
    """Relative L1 change of what the head layers add, against the last computed evaluation."""

    needs = frozenset({"head"})
    reference = "computed"

    def look(self, probe: Probe) -> Past:
        assert probe.head is not None
        return {"head": probe.head}

    def score(self, now: Past, before: Past) -> Figures:
        return {"d": (now["head"] - before["head"]).abs().mean() / before["head"].abs().mean()}


@dataclass(frozen=True)
class Bias(Output):
    """FEB-Cache's noise scaling on the guided result: denoised' = b·denoised + (1 - b)·x / (1 - sigma)."""

    b: float

    def adjust(self, now: Step, x: Tensor, denoised: Tensor) -> Tensor:
        return self.b * denoised + (1 - self.b) * x / (1 - now.sigma)


def magnitudes(curve: Callable[[float], float], limit: float, most: int) -> Callable[[Schedule], frozenset[int]]:
    """MagCache: skip while the product of the curve's ratios since the anchor is near 1, at most `most` in a row."""

    @lru_cache
    def table(schedule: Schedule) -> frozenset[int]:
        skipped, product, error, row = set(), 1.0, 0.0, 0
        for i, sigma in enumerate(schedule.sigmas[:-1]):
            product *= curve(sigma)
            error += abs(1 - product)
            row += 1
            if 2 <= i < schedule.total - 1 and error < limit and row <= most:
                skipped.add(i)
            else:
                product, error, row = 1.0, 0.0, 0
        return frozenset(skipped)

    return table


# the toy --------------------------------------------------------------------------------------------------------------


def module(kind: str, layer: int, x: Tensor, sigma: float, lane: str) -> Tensor:
    """What a module gives before its gate: it depends on everything it may depend on."""
    return torch.sin(x + layer + (0.5 if kind == "mlp" else 0.0)) * (1 + sigma) + (0.1 if lane == "uncond" else 0.0)


@dataclass
class Toy:
    """One run of a method on the toy; `ran` counts modules, `results` are the guided results."""

    method: Method
    observe: Callable[[Seen], None] | None = None
    ran: dict[str, int] = field(default_factory=lambda: {"attention": 0, "mlp": 0})
    results: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.method.name, {}, "toy", "", STEPS)
        self.session = Session(self.method, SCHEDULE, self.recorder, observe=self.observe)
        self.tracks = {track.rule.places[0].kind: track for track in self.session.tracks}

    def run(self) -> Toy:
        x = torch.ones(1, 2, 2)
        for sigma in SCHEDULE.sigmas[:-1]:
            self.session.begin(torch.tensor([sigma]))
            cond = self.branch("cond", x, sigma)
            guided = cond + 2 * (cond - self.uncond(cond, x, sigma))
            self.results.append(self.session.adjusted(x, guided))
            self.session.end()
        self.session.close()
        return self

    def uncond(self, cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Site branch: the unconditional output as the conditional one and what was stored over it."""
        track = self.tracks.get("branch")
        if track is None:
            return self.branch("uncond", x, sigma)
        call = self.session.open_beside(LaneKey("uncond over cond"), 1)
        if track.enter(call, facts(x), lambda rows: Probe(), IDENTITY):
            self.session.spare(1)
            return cond + track.predict(call)
        out = self.branch("uncond", x, sigma)
        track.store(call, out - cond)
        return out

    def branch(self, lane: str, x: Tensor, sigma: float) -> Tensor:
        call = self.session.open([LaneKey(lane)], [slice(0, 1)])
        for kind in ("trunk", "unet"):
            if kind in self.tracks:
                return self.span(self.tracks[kind], call, x, sigma, lane)
        return self.layers(call, x, sigma, lane, range(LAYERS))

    def span(self, track: Track, call: Call, x: Tensor, sigma: float, lane: str) -> Tensor:
        """Sites trunk and unet: head and tail always run, what lies between is one unit."""
        place = track.rule.places[0]
        inside = range(place.head, LAYERS - place.tail)
        entry = self.layers(call, x, sigma, lane, range(place.head))
        base = entry if track.rule.feature == "residual" else torch.zeros_like(entry)
        if track.enter(call, facts(x), lambda rows: Probe(head=(entry - x)[rows]), IDENTITY):
            out = base + track.predict(call)
            track.leave_out(call, len(inside) / LAYERS)
        else:
            out = self.layers(call, entry, sigma, lane, inside)
            track.store(call, out - base)
        return self.layers(call, out, sigma, lane, range(LAYERS - place.tail, LAYERS))

    def layers(self, call: Call, x: Tensor, sigma: float, lane: str, numbers: range) -> Tensor:
        """Sites attention and mlp: every layer's module is a unit of its own."""
        skips = {}
        for kind in ("attention", "mlp"):
            track = self.tracks.get(kind)
            skips[kind] = track is not None and track.enter(call, facts(x), lambda rows: Probe(), IDENTITY)
        for layer in numbers:
            for kind, skip in skips.items():
                x = x + (0.5 + sigma) * self.unit(kind, skip, call, layer, x, sigma, lane)  # the current step's gate
        return x

    def unit(self, kind: str, skip: bool, call: Call, layer: int, x: Tensor, sigma: float, lane: str) -> Tensor:
        track = self.tracks.get(kind)
        only = track.verdict.only if track and track.verdict else None
        if skip and track is not None and track.holds(call, layer) and (only is None or layer in only):
            track.leave_out(call, 0.5 / LAYERS)
            return track.predict(call, layer)
        self.ran[kind] += 1
        out = module(kind, layer, x, sigma, lane)
        if track is not None:
            track.store(call, out, layer)
        return out


def facts(x: Tensor) -> Facts:
    return Facts(tuple(x.shape), x.dtype, CPU)


def skipped(toy: Toy) -> list[int]:
    return [r.step for r in toy.recorder.records if r.action == "skipped"]


def works(toy: Toy) -> list[float]:
    return [round(r.work, 6) for r in toy.recorder.records]


PLAIN = Method("plain", (Rule((TRUNK,), Signal(), Mask(lambda s: frozenset()), Hold()),))


# the systems ----------------------------------------------------------------------------------------------------------


def feb(attention: set[int], mlp: set[int], b: float = 1.0) -> Method:
    """FEB-Cache (2503.07120): the four states of its table are the combinations of two masks."""
    rules = [
        Rule((place,), Signal(), Mask(lambda s, steps=frozenset(steps): steps), Hold(), "absolute")  # type: ignore[misc]
        for place, steps in ((ATTENTION, attention), (MLP, mlp))
    ]
    return Method("FEB-Cache", tuple(rules), output=Bias(b) if b != 1 else None)


def test_feb_cache_has_four_states() -> None:
    toy = Toy(feb(attention={2, 3, 6}, mlp={3, 4, 6})).run()
    assert works(toy) == [1, 1, 0.5, 0, 0.5, 1, 0, 1, 1, 1, 1, 1]
    assert [r.action for r in toy.recorder.records][2:7] == ["partial", "skipped", "partial", "computed", "skipped"]
    lanes = 2
    assert toy.ran == {"attention": (STEPS - 3) * LAYERS * lanes, "mlp": (STEPS - 3) * LAYERS * lanes}
    x = torch.ones(1, 2, 2)  # step 2 by hand: attention of step 1, MLP fresh, gates of step 2
    by_hand = {}
    for lane in ("cond", "uncond"):
        before, now = SCHEDULE.sigmas[1:3]
        old, held = x, []
        for layer in range(LAYERS):
            held.append(module("attention", layer, old, before, lane))
            old = old + (0.5 + before) * held[-1]
            old = old + (0.5 + before) * module("mlp", layer, old, before, lane)
        new = x
        for layer in range(LAYERS):
            new = new + (0.5 + now) * held[layer]
            new = new + (0.5 + now) * module("mlp", layer, new, now, lane)
        by_hand[lane] = new
    assert torch.equal(toy.results[2], by_hand["cond"] + 2 * (by_hand["cond"] - by_hand["uncond"]))


def test_an_output_part_acts_on_every_evaluation_once_something_was_skipped() -> None:
    plain, scaled = Toy(feb({3}, {3})).run(), Toy(feb({3}, {3}, b=0.9)).run()
    changed = [not torch.equal(a, b) for a, b in zip(plain.results, scaled.results, strict=True)]
    assert changed == [False] * 3 + [True] * 9  # the skip itself, and computed evaluations behind it
    nothing, off = Toy(feb(set(), set(), b=0.9)).run(), Toy(PLAIN).run()
    assert all(torch.equal(a, b) for a, b in zip(nothing.results, off.results, strict=True))


def test_a_skip_may_be_for_some_layers_only() -> None:
    """Learning-to-Cache's mask, FEB-Cache's innerN, ProfilingDiT's block list: a verdict names layers."""
    rule = Rule((ATTENTION,), Signal(), Mask(lambda s: frozenset(range(2, 8)), frozenset({0, 2})), Hold(), "absolute")
    toy = Toy(Method("blocks", (rule,))).run()
    assert toy.ran["attention"] == 2 * (STEPS * LAYERS - 6 * 2)
    assert works(toy)[2] == round(1 - 2 * 0.5 / LAYERS, 6)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 10.0])
def test_first_block_cache_decides_behind_its_head(threshold: float) -> None:
    place = Place("trunk", head=1)
    method = Method("First-Block Cache", (Rule((place,), HeadChange(), BelowAnchor(threshold), Hold()),))
    toy, plain = Toy(method).run(), Toy(PLAIN).run()
    expected, anchor = [], 0  # the rule, on the toy's own first layer
    for i in range(1, STEPS - 1):
        head = {}
        for step in (anchor, i):
            x, sigma = torch.ones(1, 2, 2), SCHEDULE.sigmas[step]
            for kind in ("attention", "mlp"):
                x = x + (0.5 + sigma) * module(kind, 0, x, sigma, "cond")
            head[step] = x - 1
        if float((head[i] - head[anchor]).abs().mean() / head[anchor].abs().mean()) < threshold:
            expected.append(i)
        else:
            anchor = i
    assert [r.step for r in toy.recorder.records if r.skip] == expected
    assert (not expected) == (threshold == 0.0)
    assert toy.ran["mlp"] == plain.ran["mlp"] - 2 * 2 * len(expected)  # two lanes, two layers behind the head


def test_deep_cache_runs_both_ends() -> None:
    method = Method("DeepCache", (Rule((UNET,), Signal(), Every(3), Hold(), "absolute"),))
    toy = Toy(method).run()
    steps = [r.step for r in toy.recorder.records if r.skip]
    assert steps == [i for i in range(1, STEPS - 1) if i % 3]
    assert {w for w, r in zip(works(toy), toy.recorder.records, strict=True) if r.skip} == {round(2 / 3, 6)}


def faster(branch: int) -> Method:
    """FasterCache (2410.19355): attention extrapolated every 2nd step, the unconditional output derived."""
    attention = Rule((ATTENTION,), Signal(), Every(2), Linear(0.5), "absolute")
    return Method("FasterCache", (attention, Rule((BRANCH,), Signal(), Every(branch), Hold(), "absolute")))


def test_faster_cache_skips_attention_and_a_branch_each_by_its_own_rule() -> None:
    toy = Toy(faster(branch=5)).run()
    lanes = [r.lanes for r in toy.recorder.records]
    assert lanes == [2 if i % 5 == 0 or i == STEPS - 1 else 1 for i in range(STEPS)]  # the other one is not called
    both = {(False, False): 1.0, (True, False): 0.5, (False, True): 0.5, (True, True): 0.25}  # attention, branch
    inner = range(1, STEPS - 1)
    expected = [both[i % 2 == 1 and i in inner, i % 5 > 0 and i in inner] for i in range(STEPS)]
    expected[5] = 0.75  # the negative's attention has rested too long, and is computed
    assert works(toy) == expected
    # step 5 skips attention of both lanes: the negative rested since step 0, and its history is still there
    rested = Toy(faster(branch=3)).run()
    assert rested.recorder.records[3].work == 0.5 and rested.recorder.records[3].lanes == 2


def test_mag_cache_resolves_from_the_schedule() -> None:
    curve: Callable[[float], float] = lambda sigma: 1 - 0.03 * (1 - sigma)  # noqa: E731
    table = magnitudes(curve, limit=0.06, most=3)
    toy = Toy(Method("MagCache", (Rule((TRUNK,), Signal(), Mask(table), Hold()),))).run()
    assert skipped(toy) == sorted(table(SCHEDULE)) and 3 <= len(skipped(toy)) < STEPS - 3
    half = Schedule(SCHEDULE.sigmas[::2], flow_noise)
    assert len(table(half)) < len(table(SCHEDULE))  # fewer, wider steps: each one costs more


def test_a_rule_fed_by_a_profile() -> None:
    """A refusing run records; what it recorded becomes a table; the table is a part's argument."""
    seen: dict[tuple[Any, int], Tensor] = {}

    def record(told: Seen) -> None:
        assert not told.skipped
        seen[told.unit, told.feature.at.index] = told.feature.value

    recording = Method("record", (Rule((ATTENTION,), Signal(), Mask(lambda s: frozenset()), Hold(), "absolute"),))
    Toy(recording, record).run()
    assert len(seen) == LAYERS * STEPS
    change = {
        i: sum(float((seen[n, i] - seen[n, i - 1]).abs().mean() / seen[n, i].abs().mean()) for n in range(LAYERS))
        for i in range(1, STEPS)
    }
    calm = frozenset(sorted(change, key=lambda i: change[i])[:5])
    fed = Toy(Method("fed", (Rule((ATTENTION,), Signal(), Mask(lambda s: calm), Hold(), "absolute"),))).run()
    assert {r.step for r in fed.recorder.records if r.skip} == calm - {0, STEPS - 1}


# what holds for all of them -------------------------------------------------------------------------------------------


def test_an_outer_skip_freezes_the_inner_rules() -> None:
    """Each rule counts its own skips in a row; evaluations that the outer one leaves out do not count for the inner."""
    toy = Toy(Method("nested", (
        Rule((Place("guided"),), Signal(), Mask(lambda s: frozenset({3, 4, 7})), Hold(), "absolute"),
        Rule((TRUNK,), Signal(), all_of(AtMost(2)), Hold()),
    )))  # fmt: skip
    outer, x = toy.tracks["guided"], torch.ones(1, 2, 2)
    for sigma in SCHEDULE.sigmas[:-1]:
        toy.session.begin(torch.tensor([sigma]))
        call = toy.session.open_all(LaneKey("guided"), 1)
        if outer.enter(call, facts(x), lambda rows: Probe(), IDENTITY):
            outer.predict(call)
            outer.leave_out(call)
        else:
            outer.store(call, toy.branch("cond", x, sigma))
        toy.session.end()
    assert [r.action[0] for r in toy.recorder.records] == list("csssscssscsc")  # 0, 5 and 9 are the inner rule's
    assert [toy.recorder.records[i].work for i in (3, 4, 7)] == [0, 0, 0]
    assert [toy.recorder.records[i].calls for i in (3, 4, 7)] == [0, 0, 0]


def test_gates_see_their_own_ledger_only() -> None:
    """A budget beside a limit of skips in a row is still the budget, and the trace shows each one's scores."""
    from cache_core.gates import Budget

    def steps_of(gate: Gate) -> list[Any]:
        return Toy(Method("b", (Rule((TRUNK,), Signal(), gate, Hold()),))).run().recorder.records

    budget = Budget(lambda total: 4)
    alone, both = steps_of(budget), steps_of(all_of(AtMost(1000), budget))
    assert [r.action for r in alone] == [r.action for r in both]
    assert all(set(r.scores) <= {"consecutive", "estimate"} for r in both)
    assert any("consecutive" in r.scores for r in both)
    limited = steps_of(all_of(AtMost(1), budget))
    assert max(r.consecutive for r in limited) == 1
