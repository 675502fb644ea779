"""Every sampler of the host, found when the tests are collected at run time: the step rule, bit-identity, finite
results.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

FREE_RUNNING = {"dpm_fast", "dpm_adaptive"}
FRESH = {"lcm"}
"""Makes the latent anew from noise at every step."""
CALLS = {
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "seeds_2": 2,
    "seeds_3": 3,
    "dpmpp_2s_ancestral_cfg_pp": 2,
    "dpmpp_sde_gpu": 2,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "sa_solver_pece": 2,
}
"""Evaluations of a middle step, as measured on the host (reference: comfy_host.md 1.6); 1 for every other sampler."""
STEPS = 9
EAGER = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}


def sampler_names(host: Any) -> list[str]:
    return list(host.comfy.samplers.SAMPLER_NAMES)


def test_the_host_still_has_the_samplers_we_know(host: Any) -> None:
    names = set(sampler_names(host))
    assert len(names) >= 40
    assert FREE_RUNNING | set(CALLS) <= names


def failures(host: Any, check: Any) -> dict[str, str]:
    """Run a check for every sampler and collect what went wrong, so that one test names them all."""
    wrong = {}
    for name in sampler_names(host):
        try:
            check(name)
        except AssertionError as error:
            wrong[name] = str(error).splitlines()[0] if str(error) else "failed"
    return wrong


@pytest.mark.claim("Samplers", "every sampler of the host: attached and never skipping is bit-identical, CFG 1 and 3")
@pytest.mark.parametrize(
    ("method", "params", "cfg"),
    [
        ("apply", {"threshold": 0.0}, 3.0),
        ("apply", {"threshold": 1e-6}, 1.0),
        ("apply", {"threshold": 1e-6}, 3.0),
        ("auto", {"keep_first": 100}, 3.0),
        ("auto", {"keep_first": 100, "site": "trunk"}, 1.0),
    ],
)
def test_never_skipping_is_bit_identical_on_every_sampler(
    host: Any, method: str, params: dict[str, Any], cfg: float
) -> None:
    def check(name: str) -> None:
        plain = host.sample(host.model, sampler=name, steps=6, cfg=cfg, size=(8, 8))
        ours = host.sample(getattr(host, method)(**params), sampler=name, steps=6, cfg=cfg, size=(8, 8))
        assert torch.equal(plain, ours), "not bit-identical"
        assert host.trace()["skipped"] == 0, "skipped"

    assert failures(host, check) == {}


@pytest.mark.claim(
    "Samplers", "every sampler of the host: cached runs follow the schedule; dpm_fast, dpm_adaptive and lcm stand down"
)
def test_cached_runs_are_finite_and_steps_follow_the_schedule(host: Any) -> None:
    def check(name: str) -> None:
        out = host.sample(host.apply(**EAGER), sampler=name, steps=STEPS, size=(8, 8))
        trace = host.trace()
        assert torch.isfinite(out).all(), "not finite"
        if name in FREE_RUNNING | FRESH:
            assert trace["state"] == "stood down" and trace["skipped"] == 0, trace["state"]
            return
        assert trace["state"] == "done", trace["notes"]
        evaluations = trace["evaluations"]
        steps = [e["step"] for e in evaluations]
        assert sorted(set(steps)) == list(range(trace["steps"])), f"steps {steps}"
        assert trace["skipped"] > 0, "nothing skipped"
        ends = [e for e in evaluations if e["step"] in (0, trace["steps"] - 1)]
        assert all(e["action"] == "computed" for e in ends), "an end was skipped"
        runs = "".join("s" if e["action"] == "skipped" else "c" for e in evaluations)
        assert "sss" not in runs, runs

    assert failures(host, check) == {}


def test_single_call_samplers_visit_every_step_once_at_its_sigma(host: Any) -> None:
    def check(name: str) -> None:
        if name in FREE_RUNNING | set(CALLS) | {"heunpp2"}:
            return
        host.sample(host.apply(**EAGER), sampler=name, steps=STEPS, size=(8, 8))
        evaluations = host.trace()["evaluations"]
        assert [e["step"] for e in evaluations] == list(range(STEPS)), [e["step"] for e in evaluations]
        assert {e["stage"] for e in evaluations} == {0}

    assert failures(host, check) == {}


@pytest.mark.claim(
    "Samplers",
    "multi-call samplers (heun, dpm_2, dpmpp_2s, dpmpp_sde, seeds_2/3, sa_solver_pece, exp_heun) and their stages",
)
@pytest.mark.parametrize("name", sorted(CALLS))
def test_multi_call_samplers_have_their_stages(host: Any, name: str) -> None:
    host.sample(host.apply(**EAGER), sampler=name, steps=STEPS, size=(8, 8))
    trace = host.trace()
    middle = [sum(e["step"] == step for e in trace["evaluations"]) for step in range(2, trace["steps"] - 2)]
    assert set(middle) == {CALLS[name]}


@pytest.mark.claim("Samplers", "heunpp2, which goes back up in sigma")
def test_heunpp2_goes_back_up_and_that_evaluation_leaves_no_mark(host: Any) -> None:
    """Its second look at a higher sigma is computed and touches neither A, c nor history."""
    host.sample(host.apply(**EAGER), sampler="heunpp2", steps=STEPS, size=(8, 8))
    evaluations = host.trace()["evaluations"]
    rising = [i for i in range(1, len(evaluations)) if evaluations[i]["sigma"] > evaluations[i - 1]["sigma"] * 1.001]
    assert rising
    for i in rising:
        assert evaluations[i]["action"] == "computed"
        assert evaluations[i]["consecutive"] == evaluations[i - 1]["consecutive"]
        if evaluations[i]["step"] not in (0, STEPS - 1):
            assert evaluations[i]["reason"] == "sigma rose"


@pytest.mark.claim("Samplers", "uni_pc, which writes into the sigmas")
def test_uni_pc_writing_into_sigmas_does_not_move_the_steps(host: Any) -> None:
    host.sample(host.apply(**EAGER), sampler="uni_pc", steps=STEPS, size=(8, 8))
    sigmas = [e["sigma"] for e in host.trace()["evaluations"]]
    assert sigmas == sorted(sigmas, reverse=True)
    assert host.trace()["evaluations"][-1]["reason"] == "last step"


@pytest.mark.claim("Samplers", "stochastic samplers, with a note")
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "er_sde", "seeds_2", "sa_solver"])
def test_stochastic_samplers_work_with_a_note(host: Any, sampler: str) -> None:
    host.sample(host.apply(**EAGER), sampler=sampler, steps=STEPS, size=(8, 8))
    assert any("fresh noise" in note for note in host.trace()["notes"])


@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "heun", "uni_pc", "dpmpp_2m", "res_multistep"])
def test_deterministic_samplers_have_no_such_note(host: Any, sampler: str) -> None:
    """euler_cfg_pp was once taken for a relative of er_sde, by its letters."""
    host.sample(host.apply(**EAGER), sampler=sampler, steps=STEPS, size=(8, 8))
    assert host.trace()["notes"] == []


def test_few_steps_work_with_a_note(host: Any) -> None:
    host.sample(host.apply(**EAGER), steps=6)
    assert any("only 6 steps" in note for note in host.trace()["notes"])
    assert host.trace()["skipped"] > 0
