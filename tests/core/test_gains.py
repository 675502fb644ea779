"""Gains against closed forms: a run whose noise or whose channels are off by known factors is put right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.tables import cost
from bench.tables import gains as gains_table
from cache_core import methods
from cache_core.gains import LEAST, MOST, Gains, channel_gains, corrected, noise_gains
from cache_core.outputs import ChannelGain, NoiseGain
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


def test_the_noise_gain_gives_back_the_norm() -> None:
    full = runs(0)
    off = [[eps * factor for eps, factor in zip(run, (1.0, 0.97, 1.05), strict=True)] for run in full]
    assert noise_gains(full, off) == pytest.approx((1.0, 1 / 0.97, 1 / 1.05), rel=1e-5)
    assert noise_gains(full, [[eps * 3 for eps in run] for run in full]) == pytest.approx((LEAST,) * 3)


def test_the_channel_gain_is_the_least_squares_factor() -> None:
    full = runs(1)
    factors = torch.tensor([[1.0, 0.95, 1.05, 0.99], [0.98, 1.02, 1.0, 0.97], [1.0, 1.0, 1.0, 2.0]])
    found = channel_gains(full, scaled(full, factors))
    assert torch.allclose(found, (1 / factors).clamp(LEAST, MOST), atol=1e-4)
    other = [[x + 0.3 * torch.randn(x.shape) for x in run] for run in full]  # noise of its own: drawn to the mean
    assert (channel_gains(full, other) < 1).all()
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


def test_the_report_of_gains_has_each_method_with_both() -> None:
    kinds = {"": "30.0", ", noise": "31.0", ", channels": "29.0"}
    rows = [
        {"family": "A", "name": f"A{kind}", "cfg": cfg, "steps": "28", "pairs": "6", "computed": "10", "psnr": psnr}
        for cfg in ("1.0", "3.0")
        for kind, psnr in kinds.items()
    ]
    assert gains_table.report(rows, "about").count("| A | 10.0 | 30.0 | 31.0 | 29.0 |") == 2


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
