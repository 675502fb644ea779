"""Public reports 12, 13, 21: samplers are known by what they do with what they are told, not by their names."""

from __future__ import annotations

import itertools
import types
from typing import Any

import pytest
import torch

STEPS = 20


def renamed(function: Any, name: str) -> Any:
    """The same code under another name."""
    parts = (function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    copy = types.FunctionType(*parts)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def function_of(host: Any, name: str) -> Any:
    from comfy.k_diffusion import sampling

    return getattr(sampling, f"sample_{name}")


def run(host: Any, function: Any, model: Any, steps: int = STEPS, cfg: float = 1.0, **options: Any) -> torch.Tensor:
    sampler = host.comfy.samplers.KSAMPLER(function, options)
    out: torch.Tensor = host.foreign.run(host, model, sampler, host.foreign.simple(host, model, steps), cfg=cfg)
    return out


# 12: under another name -----------------------------------------------------------------------------------------------

STOCHASTIC = ["euler_ancestral", "dpmpp_sde", "er_sde", "sa_solver", "lcm"]
DETERMINISTIC = ["heun", "dpmpp_2m", "ipndm", "deis", "res_multistep", "lms", "gradient_estimation"]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_report_12_res4lyf_default_sde(host: Any, name: str) -> None:
    """RES4LYF's res_2m adds noise at every step and does not say so: notes and picture are those of the behaviour."""
    auto = host.foreign.attached(host, "Auto")
    out = run(host, renamed(function_of(host, name), "sample_res_2m"), auto)
    notes = host.trace()["notes"]
    expected = run(host, function_of(host, name), auto)
    assert torch.equal(out, expected)
    assert [note.replace("res_2m", name) for note in notes] == host.trace()["notes"] != []


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_report_12_a_deterministic_sampler_is_not_taken_for_another(host: Any, name: str) -> None:
    run(host, renamed(function_of(host, name), "sample_res_2m_ode"), host.foreign.attached(host, "Auto"))
    assert host.trace()["notes"] == [] and host.trace()["skipped"] >= 9


def midpoint(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None) -> Any:
    """Two stages: half a step, and the whole step with what was found there. Both lie between two levels."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - model(x, sigma * ones, **extra_args)) / sigma
        middle = (sigma + after) / 2
        there = x + slope * (middle - sigma)
        if after > 0:
            slope = (there - model(there, middle * ones, **extra_args)) / middle
        x = x + slope * (after - sigma)
    return x


def implicit(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None) -> Any:
    """Implicit Euler by repetition: the same level is looked at three times, each time with another latent."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - model(x, sigma * ones, **extra_args)) / sigma
        for _ in range(2):
            there = x + 0.1 * slope * (after - sigma)
            slope = (there - model(there, sigma * ones, **extra_args)) / sigma
        x = x + slope * (after - sigma)
    return x


@pytest.mark.parametrize(("method", "function"), [("Auto", midpoint), ("Apply", midpoint), ("FreqCa", implicit)])
def test_report_12_stages_between_the_levels(host: Any, method: str, function: Any) -> None:
    plain, fewer = run(host, function, host.model), run(host, function, host.model, steps=7 if method != "Auto" else 10)
    out = run(host, function, host.foreign.attached(host, method))
    trace = host.trace()
    assert trace["evaluations"][-1]["action"] == "computed" and trace["skipped"] >= 0.4 * len(trace["evaluations"])
    assert not any("fresh noise" in note for note in trace["notes"])
    factor = 6 if method == "Apply" else 2  # Apply skips two of three, wherever they are
    assert host.foreign.error(out, plain) < factor * host.foreign.error(fewer, plain) + 0.05


# 13: stochastic samplers against fewer steps on the same noise --------------------------------------------------------


def brownian(latent: torch.Tensor, sigmas: torch.Tensor, seed: int) -> Any:
    """One path of noise, whatever steps are taken on it."""
    from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler

    positive = sigmas[sigmas > 0]
    return BrownianTreeNoiseSampler(latent, positive.min() * 0.5, positive.max(), seed=seed, cpu=True)


def gain(host: Any, name: str, cfg: float = 3.0, pairs: int = 2, total: int = STEPS) -> float | None:
    """dB that Auto 2x is nearer to the full run than as many plain steps, in the mean; None where it stands down."""
    foreign = host.foreign
    model, cases = foreign.trained(host, pairs)
    gains = []
    for seed, (positive, noise) in enumerate(cases):

        def sample(patched: Any, steps: int, noise: Any = noise, positive: Any = positive, seed: int = seed) -> Any:
            sigmas = foreign.simple(host, model, steps)
            path = brownian(noise, foreign.simple(host, model, total), seed)
            sampler = host.comfy.samplers.ksampler(name, {"noise_sampler": path})
            sides = {"positive": positive, "negative": host.caption("")}
            latent = torch.zeros_like(noise)
            return foreign.run(host, patched, sampler, sigmas, cfg=cfg, latent=latent, noise=noise, **sides)

        full = sample(model, total)
        out = sample(foreign.attached(host, "Auto", model), total)
        trace = host.trace()
        if trace["state"] == "stood down":
            assert torch.equal(out, full) and len(trace["notes"]) == 1
            return None
        fewer = sample(model, trace["computed"] * total // len(trace["evaluations"]))
        gains.append(foreign.decibels(out, full) - foreign.decibels(fewer, full))
    return sum(gains) / len(gains)


@pytest.mark.parametrize(
    ("name", "cfg", "total"),
    [
        ("er_sde", 1.0, STEPS),
        ("ddpm", 3.0, STEPS),
        ("dpmpp_2m_sde", 3.0, 28),
        ("dpmpp_3m_sde", 1.0, 28),
    ],
)
def test_report_13_ersde_confetti(host: Any, name: str, cfg: float, total: int) -> None:
    """No stochastic sampler is worse than fewer steps of it; or the run stands down with a sentence."""
    found = gain(host, name, cfg, total=total)
    assert found is None or found > -0.8, found


def test_report_13_lcm_stands_down(host: Any) -> None:
    """It throws the latent away at every step, so a forecast is grain: uncached, and a sentence says so."""
    assert gain(host, "lcm", cfg=1.0, pairs=1) is None
    assert "lcm" in host.trace()["notes"][0] or "every step" in host.trace()["notes"][0]


# 21: CFG++ ------------------------------------------------------------------------------------------------------------


def versions(host: Any) -> dict[str, Any]:
    from comfy_extras.nodes_advanced_samplers import sample_euler_pp

    return {"regular": function_of(host, "euler_cfg_pp"), "alternative": sample_euler_pp}


@pytest.mark.parametrize("version", ["regular", "alternative"])
@pytest.mark.parametrize("name", ["sample_euler_pp", "sample_euler_cfg_pp"])
def test_report_21_euler_pp_is_treated_by_what_it_does(host: Any, version: str, name: str) -> None:
    """The corrector follows from how the sampler moves, in both versions, whatever they are called."""
    function = versions(host)[version]
    auto = host.foreign.attached(host, "Auto")
    assert torch.equal(run(host, renamed(function, name), auto, cfg=1.5), run(host, function, auto, cfg=1.5))


@pytest.mark.parametrize(
    ("version", "cfg"),
    [
        ("regular", 1.5),
        ("alternative", 3.0),
    ],
)
def test_report_21_no_worse_than_fewer_steps(host: Any, version: str, cfg: float) -> None:
    foreign = host.foreign
    model, cases = foreign.trained(host, 2)
    gains = []
    for positive, noise in cases:
        sides = {"positive": positive, "negative": host.caption("")}
        options = {**sides, "latent": torch.zeros_like(noise), "noise": noise}

        def sample(patched: Any, steps: int, options: Any = options) -> Any:
            levels = foreign.simple(host, model, steps)
            return foreign.run(host, patched, versions(host)[version], levels, cfg=cfg, **options)

        full = sample(model, STEPS)
        out, fewer = sample(foreign.attached(host, "Auto", model), STEPS), sample(model, 10)
        gains.append(foreign.decibels(out, full) - foreign.decibels(fewer, full))
    assert sum(gains) / len(gains) > -0.5, gains
