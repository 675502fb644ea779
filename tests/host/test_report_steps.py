"""Public reports 14 and 15: noise levels that are not the schedule's, and samplers inside samplers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

STEPS = 20


def ksampler(host: Any, function: Any, **options: Any) -> Any:
    return host.comfy.samplers.KSAMPLER(function, options)


def built_in(host: Any, name: str, **options: Any) -> Any:
    """A sampler of the host with options, as the SamplerX nodes make it."""
    return host.comfy.samplers.ksampler(name, options)


# 14: above the schedule -----------------------------------------------------------------------------------------------


def hat(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None) -> Any:
    """Euler that goes up to 1.41 sigma with fresh noise before every step (the Dy and SMEA family)."""
    ones, random = x.new_ones([x.shape[0]]), torch.Generator().manual_seed(9)
    for sigma, after in itertools.pairwise(sigmas):
        up = sigma * 1.41 if after > 0 else sigma
        x = x + torch.randn(x.shape, generator=random) * (up**2 - sigma**2).clamp(min=0).sqrt() * 0.5
        denoised = model(x, up * ones, **extra_args)
        x = x + (x - denoised) / up * (after - up)
    return x


def half_size(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None) -> Any:
    """Euler that looks at the picture at half its size after each step and mixes a little of it in."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        denoised = model(x, sigma * ones, **extra_args)
        x = x + (x - denoised) / sigma * (after - sigma)
        if after > 0:
            small = model(x[..., ::2, ::2].contiguous(), after * ones, **extra_args)
            x = x + 0.05 * (F.interpolate(small, size=x.shape[2:], mode="nearest") - x)
    return x


def above(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None) -> Any:
    """Evaluates every level a little above itself, the last one too: nothing lies on the schedule."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        denoised = model(x, sigma * 1.07 * ones, **extra_args)
        x = x + (x - denoised) / sigma * (after - sigma)
    return x


CHURN = {
    "euler, churn 10": lambda h: built_in(h, "euler", s_churn=10.0),
    "euler, churn 1": lambda h: built_in(h, "euler", s_churn=1.0),
    "heun, churn 10": lambda h: built_in(h, "heun", s_churn=10.0),
    "dpm_2, churn 10": lambda h: built_in(h, "dpm_2", s_churn=10.0),
    "heunpp2, churn 10": lambda h: built_in(h, "heunpp2", s_churn=10.0),
    "hat": lambda h: ksampler(h, hat),
    "above": lambda h: ksampler(h, above),
}


def test_report_14_the_last_evaluation_is_computed(host: Any) -> None:
    """Whatever its sigma: it is the one behind which none comes."""
    forecast = []
    sigmas = host.foreign.simple(host, host.model, STEPS)
    for name, make in CHURN.items():
        for method in ("Apply", "FreqCa", "Auto"):
            host.foreign.run(host, host.foreign.attached(host, method), make(host), sigmas)
            if host.trace()["evaluations"][-1]["action"] != "computed":
                forecast.append((name, method))
    assert forecast == []


@pytest.mark.parametrize("name", CHURN)
def test_report_14_the_budget_is_kept(host: Any, name: str) -> None:
    """Half of the steps are computed, within a step, or a note says why not."""
    sigmas = host.foreign.simple(host, host.model, STEPS)
    host.foreign.run(host, host.foreign.attached(host, "Auto"), CHURN[name](host), sigmas)
    trace = host.trace()
    total = len(trace["evaluations"])
    told = any("budget" in note or "computed" in note for note in trace["notes"])
    assert trace["computed"] / total <= 0.5 + 1.5 / STEPS or told, (trace["computed"], total)
    assert trace["skipped"] > 0


@pytest.mark.parametrize(
    ("name", "method"), [("heun, churn 10", "Apply"), ("dpm_2, churn 10", "Auto"), ("hat", "Auto")]
)
def test_report_14_churn_is_noted_as_fresh_noise(host: Any, name: str, method: str) -> None:
    sigmas = host.foreign.simple(host, host.model, STEPS)
    host.foreign.run(host, host.foreign.attached(host, method), CHURN[name](host), sigmas)
    assert any("fresh noise" in note for note in host.trace()["notes"])


@pytest.mark.parametrize("method", ["Apply", "FreqCa", "Auto"])
def test_report_14_a_smaller_latent_between_the_steps(host: Any, method: str) -> None:
    """It has a history of its own, or none, and does not wipe out the other's."""
    foreign = host.foreign
    sampler, levels = ksampler(host, half_size), lambda n: foreign.simple(host, host.model, n)
    plain = foreign.run(host, host.model, sampler, levels(STEPS))
    out = foreign.run(host, foreign.attached(host, method), sampler, levels(STEPS))
    trace = host.trace()
    full = trace["evaluations"][::2]
    assert len(full) == STEPS and full[-1]["action"] == "computed"
    assert sum(e["action"] == "skipped" for e in full) >= 8, [e["reason"] for e in full]
    assert foreign.error(out, plain) < (0.35 if method == "Apply" else 0.25)  # Apply skips two of three


