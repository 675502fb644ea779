"""Qwen-Image, Qwen-Image-Edit (2509, 2511) and Qwen-Image-Layered: double-stream blocks only.

Qwen team, https://github.com/QwenLM/Qwen-Image; in ComfyUI `comfy/ldm/qwen_image/model.py`, class
`QwenImageTransformer2DModel`. Only the image stream reaches the final layer. Reference tokens follow the target's;
under the "index_timestep_zero" method (Edit 2511) they are modulated for t = 0. The text mask and the place where
references begin reach a block through its closure alone: computed blocks must be called as the host would call them.

Relatives that keep the class name but not its blocks (Nunchaku) or its prefix (a cache of their own, single-stream
blocks) are not described here: the whole model call is skipped for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..coefficients import IDENTITY, Calibration
from ..streams import TwoStreams
from ..types import ATTENTION, Grid, Part, Slot, Streams, Whole

BLOCK = "double_block"
PATCH = 2  # latent pixels along each side of a token; odd sizes are padded
CALIBRATION = replace(
    IDENTITY,
    name="Qwen-Image",
    source="no published fit: raw relative L1 over the target's tokens; the unit has not been measured on trained "
    "weights",
)


class QwenImage(TwoStreams):
    """See the module docstring."""

    name = "Qwen-Image"

    def matches(self, model: object) -> bool:
        named = any(base.__name__ == "QwenImageTransformer2DModel" for base in type(model).__mro__)
        blocks: Any = getattr(model, "transformer_blocks", ())
        kinds = {type(getattr(block, "_orig_mod", block)).__name__ for block in blocks}  # blocks may be compiled singly
        parts = ("img_mod", "img_norm1")
        return named and kinds == {"QwenImageTransformerBlock"} and all(hasattr(blocks[0], part) for part in parts)

    def slots(self, model: Any) -> tuple[Slot, ...]:
        return tuple((BLOCK, i) for i in range(len(model.transformer_blocks)))

    def enter(self, args: Mapping[str, Any]) -> Streams:
        img = args["img"]  # b n d
        references = sum(args["transformer_options"].get("reference_image_num_tokens", ()))
        vec = args["vec"][: img.shape[0]]  # b d; rows behind are the references' own, for t = 0
        return Streams(img, args["txt"], vec, img.shape[1] - references)

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        block = model.transformer_blocks[0]
        shift, scale = block.img_mod(vec)[:, None].chunk(6, dim=-1)[:2]  # b 1 d
        return torch.addcmul(shift, block.img_norm1(img), 1 + scale)

    def grid(self, latent: tuple[int, ...]) -> Grid:
        frames, *sides = latent[2:]  # more than one frame: the layers of Qwen-Image-Layered
        return (frames, *(-(-size // PATCH) for size in sides))

    def parts(self, model: Any, slot: Slot, kind: str) -> tuple[Part, ...]:
        block = model.transformer_blocks[slot[1]]
        if kind == ATTENTION.kind:
            return (Whole(block.attn, ("img", "txt"), block.dim),)
        return (Whole(block.img_mlp, ("img",)), Whole(block.txt_mlp, ("txt",)))

    def calibration(self, references: bool) -> Calibration:
        return CALIBRATION


ARCHITECTURE = QwenImage()
