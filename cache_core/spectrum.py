"""Radial low-pass on the real token grid: 2-D (or 3-D) orthonormal DCT-II and FFT, any size and aspect ratio.

A frequency's radius is measured in normalised frequency, so that a non-square grid has round bands: for the DCT
r² = sum (i / size)² over the axes, for the FFT the same with |cycles| per sample; 1 is the largest radius of the grid.
On a square grid this is FreqCa's sqrt(i² + j²) <= cutoff · max (arXiv 2510.08669, released code). All arithmetic in
float32.

Only the low band is ever computed: high = input - low, so the two add up to the input whatever the mask.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .types import CacheError, Grid

Transform = Literal["dct", "fft"]


def low_pass(values: Tensor, grid: Grid, transform: Transform, cutoff: float, roll_off: float = 0.0) -> Tensor:
    """The low band of b n d token features on `grid`, as float32 b n d.

    cutoff: radius in (0, 1] up to which a frequency is low. roll_off: 0 is a hard mask; s in (0, 1] lets the gain fall
    as a raised cosine from radius cutoff·(1 - s) to cutoff·(1 + s). Raises `CacheError` if the grid does not hold n
    tokens.
    """
    if math.prod(grid) != values.shape[1]:
        raise CacheError(f"a token grid of {grid} holds {math.prod(grid)} tokens, not the {values.shape[1]} given")
    if not 0 < cutoff <= 1:
        raise CacheError(f"cutoff is {cutoff}; use a number above 0 and up to 1")
    planes = values.float().unflatten(1, grid)  # b (h w) d -> b h w d
    low = _low_dct(planes, grid, cutoff, roll_off) if transform == "dct" else _low_fft(planes, grid, cutoff, roll_off)
    return low.flatten(1, len(grid))


def content(values: Tensor, grid: Grid, sigma: Tensor) -> Tensor:
    """What of b n d token features is picture rather than noise at this noise level (0-dim): SeaCache (2602.18993).

    The Wiener filter of a flow model's mix a·x + b·noise with a = 1 - sigma, b = sigma, where natural pictures have the
    power spectrum S = f^-k, f in cycles a token, k the number of axes (2 for pictures, 3 for video); the zero frequency
    counts as the lowest one. G = a·S / (a²·S + b²), divided by its mean over the grid. float32 b n d.
    """
    dims = tuple(range(1, len(grid) + 1))
    axes = [torch.fft.fftfreq(size, device=values.device) for size in grid]
    largest = math.sqrt(sum((size // 2 / size) ** 2 for size in grid))
    frequency = radii(axes, 1.0).clamp(min=1 / max(grid) if largest else 1.0)
    spectrum, a, b = frequency ** -len(grid), 1 - sigma.float(), sigma.float()
    filtered = a * spectrum / (a.square() * spectrum + b.square())
    filtered = torch.where(a > 0, filtered / filtered.mean(), torch.ones_like(filtered))  # pure noise: all alike
    planes = torch.fft.fftn(values.float().unflatten(1, grid), dim=dims)
    return torch.fft.ifftn(planes * filtered[..., None], dim=dims).real.flatten(1, len(grid))


class Rings:
    """Radial bands of a token grid in the DCT domain: band b holds radii from edges[b - 1] up to edges[b] of the
    largest. Without a grid or edges there is one band, and coefficients are the values themselves.
    """

    def __init__(self, grid: Grid | None, edges: tuple[float, ...], device: torch.device) -> None:
        self.grid = grid if edges else None
        self.bands = len(edges) + 1 if self.grid else 1
        self.matrices: list[Tensor] = []
        if self.grid:
            self.matrices = [dct_matrix(size, device) for size in self.grid]
            axes = [torch.arange(size, device=device, dtype=torch.float32) / size for size in self.grid]
            radius = radii(axes, largest_radius(self.grid)).flatten()
            above = [(radius > edge * (1 + 1e-6)).long() for edge in edges]  # a tensor of edges would wait for its copy
            band = torch.stack(above).sum(0)
            self.masks = torch.stack([band == i for i in range(self.bands)]).float()  # bands n

    def forward(self, values: Tensor) -> Tensor:
        """b n d in float32 to coefficients b n d; orthonormal, so that inner products stay."""
        return self._along(values.float(), transposed=False)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Back to tokens."""
        return self._along(coefficients, transposed=True)

    def dots(self, one: Tensor, other: Tensor) -> Tensor:
        """Inner products of coefficients, for each row and band: b bands."""
        products = (one * other).sum(-1)  # b n
        return products.sum(1, keepdim=True) if self.grid is None else products @ self.masks.T

    def scaled(self, coefficients: Tensor, gains: Tensor) -> Tensor:
        """Each band times its gain (b bands)."""
        return coefficients * (gains if self.grid is None else gains @ self.masks)[..., None]

    def _along(self, values: Tensor, transposed: bool) -> Tensor:
        if self.grid is None:
            return values
        return along(values.unflatten(1, self.grid), self.matrices, transposed).flatten(1, len(self.grid))


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II as a matrix: row i is frequency i (size size)."""
    frequency = torch.arange(size, device=device, dtype=torch.float32)[:, None]
    place = torch.arange(size, device=device, dtype=torch.float32)[None, :]
    rows = torch.cos(math.pi / size * (place + 0.5) * frequency) * math.sqrt(2.0 / size)
    rows[0] = math.sqrt(1.0 / size)
    return rows


def along(planes: Tensor, matrices: list[Tensor], transposed: bool = False) -> Tensor:
    """One matrix for each axis of b (grid) d, applied or, transposed, applied backwards."""
    for axis, matrix in enumerate(matrices, start=1):
        planes = torch.tensordot(matrix, planes, dims=([0 if transposed else 1], [axis])).movedim(0, axis)
    return planes


def largest_radius(grid: Grid) -> float:
    """The DCT's largest radius on this grid, in normalised frequency."""
    return math.sqrt(sum(((size - 1) / size) ** 2 for size in grid))


