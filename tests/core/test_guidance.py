"""The unconditional result derived from the conditional one: the papers' equations written down once more, on toys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_core import methods
from cache_core.coefficients import IDENTITY
from cache_core.guidance import BandGains, BranchDistance, NoDifference
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder, report
from cache_core.track import Facts, LaneKey
from cache_core.types import Feature, Method, Probe, Schedule

METHODS = methods()
SIDE = 20


def schedule(total: int) -> Schedule:
    return Schedule(tuple(1 - i / total for i in range(total + 1)), flow_noise)


def output(step: int, side: str, frames: int = 1) -> Tensor:
    """b (t h w) c: what the toy model gives; the sides differ by less and less."""
    generator = torch.Generator().manual_seed(7)
    base, own, drift = (torch.randn(1, frames * SIDE * SIDE, 2, generator=generator) for _ in range(3))
    return base + (0.3 / (1 + step) * own + 0.01 * step * drift if side == "uncond" else 0.1 * step * drift)


# FasterCache's equations ----------------------------------------------------------------------------------------------


def bands(difference: Tensor) -> tuple[Tensor, Tensor]:
    """The released split of b c h w: a disc of min(H, W) // 5 lines around the centre of the shifted spectrum."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference), dim=(-2, -1))
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = (rows - SIDE // 2) ** 2 + (columns - SIDE // 2) ** 2 <= (SIDE // 5) ** 2
    return spectrum * disc, spectrum * ~disc


def restored(spectrum: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real


@pytest.mark.parametrize(("now", "gains"), [(4, (1.2, 1.0)), (9, (1.2, 1.0)), (10, (1.0, 1.3)), (14, (1.0, 1.3))])
@pytest.mark.parametrize("frames", [1, 3])
def test_uncond_is_cond_plus_weighted_bands(now: int, gains: tuple[float, float], frames: int) -> None:
    """Eqs. 9 to 11: F(uncond) = F(cond) + w_1 D_low + w_2 D_high, frames each by themselves."""
    at = schedule(20)
    held = output(now - 2, "uncond", frames) - output(now - 2, "cond", frames)
    planes = held.view(1, frames, SIDE, SIDE, 2).permute(0, 1, 4, 2, 3)
    low, high = bands(planes)
    expected = restored(gains[0] * low + gains[1] * high).permute(0, 1, 3, 4, 2).reshape(held.shape)
    grid = (SIDE, SIDE) if frames == 1 else (frames, SIDE, SIDE)
    history = (Feature(at.at(at.sigmas[now - 2]), held),)
    found = BandGains(0.2, 0.3).predict(history, at.at(at.sigmas[now]), grid)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(BandGains(0.2, 0.3).predict(history, at.at(at.sigmas[now]), None), held)  # no grid, no bands


def test_the_released_weights_compound() -> None:
    """1.1 times more at every derived step: 1.1^4 at the end of a window of five; low in (99, 901), high below 301."""
    at = schedule(50)
    part = BandGains(0.1, 0.1, compounding=True)
    gains = [part.gains(at.at(at.sigmas[20]), at.at(at.sigmas[20 + k])) for k in (1, 2, 3, 4)]
    assert gains == [(pytest.approx(1.1**k), 1.0) for k in (1, 2, 3, 4)]
    late = part.gains(at.at(at.sigmas[40]), at.at(at.sigmas[44]))
    assert late == (pytest.approx(1.1**4), pytest.approx(1.1**4))  # both ranges hold there
    assert part.gains(at.at(at.sigmas[45]), at.at(at.sigmas[48])) == (1.0, pytest.approx(1.1**3))


# a run with two sides -------------------------------------------------------------------------------------------------


@dataclass
class Toy:
    """A run of a method at the site branch, and at the site guided around it where the method has one."""

    method: Method
    total: int = 30
    derived: dict[int, Tensor] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def run(self) -> Toy:
        at = schedule(self.total)
        self.recorder = Recorder(self.method.name, {}, "toy", "branch", self.total)
        session = Session(self.method, at, self.recorder)
        tracks = {track.rule.places[0].kind: track for track in session.tracks}
        facts = Facts((1,), torch.float32, torch.device("cpu"))
        for step, sigma in enumerate(at.sigmas[:-1]):
            session.begin(torch.tensor([sigma]))
            outer = tracks.get("guided")
            whole = session.open_all(LaneKey("guided"), 1)
            if outer and outer.enter(whole, facts, lambda rows: Probe(), IDENTITY):
                outer.predict(whole, grid=(SIDE, SIDE))
                outer.leave_out(whole)
            else:
                uncond = self.sides(session, tracks["branch"], facts, step)
                if outer:
                    outer.store(whole, uncond, grid=(SIDE, SIDE))
            session.end()
        session.close()
        return self

    def sides(self, session: Session, track: Any, facts: Facts, step: int) -> Tensor:
        beside, cond = session.open_beside(LaneKey("branch"), 1), output(step, "cond")
        if track.enter(beside, facts, lambda rows: Probe(), IDENTITY):
            session.open([LaneKey("cond")], [slice(0, 1)])
            session.spare(1)
            self.derived[step] = cond + track.predict(beside, grid=(SIDE, SIDE))
            return self.derived[step]
        session.open([LaneKey("cond"), LaneKey("uncond")], [slice(0, 1), slice(1, 2)])
        track.store(beside, output(step, "uncond") - cond, grid=(SIDE, SIDE), tap=cond)
        return output(step, "uncond")

    @property
    def works(self) -> list[float]:
        return [record.work for record in self.recorder.records]


def test_cfg_cache_computes_one_pair_in_n_from_a_third_on() -> None:
    toy = Toy(METHODS["cfg_cache"](gain_low=0.0, gain_high=0.0, last_steps=2)).run()
    expected = [i for i in range(30) if 0.33 <= i / 30 and i % 5 and i < 28]
    assert sorted(toy.derived) == expected and len(expected) == 14
    assert toy.works == [0.5 if i in expected else 1.0 for i in range(30)]
    for step, found in toy.derived.items():
        anchor = step - step % 5
        held = output(anchor, "uncond") - output(anchor, "cond")
        assert torch.allclose(found, output(step, "cond") + held, atol=1e-6)
    text = report(toy.recorder.finish("done", {"prompt": None, "node": None, "index": 0}))
    assert "Unconditional result: evaluated 16 times, derived 14 times; all work together is that of 23.0" in text


def test_a_part_that_is_opened_twice_bypasses() -> None:
    at = schedule(10)
    session = Session(METHODS["cfg_cache"](), at, Recorder("m", {}, "toy", "branch", 10))
    session.begin(torch.tensor([1.0]))
    assert not session.open_beside(LaneKey("a"), 1).bypass
    assert not session.open_beside(LaneKey("b"), 1).bypass
    again = session.open_beside(LaneKey("a"), 1)
    assert again.bypass
    facts = Facts((1,), torch.float32, torch.device("cpu"))
    assert not session.tracks[0].enter(again, facts, lambda rows: Probe(), IDENTITY)
    assert not session.tracks[0].reached(again)


def test_how_far_the_sides_are_apart_is_kept_through_skips() -> None:
    """PromptTea's figure: mean|uncond - cond| / mean|cond| of the newest pair."""
    signal, at = BranchDistance(), schedule(10)
    cond, uncond = output(3, "cond"), output(3, "uncond")
    assert signal.score({}, {}) == {}
    past = signal.observe(at.at(0.5), uncond - cond, {}, cond)
    expected = float((uncond - cond).abs().mean() / cond.abs().mean())
    assert float(signal.score({}, past)["d"]) == pytest.approx(expected)
    assert torch.equal(NoDifference().predict((Feature(at.at(0.5), cond),), at.at(0.4)), torch.zeros_like(cond))


@pytest.mark.parametrize(("threshold", "stand_in"), [(0.5, "none"), (1.0, "difference"), (1.6, "none")])
def test_dyncfg_cache_sums_the_newest_difference(threshold: float, stand_in: str) -> None:
    d = [float((output(i, "uncond") - output(i, "cond")).abs().mean() / output(i, "cond").abs().mean())
         for i in range(30)]  # fmt: skip
    expected, anchor, total = [], 0, 0.0
    for i in range(1, 29):
        total += d[anchor]
        if total < threshold:
            expected.append(i)
        else:
            anchor, total = i, 0.0
    toy = Toy(METHODS["dyncfg_cache"](threshold=threshold, stand_in=stand_in)).run()
    assert sorted(toy.derived) == expected and 2 < len(expected) < 27
    for step, found in toy.derived.items():
        anchor = max(i for i in range(step) if i not in expected)
        held = output(anchor, "uncond") - output(anchor, "cond")
        assert torch.allclose(found, output(step, "cond") + (held if stand_in == "difference" else 0), atol=1e-6)


# Auto -----------------------------------------------------------------------------------------------------------------


def test_auto_lets_the_negative_rest_in_every_other_computed_step() -> None:
    toy = Toy(METHODS["auto"](computed=15, guidance="derive")).run()
    records = toy.recorder.records
    computed = [r.step for r in records if r.action != "skipped"]
    assert len(computed) == 15 and all(r.work == 0 for r in records if r.action == "skipped")
    inside = [step for step in computed if 0.33 <= step / 30 and step < 29]
    assert sorted(toy.derived) == inside[0::2] and len(inside) > 3
    assert sum(toy.works) == 15 - 0.5 * len(toy.derived)


def test_auto_follows_unless_it_is_told_to_derive() -> None:
    plain = METHODS["auto"](speedup=2.0)
    assert [rule.places[0].kind for rule in plain.rules] == ["model"]
    derived = METHODS["auto"](speedup=2.0, guidance="derive")
    assert [rule.places[0].kind for rule in derived.rules] == ["guided", "branch"]
    assert METHODS["auto"](speedup=1.0, quality="Custom", guidance="derive").never
    with pytest.raises(ValueError, match="guidance derive goes with site guided or auto, not with trunk"):
        METHODS["auto"](guidance="derive", site="trunk")
