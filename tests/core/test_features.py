"""The network that judges pictures: a picture that is further from another looks further away to it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.host.provision import SetupError
from bench.lab.looks import flip
from bench.train.features import Judge
from bench.train.files import FEATURES, folder_of


@pytest.fixture(scope="module")
def judge() -> Judge:
    try:
        return Judge.from_file(next(folder_of(FEATURES).iterdir()))
    except SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """A disc and stripes on a gradient, 1 3 192 192."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 192), torch.linspace(-1, 1, 192), indexing="ij")
    disc, stripes = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.25).float(), (torch.sin(40 * x) > 0).float() * (y > 0.4)
    planes = torch.stack([(x + 1) / 2, 0.2 + 0.6 * disc, (y + 1) / 2])
    return (planes * (1 - 0.5 * stripes))[None].clamp(0, 1)


def blurred(picture: Tensor, much: float) -> Tensor:
    reach = torch.arange(-12, 13.0)
    bell = torch.exp(-(reach**2) / (2 * much**2))
    bell = (bell / bell.sum()).repeat(3, 1, 1, 1)
    wide = F.conv2d(F.pad(picture, (12, 12, 12, 12), mode="reflect"), bell, groups=3)
    return F.conv2d(wide, bell.transpose(2, 3), groups=3)


def noisy(picture: Tensor, much: float) -> Tensor:
    return (picture + much * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def shifted(picture: Tensor, much: float) -> Tensor:
    return picture.roll(int(much), dims=3)


def packed(picture: Tensor, much: float) -> Tensor:
    file = io.BytesIO()
    Image.fromarray((picture[0].movedim(0, -1) * 255).round().byte().numpy()).save(
        file, "jpeg", quality=int(100 - much)
    )
    return torch.from_numpy(np.array(Image.open(file))).float().movedim(-1, 0)[None] / 255


SPOILED = pytest.mark.parametrize(
    ("spoiled", "amounts"),
    [(blurred, (0.5, 1, 2, 4)), (noisy, (0.01, 0.03, 0.1, 0.3)), (shifted, (1, 2, 5, 12)), (packed, (5, 30, 70, 95))],
)


@SPOILED
def test_more_spoiled_looks_further_away(
    judge: Judge, picture: Tensor, spoiled: Callable[[Tensor, float], Tensor], amounts: tuple[float, ...]
) -> None:
    found = [judge.distance(spoiled(picture, much), picture) for much in amounts]
    assert found == sorted(found) and found[0] > 0 and found[-1] > 2 * found[0]


@SPOILED
def test_flip_rises_with_it(
    picture: Tensor, spoiled: Callable[[Tensor, float], Tensor], amounts: tuple[float, ...]
) -> None:
    pytest.importorskip("flip_evaluator")
    whole = picture.movedim(1, -1)
    found = [flip(spoiled(picture, much).movedim(1, -1), whole) for much in amounts]
    assert found == sorted(found) and 0 < found[0] and 2 * found[0] < found[-1] <= 1
    assert flip(whole, whole) == 0


def test_a_picture_is_nowhere_from_itself_and_as_far_there_as_back(judge: Judge, picture: Tensor) -> None:
    other = noisy(picture, 0.1)
    assert judge.distance(picture, picture) == 0
    assert judge.distance(picture, other) == pytest.approx(judge.distance(other, picture))