# 15: sigmas that are not what the sampler walks on --------------------------------------------------------------------


def lying(
    model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, disable: Any = None,
    inner: Any = None, amount: float = 0.5, **_: Any,
) -> Any:  # fmt: skip
    """Lets the sampler inside walk its schedule, and tells the model less noise in the middle of the run."""

    class Less:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, x: Any, sigma: Any, **args: Any) -> Any:
            progress = 1 - float(sigma.flatten()[0] / sigmas[0])
            bell = max(0.0, 1 - abs(progress - 0.5) / 0.4)
            return model(x, sigma * (1 - amount * bell), **args)

    return inner.sampler_function(
        Less(), x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **inner.extra_options
    )


def wrapped(host: Any, name: str, amount: float = 0.5, depth: int = 1) -> Any:
    sampler = host.comfy.samplers.ksampler(name)
    for _ in range(depth):
        sampler = ksampler(host, lying, inner=sampler, amount=amount)
        amount = 0.0
    return sampler


@pytest.mark.parametrize("depth", [2])
def test_report_15_dpm_adaptive_inside_a_wrapper_stands_down(host: Any, depth: int) -> None:
    sigmas = host.foreign.simple(host, host.model, 8)
    sampler = wrapped(host, "dpm_adaptive", amount=0.0, depth=depth)
    host.foreign.run(host, host.foreign.attached(host, "Auto"), sampler, sigmas, latent=torch.zeros(1, 16, 4, 4))
    assert host.trace()["state"] == "stood down"
    assert any("dpm_adaptive" in note for note in host.trace()["notes"])


@pytest.mark.parametrize("depth", [1])
def test_report_15_euler_ancestral_inside_a_wrapper_is_noted(host: Any, depth: int) -> None:
    sigmas = host.foreign.simple(host, host.model, STEPS)
    sampler = wrapped(host, "euler_ancestral", amount=0.0, depth=depth)
    out = host.foreign.run(host, host.foreign.attached(host, "Auto"), sampler, sigmas)
    notes = host.trace()["notes"]
    bare = host.comfy.samplers.ksampler("euler_ancestral")
    assert torch.equal(out, host.foreign.run(host, host.foreign.attached(host, "Auto"), bare, sigmas))
    assert notes == host.trace()["notes"] != []


@pytest.mark.parametrize(("name", "amount"), [("euler", 0.5), ("dpmpp_2m", 0.2), ("res_multistep", 0.5)])
def test_report_15_lying_sigmas_keep_budget_and_picture(host: Any, name: str, amount: float) -> None:
    """The last step is computed, the budget holds within a step, and the picture is no worse than with fewer steps."""
    foreign = host.foreign
    model, cases = foreign.trained(host, 2)
    gains, counts = [], []
    for positive, noise in cases:
        options = {"positive": positive, "latent": torch.zeros_like(noise), "noise": noise}
        sampler, levels = wrapped(host, name, amount), foreign.simple(host, model, STEPS)
        full = foreign.run(host, model, sampler, levels, **options)
        out = foreign.run(host, foreign.attached(host, "Auto", model), sampler, levels, **options)
        trace = host.trace()
        fewer = foreign.run(host, model, sampler, foreign.simple(host, model, 10), **options)
        assert trace["evaluations"][-1]["action"] == "computed"
        counts.append(trace["computed"])
        gains.append(foreign.decibels(out, full) - foreign.decibels(fewer, full))
    assert max(counts) <= 11, counts
    assert sum(gains) / len(gains) > -0.5, gains
