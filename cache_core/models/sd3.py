"""Stable Diffusion 3 and 3.5: joint blocks on two streams.

Stability AI, https://github.com/Stability-AI/sd3.5; in ComfyUI `comfy/ldm/modules/diffusionmodules/mmdit.py`, class
`MMDiT`. Only the image stream reaches the final layer, and the last block returns no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..coefficients import Calibration, unfitted
from ..streams import TwoStreams
from ..types import Grid, Slot, Streams

BLOCK = "double_block"
PATCH = 2  # latent pixels along each side of a token; odd sizes are padded


class SD3(TwoStreams):
    """See the module docstring."""

    name = "SD3"

    def matches(self, model: object) -> bool:
        named = any(base.__name__ == "MMDiT" for base in type(model).__mro__)
        blocks: Any = getattr(model, "joint_blocks", ())
        return named and len(blocks) > 0 and _described(blocks[0])

    def slots(self, model: Any) -> tuple[Slot, ...]:
        return tuple((BLOCK, i) for i in range(len(model.joint_blocks)))

    def enter(self, args: Mapping[str, Any]) -> Streams:
        return Streams(args["img"], args["txt"], args["vec"], args["img"].shape[1])  # b n d, b m d, b d

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        block = model.joint_blocks[0].x_block
        shift, scale = block.adaLN_modulation(vec)[:, None, : 2 * img.shape[-1]].chunk(2, dim=-1)  # b 1 d
        return torch.addcmul(shift, block.norm1(img), 1 + scale)

    def grid(self, latent: tuple[int, ...]) -> Grid:
        return tuple(-(-size // PATCH) for size in latent[2:])

    def text(self, out: Mapping[str, Tensor | None], slot: Slot, text: int) -> Tensor:
        txt, img = out["txt"], out["img"]
        assert img is not None
        return img.new_zeros(1).expand(img.shape[0], text, img.shape[-1]) if txt is None else txt  # nobody reads it

    def calibration(self, references: bool) -> Calibration:
        return unfitted(self.name)


def _described(block: Any) -> bool:
    stream = getattr(getattr(block, "_orig_mod", block), "x_block", None)  # blocks may be compiled singly
    return all(hasattr(stream, part) for part in ("adaLN_modulation", "norm1"))


ARCHITECTURE = SD3()
