"""PSNR and SSIM against hand-computed values, a brute-force oracle and, where installed, scikit-image."""

import math

import pytest
import torch

from cache_core.metrics import psnr, ssim


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(height: int = 24, width: int = 20) -> torch.Tensor:
    """h w 3 with structure: a ramp, a wave and a step."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None, :].expand(height, width)
    return torch.stack((y, 0.5 + 0.5 * torch.sin(12 * x + 5 * y), (x > 0.4).float()), dim=-1)


def test_psnr_of_one_grey_level() -> None:
    a = picture(2, 16, 16, 3, dtype=torch.float64) * 0.9
    assert psnr(a, a + 1 / 255) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(a * 255, a * 255 + 1, peak=255.0) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert psnr(picture(8, 8, 3), picture(8, 8, 3)) == math.inf


def test_uint8_does_not_wrap_as_in_cache_dit() -> None:
    """Black against almost white: 0.03 dB. In uint8, 0 - 254 is 2, and its square still small."""
    black, white = torch.zeros(16, 16, 3, dtype=torch.uint8), torch.full((16, 16, 3), 254, dtype=torch.uint8)
    assert psnr(black, white) == pytest.approx(20 * math.log10(255 / 254), abs=1e-12)
    assert psnr(picture(32, 32, 3, seed=1), picture(32, 32, 3, seed=2)) < 10


def test_uint8_is_float() -> None:
    a, b = ((picture(16, 16, 3, seed=seed) * 255).to(torch.uint8) for seed in (1, 2))
    for metric in (psnr, ssim):
        expected = metric(a.double() / 255, b.double() / 255)
        assert metric(a, b) == expected
        assert metric(a, b.double() / 255) == expected
        assert metric(a, b.double(), peak=255.0) == pytest.approx(expected, rel=1e-12)


def test_ssim_of_equal_pictures_is_one_and_order_does_not_matter() -> None:
    a, b = smooth(), (smooth() + 0.2 * picture(24, 20, 3)).clamp(0, 1)
    assert ssim(a, a) == 1.0
    assert ssim(a, b) == ssim(b, a)
    assert psnr(a, b) == psnr(b, a)
    assert 0.0 < ssim(a, b) < 1.0
    assert ssim(a, 1 - a) < 0.0, "structure turned round"


def test_ssim_of_a_batch_is_the_mean_over_its_pictures() -> None:
    a, b = picture(3, 13, 17, 4, seed=1), picture(3, 13, 17, 4, seed=2)
    assert ssim(a, b) == pytest.approx(sum(ssim(x, y) for x, y in zip(a, b, strict=True)) / 3, rel=1e-14)


def test_scaling_pictures_and_peak_together_changes_nothing() -> None:
    a, b = (picture(12, 16, 16, seed=seed, dtype=torch.float64) for seed in (1, 2))
    for metric in (psnr, ssim):
        assert metric(a * 8, b * 8, peak=8.0) == pytest.approx(metric(a, b), rel=1e-12)


def brute_force_ssim(a: torch.Tensor, b: torch.Tensor, peak: float) -> float:
    """Wang et al. 2004, equations 13 to 16, window by window, variances about the local mean."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    window = torch.tensor(weights, dtype=torch.float64) / sum(map(sum, weights))
    height, width, channels = a.shape
    values = []
    for y in range(height - 10):
        for x in range(width - 10):
            for channel in range(channels):
                p, q = (t[y : y + 11, x : x + 11, channel].double() for t in (a, b))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
                cov = (window * (p - mean_p) * (q - mean_q)).sum()
                c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
                top = (2 * mean_p * mean_q + c1) * (2 * cov + c2)
                values.append(top / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2)))
    return torch.stack(values).mean().item()


@pytest.mark.parametrize("peak", [1.0, 3.0])
def test_ssim_is_the_paper_written_out(peak: float) -> None:
    a, b = smooth(14, 12) * peak, (smooth(14, 12) + 0.1 * picture(14, 12, 3)) * peak
    assert ssim(a, b, peak) == pytest.approx(brute_force_ssim(a, b, peak), abs=1e-12)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = smooth(40, 32), (smooth(40, 32) + 0.1 * picture(40, 32, 3)).clamp(0, 1)
    theirs = metrics.structural_similarity(
        a.double().numpy(),
        b.double().numpy(),
        data_range=1.0,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-10)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a.double().numpy(), b.double().numpy()))


@pytest.mark.parametrize(
    ("a", "b", "peak", "says"),
    [
        (picture(16, 16, 3), picture(16, 17, 3), 1.0, r"\(16, 16, 3\) and \(16, 17, 3\)"),
        (picture(16, 10, 3), picture(16, 10, 3), 1.0, r"at least 11, got \(16, 10, 3\)"),
        (picture(16, 16), picture(16, 16), 1.0, r"got \(16, 16\)"),
        (picture(0, 16, 16, 3), picture(0, 16, 16, 3), 1.0, "nothing to compare"),
        (picture(16, 16, 3), picture(16, 16, 3), 0.0, "peak must be positive"),
        (picture(16, 16, 3), picture(16, 16, 3), math.nan, "peak must be positive"),
        (picture(16, 16, 3).int(), picture(16, 16, 3), 1.0, r"or uint8, got torch\.int32"),
    ],
)
def test_errors_name_the_cause(a: torch.Tensor, b: torch.Tensor, peak: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ssim(a, b, peak)


def test_nothing_given_is_changed_and_gradients_do_not_matter() -> None:
    a, b = picture(16, 16, 3).requires_grad_(), picture(16, 16, 3, seed=1).to(torch.bfloat16)
    before = a.detach().clone(), b.clone()
    assert isinstance(psnr(a, b), float)
    assert isinstance(ssim(a, b), float)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
