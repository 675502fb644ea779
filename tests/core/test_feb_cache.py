"""FEB-Cache: Algorithm 1 on models with known norms, b(t) against the paper's formula, the noise's gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from cache_core import methods
from cache_core.history import History
from cache_core.outputs import NoiseGain, noise_scale
from cache_core.session import flow_noise, plain_noise
from cache_core.storage import packed, unpacked
from cache_core.tables import STAGE, WORK, State, by_share, fitted, single, walk, work
from cache_core.types import Feature, Schedule, Store

LETTERS = ".amX"


def written(table: Sequence[State]) -> str:
    return "".join(LETTERS[state] for state in table)


@dataclass
class Stub:
    """A model of which it is known by how much of the norm each module is off per step of age, for each sample."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    made: dict[State, int] = field(default_factory=dict)
    asked: list[tuple[int, State]] = field(default_factory=list)

    def changes(self, step: int, state: State) -> list[float]:
        self.asked.append((step, state))
        ages = {module: step - self.made[module] for module in (State.ATTENTION, State.MLP)}
        attention = [rate * ages[State.ATTENTION] * (state != State.MLP) for rate in self.attention]
        mlp = [rate * ages[State.MLP] * (state != State.ATTENTION) for rate in self.mlp]
        return [a + m for a, m in zip(attention, mlp, strict=True)]

    def advance(self, step: int, state: State) -> None:
        for module in (State.ATTENTION, State.MLP):
            if state not in (module, State.BOTH):
                self.made[module] = step


@pytest.mark.parametrize(
    ("attention", "mlp", "scale", "golden"),
    [
        # delta(t) = scale·(1.5 - i / T) at T = 10: .028, .026, .024, .022, .020, .018, .016, .014 from step 1 on
        ((0.001,), (0.001,), 0.02, ".XXXXXXXa."),  # .016 is too much at age 8
        ((0.1,), (0.1,), 0.02, ".........."),
        ((0.1,), (0.01,), 0.02, ".mm.m....."),  # attention alone never fits, so nothing fits in the last 40 %
        ((0.01,), (0.1,), 0.02, "......a.a."),  # and the MLP alone never does in the first 60 %
        ((0.01,), (0.0125,), 0.02, ".Xm.m.a.a."),  # both: .0225 at age 1; the MLP alone: .0125 a step
    ],
)
def test_algorithm_1_on_known_norms(
    attention: tuple[float, ...], mlp: tuple[float, ...], scale: float, golden: str
) -> None:
    assert written(walk(10, Stub(attention, mlp), scale)) == golden


def test_single_modules_belong_to_their_stage() -> None:
    assert [single(step, 10) for step in range(10)] == [State.MLP] * 6 + [State.ATTENTION] * 4
    stub = Stub((0.1,), (0.1,))
    walk(10, stub, 0.02)
    assert {state for step, state in stub.asked if step < STAGE * 10} == {State.BOTH, State.MLP}
    assert {state for step, state in stub.asked if step >= STAGE * 10} == {State.BOTH, State.ATTENTION}


def test_samples_vote_and_a_tie_is_the_careful_one() -> None:
    calm, wild = 0.001, 0.1
    assert written(walk(10, Stub((calm, calm, wild), (calm, calm, wild)), 0.02)) == ".XXXXXXXa."
    assert written(walk(10, Stub((calm, wild, wild), (calm, wild, wild)), 0.02)) == ".........."
    assert written(walk(10, Stub((calm, wild), (calm, wild)), 0.02)) == ".........."


@pytest.mark.parametrize("total", [5, 8, 20, 28, 50])
@pytest.mark.parametrize("wanted", [0.7, 0.5, 0.35])
def test_the_default_table_keeps_its_share(total: int, wanted: float) -> None:
    table = by_share(total, wanted)
    assert table[0] == table[-1] == State.FULL
    least = 2 / total  # both ends
    assert work(table) <= max(wanted, least) and work(table) > max(wanted, least) - 0.1
    assert work(table) == pytest.approx(sum(WORK[state] for state in table) / total)


def test_the_default_table_of_28_steps() -> None:
    assert written(by_share(28, 0.5)) == ".mm.Xm.Xmm.XmX.XXaa.XXa.Xa.."
    assert written(by_share(8, 0.4)) == ".XXmXaX."


