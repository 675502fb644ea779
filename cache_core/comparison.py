"""Two pictures of one prompt, one computed in full and one with a cache: how far apart, where, and shown.

Rule: figures are taken picture by picture with `metrics`; a heat map is |a - b|, of the channel that differs most,
times a gain that is the same for the whole batch and is told, so that one map compares with the next.

The colours are our own, from black over blue, red and orange to white. Their lightness rises all the way, so that the
map can be read without telling colours apart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .metrics import WINDOW, psnr, ssim
from .types import CacheError

COLOURS = ((0.0, 0.0, 0.0), (0.16, 0.11, 0.42), (0.72, 0.15, 0.33), (0.98, 0.6, 0.12), (1.0, 1.0, 0.92))
GRAIN = 8 / 255
"""The heat map is never stretched beyond this difference: rounding must not look like a fault."""
GAP = 8
"""Pixels between two pictures that stand side by side."""
VISIBLE = 8 / 255
"""What counts as a changed pixel in the report: about what a careful eye sees in a flat area."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One picture against its original. `at` is x, y of the largest difference; `ssim` is None for tiny pictures."""

    psnr: float
    ssim: float | None
    largest: float
    at: tuple[int, int]
    changed: float


def pair(full: torch.Tensor, cached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as b h w 3 on the host; one picture beside many stands for each of them. Raises `CacheError`."""
    for name, pictures in (("full", full), ("cached", cached)):
        if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3, 4) or 0 in pictures.shape:
            raise CacheError(f"{name} has the shape {tuple(pictures.shape)}; connect pictures (b h w c)")
    if full.shape[1:3] != cached.shape[1:3]:
        sizes = " and ".join(
            f"{name} is {x.shape[2]} x {x.shape[1]}" for name, x in (("full", full), ("cached", cached))
        )
        raise CacheError(f"{sizes} pixels; compare two runs of one size, or scale one of the two first")
    count, other = len(full), len(cached)
    if count != other and 1 not in (count, other):
        raise CacheError(
            f"full holds {count} pictures and cached {other}; use the same batch size for both, or a single picture "
            "for one of them"
        )
    most = max(count, other)
    return _colours(full).expand(most, -1, -1, -1), _colours(cached).expand(most, -1, -1, -1)


def _colours(pictures: torch.Tensor) -> torch.Tensor:
    """b h w c -> b h w 3: transparency is left out, grey becomes a colour, and what is no number is black."""
    on_host = pictures.detach().cpu().float()[..., :3].nan_to_num(0.0, 1.0, 0.0)
    return on_host.expand(*on_host.shape[:3], 3)


def differences(full: torch.Tensor, cached: torch.Tensor) -> list[Difference]:
    """One entry a picture; both b h w 3, as `pair` gives them."""
    return [_difference(a, b) for a, b in zip(full, cached, strict=True)]


def _difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """h w 3."""
    height, width = a.shape[:2]
    error = (a - b).abs().amax(-1)  # h w
    worst = int(error.argmax())
    similar = ssim(a, b) if min(height, width) >= WINDOW else None
    changed = (error > VISIBLE).float().mean().item()
    return Difference(psnr(a, b), similar, error.max().item(), (worst % width, worst // width), changed)


def gain(full: torch.Tensor, cached: torch.Tensor) -> float:
    """What the heat map multiplies differences with: the largest one becomes white."""
    return 1.0 / max((full - cached).abs().max().item(), GRAIN)


def heat_map(full: torch.Tensor, cached: torch.Tensor) -> torch.Tensor:
    """b h w 3 -> b h w 3: black where the two are equal, white where they differ most."""
    level = (full - cached).abs().amax(-1) * gain(full, cached)  # b h w, 0 to 1
    colours = torch.tensor(COLOURS)
    place = level.clamp(0, 1) * (len(COLOURS) - 1)
    below = place.floor().long().clamp(max=len(COLOURS) - 2)
    share = (place - below)[..., None]
    return colours[below] * (1 - share) + colours[below + 1] * share


def side_by_side(full: torch.Tensor, cached: torch.Tensor) -> torch.Tensor:
    """b h w 3 -> b h (2 w + gap) 3: the full picture at the left, the cached one at the right."""
    gap = torch.full((*full.shape[:2], GAP, 3), 0.5)
    return torch.cat((full, gap, cached), dim=2)


def report(found: Sequence[Difference], scale: float) -> str:
    """The figures in words: one line for all, then one for each picture where there are many."""
    lines = [_summary(found)]
    if len(found) > 1 and any(one.largest for one in found):
        lines += [f"Picture {i}: {_line(one)}" for i, one in enumerate(found, 1)]
    if any(one.largest for one in found):
        lines.append(f"Heat map: white is a difference of {1 / scale:.3f} or more, on a scale from 0 to 1.")
    return "\n".join(lines)


def _summary(found: Sequence[Difference]) -> str:
    if not any(one.largest for one in found):
        return f"{'The pictures' if len(found) == 1 else f'All {len(found)} pairs'} are exactly the same."
    if len(found) == 1:
        return _line(found[0])
    known = [one.ssim for one in found if one.ssim is not None]
    parts = [f"{len(found)} pictures", f"mean PSNR {_decibels(_mean_psnr(found))}"]
    parts += [f"mean SSIM {statistics.fmean(known):.4f}"] if known else []
    return " · ".join(parts)


def _mean_psnr(found: Sequence[Difference]) -> float:
    """Mean of the pictures that differ: equal ones are infinitely close."""
    return statistics.fmean(one.psnr for one in found if math.isfinite(one.psnr))


def _line(one: Difference) -> str:
    if not one.largest:
        return "exactly the same"
    parts = [f"PSNR {_decibels(one.psnr)}"]
    parts += [f"SSIM {one.ssim:.4f}"] if one.ssim is not None else []
    parts.append(f"largest difference {one.largest:.3f} at x {one.at[0]}, y {one.at[1]}")
    parts.append(f"{100 * one.changed:.1f} % of the pixels changed visibly")
    return " · ".join(parts)


def _decibels(value: float) -> str:
    return f"{value:.1f} dB"
