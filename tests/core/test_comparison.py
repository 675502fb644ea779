"""Comparing two pictures: figures made by hand, the heat map's order, and refusals with the way out."""

from __future__ import annotations

import math

import pytest
import torch

from cache_core.comparison import GAP, GRAIN, differences, gain, heat_map, pair, report, side_by_side
from cache_core.types import CacheError


def pictures(count: int = 1, height: int = 20, width: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, height, width, channels), generator=torch.Generator().manual_seed(seed))


def marked(full: torch.Tensor, picture: int, x: int, y: int, by: float, channel: int = 1) -> torch.Tensor:
    other = full.clone()
    other[picture, y, x, channel] += by
    return other


def test_where_and_how_much() -> None:
    full = torch.full((2, 20, 32, 3), 0.25)
    one, two = differences(*pair(full, marked(full, 1, x=7, y=13, by=0.5)))
    assert (one.psnr, one.ssim, one.largest, one.changed) == (math.inf, 1.0, 0.0, 0.0)
    assert two.largest == 0.5 and two.at == (7, 13)
    assert two.psnr == pytest.approx(-10 * math.log10(0.25 / (20 * 32 * 3)))
    assert two.changed == pytest.approx(1 / 640)
    assert two.ssim is not None and 0 < two.ssim < 1


def test_the_heat_map_is_black_where_equal_and_brighter_where_more_differs() -> None:
    full = torch.zeros(1, 16, 16, 3)
    cached = full.clone()
    levels = torch.linspace(0, 0.5, 16)
    cached[0, :, :, 2] = levels  # by column
    row = heat_map(*pair(full, cached))[0, 3]
    assert row[0].tolist() == [0, 0, 0] and row[-1].tolist() == pytest.approx([1.0, 1.0, 0.92])
    light = row @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((light.diff() > 0).all()), "lightness rises with the difference"


def test_one_gain_for_the_batch_and_rounding_stays_dark() -> None:
    full = torch.zeros(2, 16, 16, 3)
    cached = marked(marked(full, 0, 1, 1, by=0.8), 1, 2, 2, by=0.4)
    bright, dim = heat_map(full, cached).sum((1, 2, 3)).tolist()
    assert gain(full, cached) == pytest.approx(1 / 0.8) and dim < bright
    rounding = marked(full, 0, 1, 1, by=1 / 255)
    assert gain(full, rounding) == pytest.approx(1 / GRAIN)
    assert heat_map(full, rounding).max() < 0.3
    assert heat_map(full, full).max() == 0


def test_side_by_side() -> None:
    a, b = pictures(2), pictures(2, seed=1)
    both = side_by_side(a, b)
    assert both.shape == (2, 20, 64 + GAP, 3)
    assert torch.equal(both[:, :, :32], a) and torch.equal(both[:, :, -32:], b)


def test_one_picture_beside_many_stands_for_each() -> None:
    full, cached = pictures(1), pictures(3, seed=1)
    for a, b in (pair(full, cached), pair(cached, full)):
        assert a.shape == b.shape == (3, 20, 32, 3)
        assert len(differences(a, b)) == 3
    assert differences(*pair(full, cached))[2] == differences(*pair(full, cached[2:]))[0]


def test_grey_and_transparent_pictures_and_what_is_no_number() -> None:
    grey, colour = pictures(channels=1), pictures(channels=4)
    a, b = pair(grey, colour)
    assert torch.equal(a[..., 0], a[..., 2]) and torch.equal(b, colour[..., :3])
    broken = pictures()
    broken[0, 0, 0] = math.nan
    (found,) = differences(*pair(pictures(), broken))
    assert math.isfinite(found.psnr) and found.at == (0, 0)


def test_tiny_pictures_have_no_ssim() -> None:
    (found,) = differences(*pair(pictures(height=10), pictures(height=10, seed=1)))
    assert found.ssim is None and "SSIM" not in report([found], 1.0)


@pytest.mark.parametrize(
    ("full", "cached", "words"),
    [
        (pictures(), pictures(width=64), ["full is 32 x 20", "cached is 64 x 20", "scale"]),
        (pictures(2), pictures(3), ["full holds 2", "cached 3", "same batch size"]),
        (pictures(), torch.rand(20, 32, 3), ["cached", "(20, 32, 3)", "connect pictures"]),
        (torch.rand(0, 20, 32, 3), pictures(), ["full", "(0, 20, 32, 3)"]),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_out(
    full: torch.Tensor, cached: torch.Tensor, words: list[str]
) -> None:
    with pytest.raises(CacheError) as refusal:
        pair(full, cached)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_nothing_given_is_written_to() -> None:
    full, cached = pictures(1), pictures(2, seed=1)
    before = full.clone(), cached.clone()
    a, b = pair(full, cached)
    differences(a, b), heat_map(a, b), side_by_side(a, b)
    assert torch.equal(full, before[0]) and torch.equal(cached, before[1])


def test_the_report() -> None:
    full = torch.full((2, 20, 32, 3), 0.25)
    same = report(differences(full, full), gain(full, full))
    assert same == "All 2 pairs are exactly the same."
    assert report(differences(full[:1], full[:1]), 1.0) == "The pictures are exactly the same."
    cached = marked(full, 1, x=7, y=13, by=0.5)
    lines = report(differences(full, cached), gain(full, cached)).splitlines()
    assert lines[0].startswith("2 pictures · mean PSNR 38.9 dB · mean SSIM 0.9")
    assert lines[1] == "Picture 1: exactly the same"
    assert lines[2].startswith("Picture 2: PSNR 38.9 dB · SSIM 0.")
    assert "largest difference 0.500 at x 7, y 13 · 0.2 % of the pixels" in lines[2]
    assert lines[3] == "Heat map: white is a difference of 0.500 or more, on a scale from 0 to 1."
