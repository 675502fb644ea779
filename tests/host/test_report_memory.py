"""Public reports 3 and 30: models with a memory of their own, noise levels of zero, devices without float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

STEPS = 8
METHODS = ["Apply", "FreqCa", "Auto"]


# 3: auto-regressive video ---------------------------------------------------------------------------------------------


class Causal:
    """A tiny auto-regressive Wan with random weights, and its runs: blocks of frames, keys and values kept between."""

    def __init__(self, host: Any) -> None:
        import comfy.model_patcher
        import comfy.supported_models

        with torch.inference_mode(False):
            names = {"image_model": "wan2.1", "causal_ar": True, "dtype": torch.float32, **host.tiny.WAN}
            config = comfy.supported_models.WAN21_CausalAR_T2V(names)
            model = config.get_model({}, device=torch.device("cpu"))
            host.tiny.randomize(model.diffusion_model)
        device = torch.device("cpu")
        self.host = host
        self.model = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)

    def sample(self, model: Any, sampler: Any, batch: int, steps: int = STEPS) -> torch.Tensor:
        text = torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(0))
        sigmas = self.host.foreign.simple(self.host, model, steps)
        options = {"latent": torch.zeros(batch, 16, 3, 8, 8), "positive": [[text, {}]]}
        out: torch.Tensor = self.host.foreign.run(self.host, model, sampler, sigmas, **options)
        return out


@pytest.fixture(scope="module")
def causal(host: Any) -> Causal:
    return Causal(host)


@pytest.mark.parametrize(
    ("method", "start", "batch"), [("Apply", "text", 1), ("FreqCa", "picture", 1), ("Auto", "text", 2)]
)
def test_report_03_ar_video_kv_cache(
    host: Any, causal: Causal, caplog: pytest.LogCaptureFixture, method: str, start: str, batch: int
) -> None:
    """A skipped step would not write into the model's own cache: uncached, with a sentence, not a bit different."""
    sampler = host.comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 1})
    model = causal.model
    if start == "picture":
        model = model.clone()
        latent = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        model.model_options.setdefault("transformer_options", {})["ar_config"] = {"initial_latent": latent}
    plain = causal.sample(model, sampler, batch)
    caplog.clear()
    out = causal.sample(host.foreign.attached(host, method, model), sampler, batch)
    trace = host.trace()
    assert torch.equal(out, plain)
    assert (trace["state"], trace["skipped"]) == ("stood down", 0)
    assert len(trace["notes"]) == 1 and "memory" in trace["notes"][0]
    assert sum(trace["notes"][0] in record.getMessage() for record in caplog.records) == 1


def block_by_block(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, **_: Any) -> Any:
    """A pack's own auto-regressive loop: the whole schedule once a block of rows, what was made is shown at sigma 0."""
    made, ones = [], x.new_ones([x.shape[0]])
    for part in x.chunk(3, dim=2):
        here = torch.cat([*made[-1:], part], dim=2) if made else torch.cat([part, part], dim=2)
        for sigma, after in itertools.pairwise(sigmas):
            denoised = model(here, sigma * ones, **extra_args)
            here = denoised + (here - denoised) * (after / sigma)
        model(here, sigmas[-1] * ones, **extra_args)
        made.append(here[:, :, -part.shape[2] :])
    return torch.cat(made, dim=2)


@pytest.mark.parametrize("method", METHODS)
def test_report_03_a_loop_over_the_schedule(host: Any, method: str) -> None:
    """A schedule that starts again is not followed by a forecast from what the first pass has left; later passes are
    cached too, or a sentence says that they are not.
    """
    foreign = host.foreign
    plain, fewer = (
        foreign.run(host, host.model, block_by_block, foreign.simple(host, host.model, n)) for n in (STEPS, 4)
    )
    out = foreign.run(host, foreign.attached(host, method), block_by_block, foreign.simple(host, host.model, STEPS))
    evaluations = host.trace()["evaluations"]
    assert torch.isfinite(out).all()
    assert [e["action"] for e in evaluations if e["sigma"] == 0] == ["computed"] * 3
    starts = [i for i, e in enumerate(evaluations) if i and e["sigma"] > evaluations[i - 1]["sigma"]]
    assert len(starts) == 2 and all(evaluations[i]["action"] == "computed" for i in starts)
    later = sum(e["action"] == "skipped" for e in evaluations[starts[0] :])
    assert later >= 4 or any("start" in note for note in host.trace()["notes"])
    assert foreign.error(out, plain) < 2 * foreign.error(fewer, plain) + 0.05


