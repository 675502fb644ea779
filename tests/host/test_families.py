"""Every family of families.py: never skipping is bit-identical, and what is skipped is what the trace says.

One run each of what has to hold on any model: Auto at the sites model and guided, SpectralCache as the method that
decides by what it sees, FreqCa as the one that tells bands apart. Whole runs go through the host's own classes, with
their conditioning as the host's nodes hand it over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .families import FAMILIES

STEPS, BUDGET = 8, 4
ALL = {"speedup": 2.0, "keep_first": 100}
"""A budget that computes every step, with everything recorded."""

pytestmark = pytest.mark.smoke


class Model:
    """A tiny member of a family, and its runs."""

    def __init__(self, host: Any, name: str) -> None:
        import comfy.supported_models

        self.host, self.family = host, host.families.FAMILIES[name]
        if not hasattr(comfy.supported_models, self.family.model):
            pytest.skip(f"this ComfyUI has no {self.family.model}")
        self.patcher = self.family.patcher()
        self.plain, self.calls = self.counted(self.patcher)

    def sample(self, model: Any) -> list[torch.Tensor]:
        """One run; the parts of its latent (audio beside video)."""
        sides = {"positive": self.family.conditioning(1), "negative": self.family.conditioning(2)}
        out = self.host.sample(model, latent=self.family.empty(), steps=STEPS, cfg=3.0, **sides)
        return list(out.unbind()) if getattr(out, "is_nested", False) else [out]

    def counted(self, model: Any) -> tuple[list[torch.Tensor], int]:
        """One run, and how often the diffusion model ran."""
        calls: list[int] = []
        handle = self.patcher.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            return self.sample(model), len(calls)
        finally:
            handle.remove()

    def same(self, model: Any) -> bool:
        """Whether a run on this clone is the plain one to the bit, and computed every step."""
        equal = all(torch.equal(ours, plain) for ours, plain in zip(self.sample(model), self.plain, strict=True))
        return equal and self.host.trace()["computed"] == STEPS

    def cached(self, model: Any) -> dict[str, Any]:
        """The trace of a run on this clone, which must be finite, another than the plain one, and true."""
        out, calls = self.counted(model)
        trace: dict[str, Any] = self.host.trace()
        assert all(torch.isfinite(part).all() for part in out)
        assert not all(torch.equal(ours, plain) for ours, plain in zip(out, self.plain, strict=True))
        assert (trace["state"], trace["partial"]) == ("done", 0), trace["notes"]
        assert trace["computed"] + trace["skipped"] == len(trace["evaluations"]) == STEPS
        if trace["site"] != "trunk":  # where the model is called and its blocks are left out
            assert calls * STEPS == self.calls * trace["computed"]
        return trace


CASES = [pytest.param(name, marks=pytest.mark.claim("Families", name)) for name in FAMILIES]


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, host: Any) -> Iterator[Model]:
    with torch.inference_mode():
        yield Model(host, request.param)


@pytest.mark.parametrize("site", ["model", "guided"])
def test_auto_keeps_its_budget(model: Model, site: str) -> None:
    trace = model.cached(model.host.auto(model.patcher, site=site, speedup=2.0))
    assert (trace["site"], trace["computed"]) == (site, BUDGET), trace["notes"]


@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
def test_methods_skip_what_they_say(model: Model, method: str) -> None:
    host, patcher = model.host, model.patcher
    skipping = host.freqca(patcher, interval=3) if method == "freqca" else host.apply(patcher, **host.tiny.SKIPPING)
    assert model.cached(skipping)["skipped"] >= STEPS // 3


def test_never_skipping_is_bit_identical(model: Model) -> None:
    assert model.same(model.host.auto(model.patcher, **ALL))
    assert model.same(model.host.apply(model.patcher, threshold=1e-6))


@pytest.mark.claim("Models", "Wan 2.2's two experts in one graph: two runs, each with its own budget, neither mixed")
@pytest.mark.parametrize("method", ["auto", "spectralcache"])
def test_two_experts_in_one_graph(host: Any, method: str) -> None:
    """The high-noise expert samples the first half of the schedule, the low-noise expert the rest, as two nodes do."""
    steps, change = 16, 8
    family = host.families.FAMILIES["Wan 2.1"]
    high, low = family.patcher(), family.patcher()
    host.perturb(low, ".weight")
    empty = family.empty()
    noise = host.comfy.sample.prepare_noise(empty, 0)

    def both(on: Any) -> tuple[torch.Tensor, list[Any]]:
        sides = (family.conditioning(1), family.conditioning(2))
        latent, traces = empty, []
        for model, first in ((on(high), True), (on(low), False)):
            latent = host.comfy.sample.sample(
                model,
                noise if first else torch.zeros_like(noise),
                steps,
                3.0,
                "euler",
                "simple",
                *sides,
                latent,
                disable_noise=not first,
                start_step=None if first else change,
                last_step=change if first else None,
                force_full_denoise=not first,
                seed=0,
            )
            traces.append(host.trace() if on is not plain else None)
        return latent, traces

    def plain(model: Any) -> Any:
        return model

    def cached(model: Any) -> Any:
        return host.auto(model, speedup=2.0) if method == "auto" else host.apply(model, **host.tiny.SKIPPING)

    full, _ = both(plain)
    refused, _ = both(lambda model: host.apply(model, threshold=1e-6))
    assert torch.equal(refused, full)
    out, traces = both(cached)
    again, repeated = both(cached)
    assert torch.isfinite(out).all() and torch.equal(out, again)
    for trace, other in zip(traces, repeated, strict=True):
        assert (trace["state"], trace["steps"], len(trace["evaluations"])) == ("done", change, change)
        assert trace["evaluations"][0]["action"] == "computed" and trace["skipped"] > 0
        assert [e["action"] for e in trace["evaluations"]] == [e["action"] for e in other["evaluations"]]
        assert method != "auto" or trace["computed"] == change // 2
    assert torch.equal(both(plain)[0], full)
