"""Gains against closed forms: a run whose noise or whose channels are off by known factors is put right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.tables import cost, halves
from bench.tables import gains as gains_table
from cache_core import methods
from cache_core.gains import LEAST, MOST, Gains, Learner, by_profile, corrected, settings
from cache_core.outputs import ChannelGain, NoiseGain
from cache_core.profile import Profile, from_bytes, to_bytes
from cache_core.session import flow_noise
from cache_core.types import ATTENTION, MLP, CacheError, Schedule

LEVELS = (0.9, 0.6, 0.3)
SCHEDULE = Schedule((*LEVELS, 0.0), flow_noise)


def runs(seed: int, channels: int = 4) -> list[list[Tensor]]:
    """Two samples of three steps: b c h w, each channel with a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.arange(channels).view(1, -1, 1, 1)
    return [[mean + torch.randn(1, channels, 6, 5, generator=generator) for _ in LEVELS] for _ in range(2)]


def scaled(full: list[list[Tensor]], factors: Tensor) -> list[list[Tensor]]:
    """Deviations from each channel's mean over all samples, times a factor a step and channel: t c."""
    found: list[list[Tensor]] = [[], []]
    for step, row in enumerate(factors):
        mean = torch.cat([run[step] for run in full]).mean((0, 2, 3)).view(1, -1, 1, 1)
        for sample, run in enumerate(full):
            found[sample].append(mean + row.view(1, -1, 1, 1) * (run[step] - mean))
    return found


def learned(full: list[list[Tensor]], cached: list[list[Tensor]]) -> Learner:
    """Of samples whose predicted noise and denoised latent are one and the same."""
    learner = Learner()
    for exact, off in zip(full, cached, strict=True):
        for told, run in ((learner.full, exact), (learner.cached, off)):
            for step, latent in enumerate(run):
                told(step, latent.norm(), latent)
    return learner


def noise_gains(full: list[list[Tensor]], cached: list[list[Tensor]]) -> list[float]:
    return learned(full, cached).noise(len(LEVELS)).tolist()  # type: ignore[no-any-return]


def channel_gains(full: list[list[Tensor]], cached: list[list[Tensor]]) -> Tensor:
    return learned(full, cached).channels(len(LEVELS))


def test_the_noise_gain_gives_back_the_norm() -> None:
    full = runs(0)
    off = [[eps * factor for eps, factor in zip(run, (1.0, 0.97, 1.05), strict=True)] for run in full]
    assert noise_gains(full, off) == pytest.approx([1.0, 1 / 0.97, 1 / 1.05], rel=1e-5)
    assert noise_gains(full, [[eps * 3 for eps in run] for run in full]) == pytest.approx([LEAST] * 3)


def test_the_channel_gain_is_the_least_squares_factor() -> None:
    full = runs(1)
    factors = torch.tensor([[1.0, 0.95, 1.05, 0.99], [0.98, 1.02, 1.0, 0.97], [1.0, 1.0, 1.0, 2.0]])
    found = channel_gains(full, scaled(full, factors))
    assert torch.allclose(found, (1 / factors).clamp(LEAST, MOST), atol=1e-4)
    generator = torch.Generator().manual_seed(2)
    other = [[x + 0.5 * torch.randn(x.shape, generator=generator) for x in run] for run in full]
    assert (channel_gains(full, other) < 1).all()  # noise of its own: drawn to the mean
    flat = [[torch.zeros_like(x) for x in run] for run in full]
    assert torch.equal(channel_gains(full, flat), torch.ones(3, 4))


