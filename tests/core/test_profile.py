"""Profiles: a round trip, what is refused, a fuzz, and what methods make of known figures."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from cache_core import methods
from cache_core.coefficients import IDENTITY
from cache_core.generators import Guided, masked, measured, misfit, smooth, smoothed, stated
from cache_core.outputs import NoiseGain
from cache_core.profile import GROUPS, LARGEST_FILE, Profile, from_bytes, to_bytes
from cache_core.session import flow_noise
from cache_core.tables import State, by_share, work
from cache_core.types import CacheError, Feature, Schedule

T, LAYERS, LAGS, SAMPLES = 12, 4, 2, 3
SCHEDULE = Schedule(tuple(1 - i / T for i in range(T + 1)), flow_noise)
ABOUT = {"model": "Toy, 4 blocks of 8", "family": "Toy", "sampler": "euler", "scheduler": "simple", "steps": T,
         "cfg": 1.0, "samples": SAMPLES, "shift": 1.5, "size": "8 x 8", "name": "toy", "date": "2026-11-26",
         "pack": "0.1.0", "gained": '["Toy", {}]'}  # fmt: skip


def profile(attention: float = 0.01, mlp: float = 0.02, together: float = 0.0, **about: Any) -> Profile:
    """Modules that move the norm down by so much per step of age, both by `together` less than the two; layer l changes
    by (l + 1) percent a step.
    """
    lags = torch.arange(1, LAGS + 1).view(LAGS, 1, 1).float()
    change = (lags * torch.arange(1, LAYERS + 1) / 100).expand(LAGS, T, LAYERS)
    tables = {"sigmas": torch.tensor(SCHEDULE.sigmas[:-1])}
    for name, rate in (("attention", attention), ("mlp", mlp)):
        tables[f"{name}.change"] = change.clone() * (1 if name == "attention" else 1.7)
        tables[f"{name}.norm"] = torch.ones(T, LAYERS)
        tables[f"{name}.noise"] = (1 - rate * lags).expand(LAGS, T, SAMPLES).clone()
    tables["both.noise"] = (1 - (attention + mlp - together) * lags).expand(LAGS, T, SAMPLES).clone()
    tables |= whole()
    return Profile({**ABOUT, **about}, tables)


def whole() -> dict[str, torch.Tensor]:
    """A run whose signal falls from step to step, whose residual changes by 0.1 + 2·d, and whose course is a line."""
    signal = (0.4 / torch.arange(1, T + 1)).expand(2, SAMPLES, T) * torch.tensor([0.9, 1.0, 1.1]).view(1, -1, 1)
    signal = torch.where(torch.arange(T) == 0, torch.nan, signal)
    levels = torch.tensor(SCHEDULE.sigmas[:-1], dtype=torch.float64)
    return {
        "trunk.signal": signal,
        "trunk.change": 0.1 + 2 * signal,
        "trunk.magnitude": torch.where(torch.arange(T) == 0, torch.nan, torch.full((2, SAMPLES, T), 1.05)),
        "trunk.embedding": signal.mean((0, 1)) / 2,
        "branch.difference": (0.2 / torch.arange(1, T + 1)).expand(SAMPLES, T),
        "course.gram": 1 + levels.outer(levels),
        "course.amplified": torch.full((T,), torch.nan),
        "gain.noise": torch.full((T,), 0.98),
        "gain.channels": torch.ones(T, 16),
    }


def test_a_round_trip() -> None:
    before = profile()
    after = from_bytes(to_bytes(before))
    assert dict(after.about) == ABOUT and after.total == T and after.groups == tuple(GROUPS)
    assert after.tables.keys() == before.tables.keys()
    assert all(torch.equal(after.tables[name].nan_to_num(9), t.nan_to_num(9)) for name, t in before.tables.items())


def test_a_file_from_before_gains_is_read() -> None:
    old = from_bytes(to_bytes(Profile({name: word for name, word in ABOUT.items() if name != "gained"}, whole() | {
        "sigmas": torch.tensor(SCHEDULE.sigmas[:-1])})))  # fmt: skip
    assert old.about == {**ABOUT, "gained": ""}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sigmas": torch.zeros(T)}, "do not fall"),
        ({"sigmas": torch.full((T,), torch.nan)}, "do not fall"),
        ({"mlp.norm": torch.ones(T, LAYERS + 1)}, "fits no other table"),
        ({"mlp.change": torch.ones(T)}, "mlp.change in the profile"),
        ({"mlp.noise": None}, "lacks mlp.noise"),
        ({"mlp.norm": torch.full((T, LAYERS), torch.inf)}, "infinite"),
        ({"course.gram": torch.ones(T, T + 1, dtype=torch.float64)}, "fits no other table"),
    ],
)
def test_broken_tables_are_refused(changed: dict[str, Any], words: str) -> None:
    tables = {name: table for name, table in {**profile().tables, **changed}.items() if table is not None}
    with pytest.raises(CacheError, match=words):
        from_bytes(to_bytes(Profile(ABOUT, tables)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no profile"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "no profile"),
        (b"\xff" * 64, "no profile"),
        (bytes(LARGEST_FILE + 1), "none is larger"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        from_bytes(data)


def test_a_profile_of_as_many_steps_as_it_says() -> None:
    with pytest.raises(CacheError, match="says 13 steps and holds 12"):
        from_bytes(to_bytes(profile(steps=13)))


def test_both_are_as_measured_and_what_is_older_alone_adds_its_own() -> None:
    """0.03 a step alone together, of which 0.01 cancels: at equal ages as measured, one step more of the MLP 0.02."""
    world = measured(profile(together=0.01))
    world.advance(0, State.FULL)
    assert world.ratios(2, State.BOTH) == pytest.approx([1 - 0.04] * SAMPLES)
    world.advance(2, State.MLP)  # attention was computed
    assert world.ratios(3, State.ATTENTION) == pytest.approx([1 - 0.01] * SAMPLES)
    assert world.ratios(3, State.BOTH) == pytest.approx([1 - (0.02 + 2 * 0.02)] * SAMPLES)
    assert world.changes(3, State.BOTH) == pytest.approx([0.06] * SAMPLES)


def test_another_version_is_refused() -> None:
    with pytest.raises(CacheError, match="version 7"):
        from_bytes(to_bytes(Profile({**ABOUT, "version": 7}, profile().tables)))


def test_ten_thousand_mutations_are_read_or_refused() -> None:
    """Never another exception, never a table of another shape."""
    good, chance = to_bytes(profile()), random.Random(0)
    refused = 0
    for _ in range(10_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(min(len(data), 2600))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            found = from_bytes(bytes(data))
        except CacheError:
            refused += 1
        else:
            assert found.tables["sigmas"].ndim == 1 and set(found.about) == set(ABOUT)
    assert 5_000 < refused < 10_000


def test_another_model_sampler_or_guidance_is_refused() -> None:
    mine = profile()
    assert mine.refusal(ABOUT["model"]) == ""
    assert "not for this model" in mine.refusal("FLUX.1, 57 blocks of 3072")
    assert mine.refusal_in("euler", False, 1.0, False) == "" == mine.refusal_in("heun", False, None, False)
    assert all("guidance" in mine.refusal_in("euler", False, cfg, False) for cfg in (1.5, 4.0))
    assert "adds noise of its own" in mine.refusal_in("euler_ancestral", True, 1.0, False)
    assert [bool(mine.refusal_in("euler", False, 1.0, False, size)) for size in ((8, 8), (16, 32), (16, 33))] == [
        False, False, True,
    ]  # fmt: skip
    guided = profile(cfg=4.0)
    assert [bool(guided.refusal_in("euler", False, cfg, False)) for cfg in (1.0, 1.9, 2.0, 8.0, 8.1)] == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_a_group_is_whole_or_not_there() -> None:
    tables = profile().tables
    for group, names in GROUPS.items():
        rest = {name: table for name, table in tables.items() if name not in names}
        found = from_bytes(to_bytes(Profile(ABOUT, rest)))
        assert group not in found.groups and len(found.groups) == len(GROUPS) - 1
        assert found.lacks((group,)) and not found.lacks(found.groups)
        for name in names if len(names) > 1 else ():
            with pytest.raises(CacheError, match="lacks"):
                from_bytes(to_bytes(Profile(ABOUT, {other: tables[other] for other in tables if other != name})))


def test_a_run_of_other_levels_follows_the_stated_default() -> None:
    other = Schedule(SCHEDULE.sigmas[::2], flow_noise)
    assert misfit(profile(), SCHEDULE) == "" and "12 steps, this run has 6" in misfit(profile(), other)
    bent = Schedule(tuple(s**2 for s in SCHEDULE.sigmas), flow_noise)
    assert "other noise levels" in misfit(profile(), bent)
    method = methods()["feb_cache"](profile(0.001, 0.5), work=0.6)
    for rule, module in zip(method.rules, (State.ATTENTION, State.MLP), strict=True):
        verdicts = [rule.gate.decide({}, other.at(s), None) for s in other.sigmas[:-1]]  # type: ignore[arg-type]
        assert {v.note for v in verdicts} == {misfit(profile(), other)}
        reused = [state in (module, State.BOTH) for state in by_share(6, 0.6)]
        assert [v.skip for v in verdicts] == reused


def test_febs_table_and_gain_follow_the_profile() -> None:
    guided = Guided(profile(attention=0.01, mlp=0.02))
    table, gains = guided.table(0.5), guided.gains(0.5)
    assert 0.4 < work(table) <= 0.5
    first = next(i for i, state in enumerate(table) if state)
    lost = {State.ATTENTION: 0.01, State.MLP: 0.02, State.BOTH: 0.03}[table[first]]
    assert gains[first] == pytest.approx(1 / (1 - lost))  # the norm that was lost comes back
    assert all(gain == 1 for gain, state in zip(gains, table, strict=True) if not state)
    world = measured(profile(attention=0.01, mlp=0.02))
    for state in (State.FULL, State.BOTH):
        world.advance(0, state)
    assert world.changes(5, State.ATTENTION) == pytest.approx([0.05] * SAMPLES)  # two lags measured, then in a line
    calm = Guided(profile(attention=0.5, mlp=0.001)).table(0.8)  # attention alone never pays
    assert State.ATTENTION not in calm and State.MLP in calm
    output = methods()["feb_cache"](profile(), scaling="measured").output
    assert isinstance(output, NoiseGain)
    assert [output.gain(SCHEDULE.at(s)) for s in SCHEDULE.sigmas[:-1]] == pytest.approx(list(gains))
    with pytest.raises(CacheError, match="connect Cache Calibrate"):
        methods()["feb_cache"](scaling="measured")


def test_smoothcache_takes_the_longest_gap_within_alpha() -> None:
    errors = [[0.1] * 8, [0.2] * 8, [0.3] * 8]
    assert smooth(errors, 0.05) == frozenset()
    assert smooth(errors, 0.1) == {1, 3, 5}  # the last step is computed
    assert smooth(errors, 0.3) == {1, 2, 3, 5, 6}
    errors[1][2] = 0.9  # only the furthest step of a gap is looked at
    assert smooth(errors, 0.3) == {1, 2, 3, 5, 6} and smooth(errors, 0.2) == {1, 3, 4, 6}
    mine = profile()  # means over layers: attention .025 a step, the MLP .0425
    assert smoothed(mine, State.ATTENTION, 0.03, 3) == {1, 3, 5, 7, 9} and smoothed(mine, State.MLP, 0.03, 3) == set()
    assert smoothed(mine, State.ATTENTION, 0.06, 3) == {1, 2, 4, 5, 7, 8, 10}
    assert len(stated(28, 0.05, 3)) < len(stated(28, 0.15, 3)) < len(stated(28, 1.0, 3)) <= 21


def test_the_mask_rests_what_changes_least() -> None:
    """Five odd steps, four layers, two modules: 40 units; a half is 20, attention's three calm layers and one more."""
    masks = masked(profile(), SCHEDULE, 0.5)
    rests = {state: mask[1] for state, mask in masks.items()}
    assert rests[State.ATTENTION] == {0, 1, 2} and rests[State.MLP] == {0}  # 1, 2, 3 percent, and 1.7
    assert set(masks[State.MLP]) == {1, 3, 5, 7, 9}
    blind = masked(None, SCHEDULE, 0.4)
    assert blind[State.MLP] == {1: None, 3: None}
    assert all(not layers for layers in masked(profile(), SCHEDULE, 0.0)[State.MLP].values())


