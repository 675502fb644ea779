"""What methods make of a profile's whole-run tables, on figures that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cache_core import methods
from cache_core.coefficients import IDENTITY, TEACACHE, rescale, rescaled
from cache_core.fits import allowance, computed, explained_by, on, polynomial_of, surface_of, terms
from cache_core.generators import steady
from cache_core.guidance import codebook
from cache_core.magnitudes import of_profile
from cache_core.profile import Profile
from cache_core.session import flow_noise
from cache_core.signals import PROMPT, EmbeddingL1
from cache_core.types import CacheError, Probe, Schedule, Step

T = 16
SCHEDULE = Schedule(tuple(1 - i / T for i in range(T + 1)), flow_noise)
POLYNOMIAL = (2.0, -1.0, 0.5, 1.5, 0.05)
GAMMAS = torch.linspace(1.0, 1.3, T)


def profile(**tables: Any) -> Profile:
    """Three samples whose residual changes by a polynomial of the signal, and its norm by `GAMMAS`."""
    generator = torch.Generator().manual_seed(0)
    signal = 0.05 + 0.5 * torch.rand(1, 3, T, generator=generator, dtype=torch.float64)
    signal[..., 0] = torch.nan
    made = {
        "sigmas": torch.tensor(SCHEDULE.sigmas[:-1]),
        "trunk.signal": signal,
        "trunk.change": rescale(POLYNOMIAL, signal),
        "trunk.magnitude": torch.cat((torch.full((1, 3, 1), math.nan), GAMMAS[1:].expand(1, 3, -1)), 2),
        "trunk.embedding": torch.linspace(0.5, 0.1, T),
        "branch.difference": torch.linspace(0.4, 0.1, T).expand(3, T),
    }
    about = {"name": "toy", "family": "Toy", "steps": T, "cfg": 1.0, "sampler": "euler", "scheduler": "simple",
             "date": "2026-11-29"}  # fmt: skip
    return Profile(about, {**made, **tables})


def test_teacaches_polynomial_is_found_again() -> None:
    fit = polynomial_of(profile())
    assert fit.explained > 0.999999 and fit.pairs == 3 * (T - 1)
    assert fit.calibration.polynomial == pytest.approx(POLYNOMIAL, rel=1e-4)
    assert 0.05 <= fit.calibration.domain[0] < fit.calibration.domain[1] <= 0.55  # type: ignore[index]


def test_noise_lowers_what_is_explained() -> None:
    change = profile().tables["trunk.change"]
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert 0.1 < polynomial_of(profile(**{"trunk.change": change + 0.3 * noise})).explained < 0.9


def test_a_published_polynomial_explains_no_more_than_the_fit() -> None:
    found = profile()
    own = polynomial_of(found).calibration
    assert explained_by(found, own) == pytest.approx(1.0)
    assert explained_by(found, replace(own, polynomial=tuple(3 * c for c in own.polynomial))) == pytest.approx(1.0)
    assert 0 < explained_by(found, TEACACHE["flux"]) < 0.9999


def test_beyond_what_was_seen_it_grows_in_proportion() -> None:
    calibration = polynomial_of(profile()).calibration
    low, high = calibration.domain  # type: ignore[misc]
    for d, edge in ((low / 3, low), (high * 4, high)):
        expected = rescale(calibration.polynomial, edge) * d / edge
        assert rescaled(calibration, d) == pytest.approx(expected)
        assert float(rescaled(calibration, torch.tensor(d, dtype=torch.float64))) == pytest.approx(expected)
    assert rescaled(TEACACHE["flux"], 9.0) == rescale(TEACACHE["flux"].polynomial, 9.0)


def test_the_unit_halves_the_profiles_own_runs() -> None:
    found = profile()
    calibration = polynomial_of(found).calibration
    runs = [[rescale(POLYNOMIAL, d) for d in run[1:]] for run in found.tables["trunk.signal"][0].tolist()]
    counts = [sum(computed(run, 0.6 * calibration.unit * k) for run in runs) for k in (0.9, 1.0001, 1.1)]
    assert counts[0] >= counts[1] >= counts[2] and abs(counts[1] - 3 * T / 2) <= 2


@pytest.mark.parametrize("name", ["teacache", "spectralcache"])
def test_the_gate_goes_by_the_fit_but_for_whole_calls(name: str) -> None:
    found = profile()
    fit = polynomial_of(found).calibration
    gate = methods()[name](found, threshold=0.5).rules[0].gate
    plain = methods()[name](None, threshold=0.5).rules[0].gate
    ledger = {name: torch.tensor(value, dtype=torch.float64) for name, value in gate.start().items()}
    figures = {name: torch.tensor(0.3) for name in ("d", "low", "high")}
    for calibration, own in ((TEACACHE["flux"], fit), (IDENTITY, IDENTITY)):
        advanced, expected = (g.advance(figures, ledger, c) for g, c in ((gate, calibration), (plain, own)))
        assert advanced == expected and float(advanced["distance"]) > 0
        reading = {name: float(value) for name, value in (figures | advanced).items()}
        step = SCHEDULE.at(0.5)
        assert gate.decide(reading, step, calibration).limits == plain.decide(reading, step, own).limits


def test_prompttea_finds_its_surface_and_skips_by_the_schedule() -> None:
    weights = (0.02, 1.0, 0.05, 0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    x = profile().tables["trunk.embedding"].tolist()
    change = torch.tensor([on(weights, v, step / T) for step, v in enumerate(x)])
    change[0] = torch.nan
    found = profile(**{"trunk.change": change.expand(1, 3, T)})
    surface, unit, explained = surface_of(found)
    assert explained > 0.9999 and len(terms(1, 1)) == 12
    assert [on(surface, v, i / T) for i, v in enumerate(x)][1:] == pytest.approx(change[1:].tolist(), rel=1e-3)
    gate = methods()["prompttea"](found, threshold=0.6, threshold_simple=0.6).rules[0].gate
    ledger, skipped, total, expected = torch.zeros((), dtype=torch.float64), [], 0.0, []
    for step, value in enumerate(x[:-1]):
        reading = {"distance": float(ledger), "embedding": value}
        at = SCHEDULE.at(SCHEDULE.sigmas[step])
        skip = gate.decide(reading, at, IDENTITY).skip
        ledger = gate.settle({"distance": ledger}, reading, skip, at)["distance"]
        skipped += [step] if skip else []
        total += max(on(surface, value, step / T), 0.0)
        expected += [step] if total < 0.6 * unit else []
        total = total if total < 0.6 * unit else 0.0
    assert skipped == expected and T / 4 < len(skipped) < 3 * T / 4
    at = SCHEDULE.at(SCHEDULE.sigmas[4], stage=1)
    for distance in (0.0, 1e-3):
        assert gate.decide({"distance": distance, "embedding": 0.0}, at, IDENTITY).skip == (distance > 0)


def test_a_complex_prompt_bears_less() -> None:
    generator = torch.Generator().manual_seed(0)
    alike = torch.ones(1, 12, 32) + torch.randn(1, 1, 32, generator=generator) * torch.arange(12).view(1, -1, 1)
    apart = torch.randn(1, 12, 32, generator=generator)
    signal = EmbeddingL1(prompt=True)
    simple, rich = (float(signal.look(Probe(embedding=torch.ones(1, 4), text=t))[PROMPT]) for t in (alike, apart))
    assert simple == pytest.approx(1.0, abs=1e-3) and 6 < rich < 11.01
    scales = [allowance(2.0, 4.0, 50.0, {PROMPT: n}) for n in (1.0, simple, 4.0, rich, 100.0)]
    assert scales == sorted(scales, reverse=True) and scales[2] == pytest.approx(1.5)
    assert scales[0] == pytest.approx(2.0) and scales[-1] == pytest.approx(1.0)
    assert allowance(2.0, 4.0, 50.0, {}) == 1.0
    assert EmbeddingL1().look(Probe(embedding=torch.ones(1, 4), text=apart)).keys() == {"embedding", PROMPT}


def test_magcaches_curve() -> None:
    curve = of_profile(profile())
    assert curve.ratios(SCHEDULE.sigmas[:-1]) == pytest.approx([1.0, *GAMMAS[1:].tolist()], rel=1e-4)
    across = curve.ratios((SCHEDULE.sigmas[2], SCHEDULE.sigmas[6]))[1]
    assert across == pytest.approx(float(GAMMAS[3:7].prod()), rel=1e-4)
    gate: Any = methods()["magcache"](profile()).rules[0].gate
    assert gate.gates[0].curve == curve if hasattr(gate, "gates") else gate.curve == curve
    assert methods()["magcache"](profile(), curve="FLUX.1").rules[0].gate.curve == "FLUX.1"  # type: ignore[attr-defined]
    with pytest.raises(CacheError, match="ratio of the residual's norm"):
        of_profile(profile(**{"trunk.magnitude": torch.full((1, 3, T), math.nan)}))


def test_the_codebook_adds_up_the_tables_differences() -> None:
    found = profile()
    d = codebook(found)
    assert d(SCHEDULE.at(SCHEDULE.sigmas[3])) == pytest.approx(float(found.tables["branch.difference"][0, 3]), rel=1e-5)
    between = (SCHEDULE.sigmas[3] + SCHEDULE.sigmas[4]) / 2
    assert d(Step(3, T, between)) == pytest.approx(float(found.tables["branch.difference"][0, 3:5].mean()), rel=1e-5)
    gate = methods()["dyncfg_cache"](found, threshold=0.5).rules[0].gate
    ledger, skipped = {"sum": torch.zeros((), dtype=torch.float64)}, []
    for step in range(1, T - 1):
        reading, at = {"sum": float(ledger["sum"])}, SCHEDULE.at(SCHEDULE.sigmas[step])
        skip = gate.decide(reading, at, IDENTITY).skip
        ledger = gate.settle(ledger, reading, skip, at)
        skipped += [step] if skip else []
    total, expected = 0.0, []
    for step in range(1, T - 1):
        total += float(found.tables["branch.difference"][0, step])
        expected += [step] if total < 0.5 else []
        total = total if total < 0.5 else 0.0
    assert skipped == expected and 2 < len(skipped) < T - 3


def test_the_steadiest_blocks_rest() -> None:
    change = torch.tensor([0.4, 0.1, 0.3, 0.2, torch.nan]).expand(1, T, 5)
    tables = {f"{module}.{what}": change for module in ("attention", "mlp") for what in ("change", "norm", "noise")}
    found = profile(**tables)
    assert [set(steady(found, share)) for share in (0.0, 0.4, 0.8, 1.0)] == [set(), {1, 3}, {0, 1, 2, 3}, set(range(5))]
    gate: Any = methods()["profilingdit"](found, first_block=2, share=0.6).rules[0].gate
    listed = gate.gates[1]
    assert listed.only(SCHEDULE.at(0.5)) == {2, 3}
    plain: Any = methods()["profilingdit"](None, first_block=2, last_block=4).rules[0].gate
    assert plain.gates[1].only(SCHEDULE.at(0.5)) == {2, 3, 4}


def test_too_few_changes_are_refused() -> None:
    for fit in (polynomial_of, surface_of):
        with pytest.raises(CacheError, match="too few changes"):
            fit(profile(**{"trunk.change": torch.full((1, 3, T), torch.nan)}))
