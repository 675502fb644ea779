"""How far a picture is from another: PSNR and SSIM, in float64.

SSIM: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
TIP 2004, https://doi.org/10.1109/TIP.2003.819861: Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03.

Rule: PSNR = 10 log10(peak^2 / mean (a - b)^2) over everything given; SSIM is the mean over the places where the whole
window fits, then over channels and pictures.

Differs from the original: each colour channel is compared, where the paper compares grey. Differs from published tables
of cached diffusion: 8-bit pictures are converted before they are subtracted. In uint8 the difference wraps, and no pair
scores below about 28 dB (cache-dit, FreqCa and their relatives).
"""

import math

import torch
import torch.nn.functional as F

WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of one shape; inf if they are equal."""
    a, b = _pair("psnr", a, b, peak)
    error = (a - b).square().mean().item()
    return math.inf if error == 0.0 else 20.0 * math.log10(peak) - 10.0 * math.log10(error)


def ssim(a: torch.Tensor, b: torch.Tensor, peak: float = 1.0) -> float:
    """Structural similarity of pictures b h w c or h w c, 1 if they are equal.

    Latents are b c h w: pass `latent.movedim(1, -1)` and their range as the peak.
    """
    a, b = _pair("ssim", a, b, peak)
    if a.ndim not in (3, 4) or min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"ssim: needs b h w c or h w c with h and w of at least {WINDOW}, got {tuple(a.shape)}")
    pictures = zip(*(x.reshape(-1, *x.shape[-3:]) for x in (a, b)), strict=True)
    values = [_ssim(x, y, peak) for x, y in pictures]  # one at a time: a video would need gigabytes
    return math.fsum(values) / len(values)


def _ssim(a: torch.Tensor, b: torch.Tensor, peak: float) -> float:
    """h w c."""
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean().item()


def _blur(picture: torch.Tensor) -> torch.Tensor:
    """Gaussian window where it fits: h w c -> c 1 h-10 w-10."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA).square())
    window /= window.sum()
    planes = picture.movedim(-1, 0)[:, None]
    return F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _pair(name: str, a: torch.Tensor, b: torch.Tensor, peak: float) -> tuple[torch.Tensor, torch.Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"{name}: the two must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.numel() == 0:
        raise ValueError(f"{name}: nothing to compare, the shape is {tuple(a.shape)}")
    if not 0.0 < peak < math.inf:
        raise ValueError(f"{name}: peak must be positive and finite, got {peak}")
    return _as_float64(name, a, peak), _as_float64(name, b, peak)


def _as_float64(name: str, tensor: torch.Tensor, peak: float) -> torch.Tensor:
    """On the host: MPS has no float64."""
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(f"{name}: needs floats from 0 to peak or uint8, got {tensor.dtype}")
    on_host = tensor.detach().cpu().to(torch.float64)
    return on_host / 255.0 * peak if tensor.dtype == torch.uint8 else on_host