def test_a_method_without_a_use_for_it_refuses_a_profile() -> None:
    with pytest.raises(CacheError, match="uses no profile"):
        methods()["easycache"](profile())
    assert dataclasses.is_dataclass(methods()["smoothcache"](profile()))


def test_what_methods_make_of_broken_figures_is_a_method_or_a_refusal() -> None:
    """Bytes of the tables themselves changed: every method that follows a profile is made and asked, or refuses it."""
    good, chance = bytearray(to_bytes(profile())), random.Random(1)
    body = 8 + int.from_bytes(good[:8], "little")
    followers = {name: method for name, method in methods().items() if method.profiled}
    made, refused = 0, 0
    assert {"auto", "teacache", "magcache", "prompttea", "feb_cache", "dyncfg_cache"} <= followers.keys()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(chance.randint(1, 40)):
            data[chance.randrange(body, len(data))] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        try:
            found = from_bytes(bytes(data))
        except CacheError:
            continue
        for method in followers.values():
            try:
                rules = method(found, **method.skipping).rules
            except CacheError:
                refused += 1
                continue
            made += 1
            for rule in rules:
                ledger = rule.gate.start()
                figures = dict.fromkeys(("d", "low", "high", "embedding", "rescaled"), 0.1)
                reading = {**ledger, **figures, "prompt": 5.0}
                history = tuple(Feature(SCHEDULE.at(SCHEDULE.sigmas[i]), torch.ones(1, 4, 2)) for i in (1, 3, 5))
                rule.predictor.predict(history[-rule.predictor.depth :], SCHEDULE.at(SCHEDULE.sigmas[6]))
                for sigma in SCHEDULE.sigmas[:-1]:
                    rule.gate.decide(reading, SCHEDULE.at(sigma), IDENTITY)
    assert made > 100 and refused > 10
