"""The architecture files, on stand-in modules with the host's names: which model is whose, and where its tokens are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cache_core import architecture_of
from cache_core.models.qwen_image import QwenImage
from cache_core.types import Architecture

WIDTH = 4


class QwenImageTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.img_norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)


class SingleStreamBlock(QwenImageTransformerBlock):
    pass


class QwenImageTransformer2DModel(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(blocks)


class OtherModel(QwenImageTransformer2DModel):
    pass


class MageFlow(nn.Module):
    """It shares the blocks, not the model's class, and its tokens are single latent pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([QwenImageTransformerBlock()])


@pytest.fixture
def qwen() -> Architecture:
    return QwenImage()


def test_the_model_and_its_subclasses_are_described() -> None:
    for kind in (QwenImageTransformer2DModel, OtherModel):
        found = architecture_of(kind(QwenImageTransformerBlock(), QwenImageTransformerBlock()))
        assert found is not None and found.name == "Qwen-Image"
        assert found.slots(kind(*(QwenImageTransformerBlock() for _ in range(60))))[::59] == (
            ("double_block", 0),
            ("double_block", 59),
        )


def test_relatives_are_not() -> None:
    mixed = QwenImageTransformer2DModel(QwenImageTransformerBlock(), SingleStreamBlock())
    other = QwenImageTransformer2DModel(SingleStreamBlock())
    renamed = QwenImageTransformerBlock()
    del renamed.img_mod
    models = (mixed, other, QwenImageTransformer2DModel(renamed), QwenImageTransformer2DModel(), MageFlow(), object())
    assert [architecture_of(model) for model in models] == [None] * len(models)


def test_the_modulated_input(qwen: Architecture) -> None:
    """norm(x)·(1 + scale) + shift with the first two of the six modulations."""
    torch.manual_seed(0)
    block = QwenImageTransformerBlock()
    img, vec = torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    six = block.img_mod(vec)
    shift, scale = six[:, :WIDTH], six[:, WIDTH : 2 * WIDTH]
    normed = (img - img.mean(-1, keepdim=True)) / (img.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = normed * (1 + scale[:, None]) + shift[:, None]
    assert torch.allclose(qwen.modulated(QwenImageTransformer2DModel(block), img, vec), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("references", [(), (3,), (3, 4)])
def test_the_streams_that_enter(qwen: Architecture, rows: int, references: tuple[int, ...]) -> None:
    """With references at t = 0 the modulation vector has twice the rows: the target's come first."""
    img, txt = torch.randn(2, 9 + sum(references), WIDTH), torch.randn(2, 6, WIDTH)
    vec = torch.arange(rows).float()[:, None].expand(rows, WIDTH)
    options = {"reference_image_num_tokens": list(references)} if references else {}
    streams = qwen.enter({"img": img, "txt": txt, "vec": vec, "transformer_options": options})
    assert streams.img is img and streams.txt is txt
    assert (streams.targets, streams.references) == (9, bool(references))
    assert streams.vec[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("latent", "grid"),
    [
        ((1, 16, 1, 128, 128), (1, 64, 64)),
        ((2, 16, 1, 152, 104), (1, 76, 52)),
        ((1, 16, 1, 13, 17), (1, 7, 9)),
        ((1, 16, 4, 80, 81), (4, 40, 41)),
    ],
)
def test_the_grid(qwen: Architecture, latent: tuple[int, ...], grid: tuple[int, ...]) -> None:
    assert qwen.grid(latent) == grid


def test_what_a_skipped_block_returns(qwen: Architecture) -> None:
    img, txt, target = torch.randn(1, 7, WIDTH), torch.randn(1, 6, WIDTH), torch.randn(1, 4, WIDTH)
    args, slot = {"img": img, "txt": txt}, ("double_block", 59)
    passed = qwen.unchanged(args, slot)
    assert passed["img"] is img and passed["txt"] is txt
    replaced = qwen.replaced(args, slot, 6, target)
    assert torch.equal(replaced["img"], torch.cat((target, img[:, 4:]), dim=1)) and replaced["txt"] is txt
    target += 1  # the host adds a ControlNet's output into what it gets: never into what we hold
    assert not torch.equal(replaced["img"][:, :4], target)
    assert qwen.image(replaced, slot, 6) is replaced["img"]