# 3: sigma 0 -----------------------------------------------------------------------------------------------------------


def zero_first(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, **_: Any) -> Any:
    """Shows the model something clean first, then walks the schedule as Euler."""
    ones = x.new_ones([x.shape[0]])
    model(torch.zeros_like(x), 0 * ones, **extra_args)
    for sigma, after in itertools.pairwise(sigmas):
        denoised = model(x, sigma * ones, **extra_args)
        x = denoised + (x - denoised) * (after / sigma)
    return x


def zero_between(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any = None, **_: Any) -> Any:
    """Euler that looks at its own denoised latent, at sigma 0, after every step."""
    ones = x.new_ones([x.shape[0]])
    for sigma, after in itertools.pairwise(sigmas):
        denoised = model(x, sigma * ones, **extra_args)
        model(denoised, 0 * ones, **extra_args)
        x = denoised + (x - denoised) * (after / sigma)
    return x


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        ("Apply", zero_between),
        ("FreqCa", zero_between),
        ("Auto", zero_between),
        ("Auto, trunk", zero_between),
        ("Auto", zero_first),
        ("Auto, trunk", zero_first),
    ],
)
def test_report_03_nothing_is_kept_or_skipped_at_sigma_0(host: Any, method: str, sampler: Any) -> None:
    """(x - denoised) / 0 is no derivative: the evaluation is computed, leaves no history, and the rest is cached."""
    foreign = host.foreign
    sigmas = foreign.simple(host, host.model, 12)
    plain = foreign.run(host, host.model, sampler, sigmas)
    fewer = foreign.run(host, host.model, sampler, foreign.simple(host, host.model, 4))
    out = foreign.run(host, foreign.attached(host, method), sampler, sigmas)
    evaluations = host.trace()["evaluations"]
    assert all(e["action"] == "computed" for e in evaluations if e["sigma"] == 0)
    assert sum(e["action"] == "skipped" for e in evaluations) >= 4
    assert torch.isfinite(out).all()
    assert foreign.error(out, plain) < 2 * foreign.error(fewer, plain) + 0.05


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigmas", [[0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.5, 0.5, 0.5, 0.0, 0.0]])
def test_report_12_schedules_with_zeros_and_repeats_simply_sample(host: Any, method: str, sigmas: list[float]) -> None:
    foreign, levels = host.foreign, torch.tensor(sigmas)
    sampler = host.comfy.samplers.sampler_object("euler")
    plain = foreign.run(host, host.model, sampler, levels)
    out = foreign.run(host, foreign.attached(host, method), sampler, levels)
    assert torch.equal(out.nan_to_num(), plain.nan_to_num())


# 30: a device without float64 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Apply", "Auto"])
def test_report_30_devices_without_float64(host: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Not only Apple's: the host is asked, and decides as on the CPU."""
    gpu = host.pretended.Gpu
    on_cpu = gpu._on_cpu

    def without_float64(func: Any, args: Any, kwargs: Any, ours: Any, to_gpu: bool) -> Any:
        out = on_cpu(func, args, kwargs, ours, to_gpu)
        if to_gpu and isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise RuntimeError("Required aspect fp64 is not supported on the device")
        return out

    model = host.load()
    cpu = host.sample(host.foreign.attached(host, method, model), steps=8)
    expected = host.trace()
    monkeypatch.setattr(gpu, "_on_cpu", staticmethod(without_float64))
    monkeypatch.setattr(host.comfy.model_management, "supports_fp64", lambda device=None: False)
    with host.pretended.moved(model, monkeypatch):
        out = host.sample(host.foreign.attached(host, method, model), steps=8)
    trace = host.trace()
    decisions = [[(e["step"], e["action"], e["reason"]) for e in t["evaluations"]] for t in (trace, expected)]
    assert (trace["state"], trace["notes"]) == ("done", expected["notes"])
    assert decisions[0] == decisions[1] and trace["skipped"] >= 3
    assert torch.allclose(out, cpu, atol=1e-3 * float(cpu.abs().max()))