def test_a_channel_is_drawn_to_its_mean() -> None:
    x = runs(2)[0][0]
    gain = torch.tensor([1.0, 0.9, 1.1, 1.0])
    adjusted = ChannelGain(lambda step: gain).adjust(SCHEDULE.at(0.6), torch.zeros_like(x), x)
    assert torch.allclose(adjusted.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(adjusted.std((2, 3)), x.std((2, 3)) * gain, rtol=1e-4)
    packed = torch.randn(1, 1, 37)  # several latents in one have no such channels
    same = ChannelGain(lambda step: gain).adjust(SCHEDULE.at(0.6), packed, packed)
    assert torch.equal(same, packed) and same.data_ptr() != packed.data_ptr()


def test_gains_belong_to_noise_levels() -> None:
    gains = Gains(LEVELS, (1.0, 0.98, 0.94), torch.tensor([[1.0], [0.9], [1.1]]))
    finer = Schedule((0.9, 0.75, 0.6, 0.45, 0.3, 0.1, 0.0), flow_noise)
    assert [gains.noise_at(finer.at(sigma)) for sigma in finer.sigmas[:-1]] == pytest.approx(
        [1.0, 0.99, 0.98, 0.96, 0.94, 0.94]
    )
    assert gains.channels_at(finer.at(0.45)).tolist() == pytest.approx([1.0])
    assert gains.noise_at(Schedule((1.0, 0.5, 0.0), flow_noise).at(1.0)) == 1.0


@pytest.mark.parametrize("name", ["teacache", "freqca", "taylorseer", "feb_cache", "quantcache"])
def test_any_method_takes_a_gain(name: str) -> None:
    gains = Gains(LEVELS, (1.0, 0.98, 0.94), torch.ones(3, 4))
    method = methods()[name]()
    assert isinstance(corrected(method, gains, "noise").output, NoiseGain)
    assert isinstance(corrected(method, gains, "channels").output, ChannelGain)
    assert corrected(method, gains, "noise").rules == method.rules
    with pytest.raises(CacheError, match="switch that off"):
        corrected(methods()["feb_cache"](scaling="paper"), gains, "noise")


def test_steps_that_one_run_lacks_teach_nothing() -> None:
    learner = Learner()
    learner.full(0, torch.tensor(2.0), torch.ones(1, 2, 3))
    learner.cached(1, torch.tensor(1.0), torch.ones(1, 2, 3))
    assert learner.noise(2).tolist() == [1, 1] and learner.channels(2).tolist() == [[1], [1]]


def profile(method: str = "teacache", **params: object) -> Profile:
    """Of a method with these parameters: noise gains 1, 0.98, 0.94, channels 1 but for the second at step 1."""
    about = {"model": "Toy", "family": "Toy", "sampler": "euler", "scheduler": "simple", "size": "8 x 8", "date": "",
             "pack": "", "name": "", "steps": 3, "cfg": 1.0, "samples": 2, "shift": 0.0,
             "gained": settings(methods()[method](**params))}  # fmt: skip
    tables = {
        "sigmas": torch.tensor(LEVELS),
        "gain.noise": torch.tensor([1.0, 0.98, 0.94]),
        "gain.channels": torch.tensor([[1.0, 1.0], [1.0, 0.95], [1.0, torch.nan]]),
    }
    return from_bytes(to_bytes(Profile(about, tables)))


def test_a_gain_belongs_to_one_method_with_one_set_of_settings() -> None:
    known = profile(threshold=0.4)
    assert known.groups == ("gain",)
    x, denoised = torch.randn(2, 1, 2, 6, 5)
    for kind in ("noise", "channels"):
        made = by_profile(methods()["teacache"](threshold=0.4), known, kind)
        at = SCHEDULE.at(LEVELS[1])
        assert made.output is not None and made.params["gain"] == kind and made.remark is not None
        bare = NoiseGain(lambda _: 0.98) if kind == "noise" else ChannelGain(lambda _: torch.tensor([1.0, 0.95]))
        assert torch.allclose(made.output.adjust(at, x, denoised), bare.adjust(at, x, denoised), atol=1e-6)
        assert torch.isfinite(made.output.adjust(SCHEDULE.at(LEVELS[2]), x, denoised)).all()  # NaN: not measured
        other = Schedule((0.9, 0.7, 0.5, 0.3, 0.0), flow_noise)
        same = made.output.adjust(other.at(0.7), x, denoised)
        assert torch.equal(same, denoised) and same.data_ptr() != denoised.data_ptr()
        assert "steps" in made.remark(other) and not made.remark(SCHEDULE)
    for name, params in (("teacache", {"threshold": 0.6}), ("freqca", {})):
        with pytest.raises(CacheError, match=r"0\.4"):
            by_profile(methods()[name](**params), known, "noise")


def test_the_report_of_gains_says_what_each_adds_pair_by_pair() -> None:
    kinds = {"": "30.0 31.0", ", noise": "31.0 32.0", ", channels": "29.0 30.5"}
    rows = [
        {"family": "A", "name": f"A{kind}", "cfg": cfg, "steps": "28", "pairs": "2", "computed": "10", "psnr": "30.5",
         "psnr_each": each}
        for cfg in ("1.0", "3.0")
        for kind, each in kinds.items()
    ]  # fmt: skip
    page = gains_table.report(rows, "about")
    assert page.count("| A | 10.0 | 30.5 | +1.00 (+1.00 to +1.00) | -0.75 (-1.00 to -0.50) |") == 2
    assert "gain of the noise: closer to the full run in 2 of 2 settings" in page
    assert "gain of each channel: closer to the full run in 0 of 2 settings, further away in 2" in page


def test_half_steps_lie_between_full_ones() -> None:
    """Two rounds of attention, MLP, both, with a full step before and behind each."""
    assert cost.steps_of(ATTENTION, 2) == {2, 6, 8, 12} and cost.steps_of(MLP, 2) == {4, 6, 10, 12}
    seconds = [1.0] * 14
    for step, share in ((2, 0.4), (4, 0.6), (6, 0.1), (8, 0.5), (10, 0.7), (12, 0.2)):
        seconds[step] = share
    assert cost.shares(seconds, 2) == {
        "attention reused": [0.4, 0.5],
        "the MLP reused": [0.6, 0.7],
        "both reused": [0.1, 0.2],
    }
    drift = [1 + 0.01 * step for step in range(14)]  # a machine that gets slower
    assert all(share == pytest.approx(1) for found in cost.shares(drift, 2).values() for share in found)


def test_what_the_scaling_takes_back_is_told_pair_by_pair() -> None:
    rows = [
        {"name": f"{halves.SCALINGS[scaling]}, {work:g}", "psnr_each": each}
        for work, both in zip(halves.WORKS, ("29.0 28.0", "31.0 32.0", "29.5 31.0"), strict=True)
        for scaling, each in (("off", "30.0 30.0"), ("paper", both))
    ]
    told = halves.taken_back(rows)
    assert "-1.5 dB (-2.0 to -1.0) at 0.7, +1.5 dB (+1.0 to +2.0) at 0.5, +0.2 dB (-0.5 to +1.0) at 0.35" in told
    assert "at 1 of 3 shares of the work, makes it worse at 1, where the paper" in told
