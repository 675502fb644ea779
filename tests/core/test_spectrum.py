"""The band split: identities, exactness on plane waves, any grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.backtest import EDGES
from cache_core.spectrum import Rings, dct_matrix, gain, low_pass
from cache_core.types import CacheError, Grid

GRIDS = [(8, 8), (5, 9), (1, 7), (13, 4), (3, 6, 5), (16,), (1, 1)]


def features(grid: tuple[int, ...], width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, math.prod(grid), width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("transform", ["dct", "fft"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_cutoff_of_one_keeps_everything(transform: str, grid: tuple[int, ...]) -> None:
    values = features(grid)
    assert torch.allclose(low_pass(values, grid, transform, 1.0), values, atol=1e-5)


@pytest.mark.parametrize("transform", ["dct", "fft"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cutoff", [0.05, 0.1, 0.3, 0.7])
def test_energies_of_the_bands_add_up_under_a_hard_mask(transform: str, grid: tuple[int, ...], cutoff: float) -> None:
    values = features(grid)
    low = low_pass(values, grid, transform, cutoff)
    high = values - low
    assert torch.allclose(low.square().sum() + high.square().sum(), values.square().sum(), rtol=1e-5)
    assert torch.allclose(low_pass(low, grid, transform, cutoff), low, atol=1e-5)  # a projection
    assert torch.allclose(low_pass(high, grid, transform, cutoff), torch.zeros_like(high), atol=1e-5)


@given(st.integers(2, 9), st.integers(2, 9), st.floats(0.02, 1.0), st.floats(0.0, 1.0), st.sampled_from(["dct", "fft"]))
@settings(max_examples=60, deadline=None)
def test_the_split_is_linear_and_keeps_the_mean(h: int, w: int, cutoff: float, roll_off: float, transform: str) -> None:
    a, b = features((h, w), seed=1), features((h, w), seed=2)
    mixed = low_pass(2 * a - 3 * b, (h, w), transform, cutoff, roll_off)
    apart = 2 * low_pass(a, (h, w), transform, cutoff, roll_off) - 3 * low_pass(b, (h, w), transform, cutoff, roll_off)
    assert torch.allclose(mixed, apart, atol=1e-4)
    if roll_off < 1:
        assert torch.allclose(apart.mean(dim=1), (2 * a - 3 * b).mean(dim=1), atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_the_dct_mask_is_the_literal_one(grid: tuple[int, ...]) -> None:
    """Against the full transform with every coefficient tested by its radius."""
    values = features(grid)
    h, w = grid
    ch, cw = dct_matrix(h, values.device), dct_matrix(w, values.device)
    spectrum = torch.einsum("ih,bhwd,jw->bijd", ch, values.unflatten(1, grid), cw)
    largest = math.hypot((h - 1) / h, (w - 1) / w)
    keep = [[math.hypot(i / h, j / w) <= 0.35 * largest for j in range(w)] for i in range(h)]
    expected = torch.einsum("ih,bijd,jw->bhwd", ch, spectrum * torch.tensor(keep)[..., None], cw).flatten(1, 2)
    assert torch.allclose(low_pass(values, grid, "dct", 0.35), expected, atol=1e-5)


def test_the_dct_matrix_is_orthonormal() -> None:
    matrix = dct_matrix(12, torch.device("cpu"))
    assert torch.allclose(matrix @ matrix.T, torch.eye(12), atol=1e-5)


def test_the_released_share_of_low_coefficients() -> None:
    """64 x 64 at cutoff 0.1: radius 8.91 of 89.1, 1.68 % of the coefficients are low (reference 1.3)."""
    size = 64
    kept = sum(math.hypot(i, j) <= 0.1 * math.hypot(size - 1, size - 1) for i in range(size) for j in range(size))
    assert kept / size**2 == pytest.approx(0.0168, abs=5e-5)
    noise = torch.randn(1, size * size, 64, generator=torch.Generator().manual_seed(0))
    share = low_pass(noise, (size, size), "dct", 0.1).square().sum() / noise.square().sum()
    assert float(share) == pytest.approx(kept / size**2, rel=0.05)


@pytest.mark.parametrize(("cycles", "low"), [((0, 2), True), ((2, 0), True), ((0, 12), False), ((12, 0), False)])
def test_fft_treats_both_directions_alike(cycles: tuple[int, int], low: bool) -> None:
    """The released 1-D transform along flattened tokens let every vertical frequency through."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.cos(2 * math.pi * (cycles[0] * y + cycles[1] * x) / 32).reshape(1, -1, 1)
    kept = low_pass(wave, (32, 32), "fft", 0.2).square().sum() / wave.square().sum()
    assert float(kept) == pytest.approx(1.0 if low else 0.0, abs=1e-4)