def radii(axes: list[Tensor], largest: float) -> Tensor:
    """Radius of every combination of the axes' normalised frequencies, relative to the whole grid's largest."""
    squares = torch.zeros([], device=axes[0].device)
    for i, axis in enumerate(axes):
        squares = squares + axis.square().reshape([-1 if j == i else 1 for j in range(len(axes))])
    return squares.sqrt() / (largest or 1.0)


def gain(radius: Tensor, cutoff: float, roll_off: float) -> Tensor:
    """The low band's gain at each radius: 1 inside, 0 outside, a raised cosine between."""
    if roll_off * cutoff < 1e-6:  # narrower than float32 can tell
        return (radius <= cutoff * (1 + 1e-6)).float()
    start, stop = cutoff * (1 - roll_off), cutoff * (1 + roll_off)
    phase = ((radius - start) / (stop - start)).clamp(0, 1)
    return 0.5 * (1 + torch.cos(math.pi * phase))


def _low_dct(planes: Tensor, grid: Grid, cutoff: float, roll_off: float) -> Tensor:
    """Only the rows of the DCT that the mask can let through are ever multiplied: a small low band costs little."""
    largest = largest_radius(grid)
    reach = cutoff * (1 + roll_off) * (1 + 1e-6) * largest
    matrices, axes = [], []
    for size in grid:
        kept = min(size, int(reach * size) + 1)
        matrices.append(dct_matrix(size, planes.device)[:kept])
        axes.append(torch.arange(kept, device=planes.device, dtype=torch.float32) / size)
    mask = gain(radii(axes, largest), cutoff, roll_off)
    return along(along(planes, matrices) * mask[..., None], matrices, transposed=True)


def _low_fft(planes: Tensor, grid: Grid, cutoff: float, roll_off: float) -> Tensor:
    dims = tuple(range(1, len(grid) + 1))
    spectrum = torch.fft.rfftn(planes, dim=dims)
    axes = [torch.fft.fftfreq(size, device=planes.device).abs() for size in grid[:-1]]
    axes.append(torch.fft.rfftfreq(grid[-1], device=planes.device))
    largest = math.sqrt(sum((size // 2 / size) ** 2 for size in grid))
    mask = gain(radii(axes, largest), cutoff, roll_off)
    return torch.fft.irfftn(spectrum * mask[..., None], s=grid, dim=dims)
