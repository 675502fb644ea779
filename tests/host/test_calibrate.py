"""Cache Calibrate on the small models: what it records against modules watched by hand, and a run that follows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

STEPS = 6


@pytest.fixture(scope="module")
def node(host: Any) -> Any:
    import importlib

    return importlib.import_module(f"{host.host.__package__}.calibrate").SpectralCacheCalibrate


def calibrate(host: Any, node: Any, model: Any = None, **options: Any) -> Any:
    given = {
        "seed": 5,
        "steps": STEPS,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "samples": 2,
        "lags": 2,
    }
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    out = node.execute(model or host.model, host.conditioning(1), host.conditioning(2), latent, **{**given, **options})
    return out.args


@pytest.mark.claim("Calibration", "changes and noise norms equal those watched by hand; the model is left as it was")
def test_what_is_recorded(host: Any, node: Any) -> None:
    block, outs, denoised = host.diffusion_model.double_blocks[0], [], []
    options = {"steps": STEPS, "size": (8, 8), "seed": 5}
    handle = block.img_mlp.register_forward_hook(lambda m, a, out: outs.append(out.clone()))
    try:
        plain = host.sample(host.model, **options)
    finally:
        handle.remove()
    profile, report = calibrate(host, node, samples=1)
    assert torch.equal(host.sample(host.model, **options), plain)
    assert profile.about["model"] == f"FLUX.1, {host.blocks} blocks of {host.diffusion_model.hidden_size}"
    handle = block.txt_mlp.register_forward_hook(lambda m, a, out: denoised.append(out.clone()))
    try:
        host.sample(host.model, **options)
    finally:
        handle.remove()
    change = profile.tables["mlp.change"]
    for step in range(2, STEPS):
        for lag in (1, 2):
            moved = sum((s[step][:, ::8] - s[step - lag][:, ::8]).abs().mean() for s in (outs, denoised))
            size = sum(s[step][:, ::8].abs().mean() for s in (outs, denoised))
            assert float(change[lag - 1, step, 0]) == pytest.approx(float(moved / size), rel=1e-3)
    assert torch.isnan(change[1, 1]).all() and torch.isnan(change[0, 0]).all()
    noise = profile.tables["attention.noise"][0, 1:-1, 0]
    assert torch.isfinite(noise).all() and 0 < float((noise - 1).abs().max()) < 0.5
    assert "FEB-Cache, work 0.5" in report and report.count("\n") > 8


def test_a_trial_is_a_step_with_that_module_one_step_old(host: Any, node: Any) -> None:
    """The norm that a profile holds for a step is that of the run that reuses the module there for the first time."""
    profile, _ = calibrate(host, node, samples=1)
    seen: dict[int, torch.Tensor] = {}

    def watch(args: dict[str, Any]) -> torch.Tensor:
        sigma = args["sigma"].flatten()[0]
        seen[len(seen)] = (args["input"] - (1 - sigma) * args["denoised"]).norm()
        return args["denoised"]

    def norms(model: Any) -> dict[int, torch.Tensor]:
        seen.clear()
        watched = model.clone()
        watched.set_model_sampler_post_cfg_function(watch)
        host.sample(watched, steps=STEPS, size=(8, 8), seed=5)
        return dict(seen)

    types, schedules = host.types, host.schedules
    whole = norms(host.model)
    for place in (types.ATTENTION, types.MLP):
        gate = schedules.Listed(lambda schedule: frozenset({3}))
        rule = types.Rule((place,), types.Signal(), gate, host.predictors.Hold(), "absolute")
        reused = norms(host.host.attach(host.model, types.Method("one", (rule,)), None))
        found = float(profile.tables[f"{place.kind}.noise"][0, 3, 0])
        assert found == pytest.approx(float(reused[3] / whole[3]), rel=1e-4) and found != 1


@pytest.mark.claim(
    "Calibration", "a profile drives FEB-Cache, SmoothCache and Learning-to-Cache; another model's is refused"
)
def test_from_a_profile_to_a_run(host: Any, node: Any) -> None:
    profile, _ = calibrate(host, node, more=None, positive_2=host.conditioning(3))
    core = host.core.methods()
    for name, options in (("feb_cache", {"work": 0.6, "scaling": "measured"}), ("smoothcache", {"alpha": 0.5}),
                          ("learning_to_cache", {"share": 0.5})):  # fmt: skip
        method = core[name](host.host.fitting(host.model, profile), **options)
        out = host.sample(host.host.attach(host.model, method, None), steps=STEPS, size=(8, 8))
        trace = host.trace()
        assert torch.isfinite(out).all() and trace["skipped"] + trace["partial"] > 0, name
        assert not [note for note in trace["notes"] if "profile" in note], trace["notes"]
    host.sample(host.host.attach(host.model, method, None), steps=STEPS + 2, size=(8, 8))
    assert any("this run has 8" in note for note in host.trace()["notes"])
    with pytest.raises(ValueError, match="not for this model"):
        host.host.fitting(host.tiny.load("qwen_image")[0], profile)


def test_qwen_image_and_what_is_not_described(host: Any, node: Any) -> None:
    qwen = host.tiny.Qwen(host)
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    profile, _ = node.execute(
        qwen.model, qwen.conditioning(1), qwen.conditioning(2), latent, 0, STEPS, 3.0, "euler", "simple", 1, 1
    ).args
    assert profile.about["family"] == "Qwen-Image" and torch.isfinite(profile.tables["mlp.noise"][0, 1:-1]).all()
    with pytest.raises(ValueError, match="SpectralCache Auto"):
        calibrate(host, node, host.tiny.load("chroma")[0])