def test_a_smooth_mask_falls_from_one_to_zero_around_the_cutoff() -> None:
    radius = torch.linspace(0, 1, 101)
    values = gain(radius, 0.4, 0.5)
    assert values[radius <= 0.2].eq(1).all() and values[radius >= 0.6].abs().max() < 1e-6
    assert float(values[40]) == pytest.approx(0.5, abs=1e-5)
    assert (values.diff() <= 1e-6).all()


def test_a_grid_that_does_not_hold_the_tokens_is_refused() -> None:
    with pytest.raises(CacheError, match=r"a token grid of \(3, 3\) holds 9 tokens, not the 8 given"):
        low_pass(torch.zeros(1, 8, 2), (3, 3), "dct", 0.1)


@pytest.mark.parametrize("cutoff", [0.0, -0.1, 1.01])
def test_a_cutoff_outside_its_range_is_refused(cutoff: float) -> None:
    with pytest.raises(CacheError, match="cutoff is"):
        low_pass(torch.zeros(1, 9, 2), (3, 3), "dct", cutoff)


# rings, as the back-test splits its bands

RINGED: list[Grid | None] = [(3, 4), (1, 12), (12, 1), (13, 9), (2, 3, 4), (6, 6), None]


@pytest.mark.parametrize("grid", RINGED)
@pytest.mark.parametrize("bands", sorted(EDGES))
def test_bands_add_up_and_keep_inner_products(grid: Grid | None, bands: int) -> None:
    tokens = 12 if grid is None else int(torch.tensor(grid).prod())
    one, other = features((tokens,), 5, seed=1), features((tokens,), 5, seed=2)
    rings = Rings(grid, EDGES[bands], torch.device("cpu"))
    assert rings.bands == (1 if grid is None else bands)
    there, back = rings.forward(one), rings.forward(other)
    parts = [rings.inverse(rings.scaled(there, torch.eye(rings.bands)[b].expand(2, -1))) for b in range(rings.bands)]
    assert torch.allclose(torch.stack(parts).sum(0), one, atol=1e-5)
    assert torch.allclose(rings.inverse(there), one, atol=1e-5)
    assert torch.allclose(rings.dots(there, back).sum(-1), (one * other).sum((1, 2)), atol=1e-3)  # Parseval
    assert torch.allclose(
        rings.dots(there, there), torch.stack([part.square().sum((1, 2)) for part in parts], 1), atol=1e-3
    )


def test_bands_are_rings_from_coarse_to_fine() -> None:
    rings = Rings((8, 8), EDGES[3], torch.device("cpu"))
    flat, checkers = torch.ones(1, 64, 1), (torch.arange(64) // 8 + torch.arange(64)).remainder(2).mul(2.0) - 1
    assert rings.dots(*[rings.forward(flat)] * 2)[0].gt(1e-3).tolist() == [True, False, False]
    power = rings.dots(*[rings.forward(checkers.reshape(1, 64, 1))] * 2)[0]
    assert power.argmax() == 2 and power[0] < 0.01 * power.sum()