def test_a_fit_that_cannot_be_met_leaves_out_what_can_be() -> None:
    assert written(fitted(6, lambda: Stub((1e9,), (1e9,)), 0.1)) == "......"


def test_the_noise_scale_is_the_papers() -> None:
    expected = {1: 1.0, 0.9: 0.989, 0.8: 0.984, 0.6: 0.981, 0.4: 0.980, 0.3: 0.969, 0.2: 0.964, 0.1: 0.962, 0: 0.961}
    assert {t: round(noise_scale(t, 0.98, 0.96), 3) for t in expected} == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("flow", [True, False])
def test_the_gain_scales_the_predicted_noise(flow: bool) -> None:
    """x = alpha·x0 + sigma·eps: with b·eps in place of eps, what is left of x is alpha·x0'."""
    schedule = Schedule((0.9, 0.5, 0.1, 0.0), flow_noise if flow else plain_noise, flow)
    step = schedule.at(0.5)
    alpha = 0.5 if flow else 1.0
    x0, noise = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    x = alpha * x0 + 0.5 * noise
    adjusted = NoiseGain(lambda now: 0.9).adjust(step, x, x0)
    assert torch.allclose((x - alpha * adjusted) / 0.5, 0.9 * noise, atol=1e-5)
    nearly_noise = Schedule((1.0, 0.5, 0.0), flow_noise, flow).at(1.0)
    assert torch.equal(NoiseGain(lambda now: 0.9).adjust(nearly_noise, x, x0), x0) == flow  # there is no signal to see


def test_the_methods_rules_follow_the_table() -> None:
    method = methods()["feb_cache"](work=0.5, inner_blocks=3)
    schedule = Schedule(tuple(1 - i / 28 for i in range(29)), flow_noise)
    reused: dict[str, str] = {}
    for rule in method.rules:
        verdicts = [rule.gate.decide({}, schedule.at(sigma), None) for sigma in schedule.sigmas[:-1]]  # type: ignore[arg-type]
        reused[rule.places[0].kind] = "".join("x" if verdict.skip else "." for verdict in verdicts)
        only = [verdict.only for verdict in verdicts]
        assert only[2] == {-3, -2, -1} and only[-2] == {0, 1, 2}
    table = written(by_share(28, 0.5))
    assert reused["attention"] == "".join("x" if state in "aX" else "." for state in table)
    assert reused["mlp"] == "".join("x" if state in "mX" else "." for state in table)


@pytest.mark.parametrize(("scaling", "gains"), [("paper", (0.981, 0.962)), ("code", (1 / 0.965, 1 / 0.965))])
def test_both_signs_of_the_noise_scale(scaling: str, gains: tuple[float, float]) -> None:
    output = methods()["feb_cache"](scaling=scaling).output
    assert isinstance(output, NoiseGain)
    schedule = Schedule(tuple(1 - i / 10 for i in range(11)), flow_noise)
    assert [output.gain(schedule.at(1 - i / 10)) for i in (4, 9)] == pytest.approx(gains, abs=1e-3)
    assert methods()["feb_cache"]().output is None


@pytest.mark.parametrize(("store", "exact"), [("device", True), ("ram", True), ("fp8", False)])
def test_what_is_held_reads_as_what_was_stored(store: Store, exact: bool) -> None:
    """Through a history of two entries, the older one too."""
    schedule = Schedule((1.0, 0.8, 0.6, 0.4, 0.0), flow_noise)
    history, stored = History(2), []
    for sigma in schedule.sigmas[:3]:
        value = torch.randn(2, 5, 16) * torch.logspace(-3, 3, 5).view(1, 5, 1)  # tokens of very different sizes
        stored.append(value)
        history = history.push(packed(Feature(schedule.at(sigma), value), store))
    found = [unpacked(entry, store, torch.float32, torch.device("cpu")).value for entry in history.entries]
    for mine, theirs in zip(found, stored[-2:], strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs) == exact
        assert float((mine - theirs).abs().max() / theirs.abs().max()) < 0.07
        assert float(((mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max()) < 0.05  # each token by itself
