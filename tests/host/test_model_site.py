"""Site model: any model without an architecture file, on tiny random members of four families. What holds on every
family of the host is in test_families.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

FAMILIES = ("Lumina 2", "HiDream", "Cosmos Predict2", "Krea 2")
STEPS = 10
SKIPPING = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}


class Family:
    """One tiny model with its sampling set-up."""

    def __init__(self, host: Any, name: str) -> None:
        self.host, self.entry = host, host.families.FAMILIES[name]
        self.patcher = self.entry.patcher()

    def sample(self, model: Any, **options: Any) -> torch.Tensor:
        sides = {"positive": self.entry.conditioning(1), "negative": self.entry.conditioning(2)}
        return self.host.sample(model, latent=self.entry.empty(), **{"steps": STEPS} | sides | options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, host: Any) -> Family:
    return Family(host, request.param)


def test_a_skip_holds_the_derivative(host: Any, family: Family) -> None:
    """With Euler a skipped step repeats the last computed derivative: x moves on by d times the step in sigma."""
    states: list[torch.Tensor] = []
    sigmas: list[float] = []

    def spy(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any) -> torch.Tensor:
        states.append(x.clone())
        sigmas.append(float(timestep[0]))
        return executor(x, timestep, *args)

    model = host.apply(family.patcher, **SKIPPING)
    model.add_wrapper_with_key("predict_noise", "spy", spy)
    family.sample(model, sampler="euler")
    derivatives = [(states[i + 1] - states[i]) / (sigmas[i + 1] - sigmas[i]) for i in range(STEPS - 1)]
    actions = [e["action"] for e in host.trace()["evaluations"]]
    assert actions.count("skipped") >= 4
    for i in range(1, STEPS - 1):
        same = torch.allclose(
            derivatives[i], derivatives[i - 1], rtol=1e-2, atol=1e-2 * float(derivatives[i].abs().max())
        )
        if actions[i] == "skipped":
            assert same


def test_batched_and_split_conditionings_agree(host: Any, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    together = family.sample(host.apply(family.patcher, **SKIPPING), cfg=3.0)
    first = [(e["step"], e["action"], e["reason"]) for e in host.trace()["evaluations"]]
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = family.sample(host.apply(family.patcher, **SKIPPING), cfg=3.0)
    assert [(e["step"], e["action"], e["reason"]) for e in host.trace()["evaluations"]] == first
    assert torch.allclose(together, apart, atol=1e-3 * float(together.abs().max()))


@pytest.mark.claim(
    "Models", "several latents packed into one (audio with video): whole model calls, bands not told apart"
)
@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
def test_packed_latents(host: Any, method: str) -> None:
    """The host packs nested latents into b 1 n before the model; apply_model sees and returns the pack."""
    sites = host.sites
    params = SKIPPING if method == "spectralcache" else {"interval": 3}
    build = host.core.methods()[method](**params)
    sigmas = [1 - i / STEPS for i in range(STEPS + 1)]
    recorder = host.recorder("toy", STEPS)
    session = host.core.Session(build, host.types.Schedule(tuple(sigmas), lambda sigma: -sigma), recorder)
    around = sites.Around(host.diffusion_model, None, host.types.MODEL, lambda: False, lambda why: None, host.host.lent)
    site = sites.WholeModel(session.tracks[0], around)
    sampling = host.model.get_model_object("model_sampling")
    velocity = torch.randn(2, 1, 37, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 1, 37, generator=torch.Generator().manual_seed(1))
    computed = 0

    def forward(options: dict[str, Any]) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return x - sigma.view(-1, 1, 1) * velocity

    for i in range(STEPS):
        sigma = torch.full((2,), sigmas[i])
        session.begin(sigma)
        call = session.open([host.lane("cond")], [slice(0, 2)])
        denoised = site.run(sites.ModelCall(call, x, sigma, sampling), {}, forward)
        session.end()
        assert torch.allclose(
            denoised, x - sigmas[i] * velocity, atol=1e-5
        )  # d is constant, so every forecast is exact
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    assert computed == STEPS - sum(r.action == "skipped" for r in recorder.records) < STEPS
    assert any("no grid" in note for note in recorder.notes) == (method == "freqca")
