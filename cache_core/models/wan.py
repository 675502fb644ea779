"""Wan 2.1 and 2.2, text or image to video: blocks on one stream, which looks at the text by a cross attention.

Wan team, https://github.com/Wan-Video/Wan2.1; in ComfyUI `comfy/ldm/wan/model.py`, class `WanModel`. The text passes by
the blocks unchanged, so that nothing of it is stored. Where each frame has a noise level of its own (Wan 2.2 5B), the
modulation vector has as many rows of six as there are frames. References in context follow the target's tokens.

Relatives with something between the blocks or before the target are not described here (VACE, Camera, S2V, HuMo,
Animate, SCAIL, models with a reference convolution): the whole model call is skipped for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..coefficients import IDENTITY, Calibration
from ..streams import OneStream
from ..types import ATTENTION, CROSS, Grid, Part, Slot, Streams, Whole

BLOCK = "double_block"
PATCH = (1, 2, 2)  # latent frames and pixels along each side of a token; odd sizes are padded
CALIBRATION = replace(
    IDENTITY,
    name="Wan",
    source="the published fits are over the timestep embedding, not over the modulated input; the unit has not been "
    "measured on trained weights",
)


class Wan(OneStream):
    """See the module docstring."""

    name = "Wan"

    def matches(self, model: object) -> bool:
        blocks: Any = getattr(model, "blocks", ())
        kinds = {type(getattr(block, "_orig_mod", block)).__name__ for block in blocks}
        parts = ("modulation", "norm1", "self_attn", "cross_attn", "ffn")
        return (
            type(model).__name__ == "WanModel"
            and getattr(model, "ref_conv", None) is None
            and kinds == {"WanAttentionBlock"}
            and all(hasattr(blocks[0], part) for part in parts)
        )

    def slots(self, model: Any) -> tuple[Slot, ...]:
        return tuple((BLOCK, i) for i in range(len(model.blocks)))

    def enter(self, args: Mapping[str, Any]) -> Streams:
        targets = math.prod(args["transformer_options"]["grid_sizes"])
        return Streams(args["img"], args["txt"], args["vec"], targets)  # b n d, b m d, b frames 6 d

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        block = model.blocks[0]
        six = block.modulation.to(img)[None] + vec
        shift, scale = (_over(each, img.shape[1]) for each in six.unbind(2)[:2])
        return torch.addcmul(shift, block.norm1(img), 1 + scale)

    def grid(self, latent: tuple[int, ...]) -> Grid:
        return tuple(-(-size // patch) for size, patch in zip(latent[2:], PATCH, strict=True))

    def parts(self, model: Any, slot: Slot, kind: str) -> tuple[Part, ...]:
        block = model.blocks[slot[1]]
        if kind != ATTENTION.kind:
            return (Whole(block.ffn, ("img",)),)
        cross = block.cross_attn
        keyed = tuple(getattr(cross, name) for name in ("k", "v", "k_img", "v_img") if hasattr(cross, name))
        return (
            Whole(block.self_attn, ("img",), block.dim, over="img"),
            Whole(cross, (CROSS,), block.dim, over="txt", keyed=keyed),
        )

    def calibration(self, references: bool) -> Calibration:
        return CALIBRATION


def _over(rows: Tensor, tokens: int) -> Tensor:
    """b frames d -> b n d (or b 1 d, for all tokens alike): every frame's row for its tokens."""
    frames = rows.shape[1]
    return rows if frames == 1 else rows.repeat_interleave(-(-tokens // frames), dim=1)[:, :tokens]


ARCHITECTURE = Wan()
