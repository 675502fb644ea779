"""LTX-Video: blocks on one stream, which look at the text by a cross attention. (LTX-2, audio with video: not here.)

Lightricks, https://github.com/Lightricks/LTX-Video; in ComfyUI `comfy/ldm/lightricks/model.py`, class `LTXVModel`. A
token is one latent pixel of one frame. The text passes by the blocks unchanged. The modulation has one row of six for
all tokens, or one for each token where frames are given. Where tokens of given frames are left out or added, the target
cannot be told apart: the whole model call is skipped then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..coefficients import TEACACHE, Calibration
from ..streams import OneStream
from ..types import Grid, Slot, Streams

BLOCK = "double_block"


class LTXV(OneStream):
    """See the module docstring."""

    name = "LTX-Video"

    def matches(self, model: object) -> bool:
        blocks: Any = getattr(model, "transformer_blocks", ())
        return type(model).__name__ == "LTXVModel" and len(blocks) > 0 and hasattr(blocks[0], "scale_shift_table")

    def slots(self, model: Any) -> tuple[Slot, ...]:
        return tuple((BLOCK, i) for i in range(len(model.transformer_blocks)))

    def enter(self, args: Mapping[str, Any]) -> Streams:
        return Streams(args["img"], args["txt"], args["vec"], args["img"].shape[1])  # b n d, b m d, b (1 or n) (6 d)

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        table = model.transformer_blocks[0].scale_shift_table[:2].to(img)  # 2 d
        rows = vec.unflatten(-1, (-1, img.shape[-1]))[:, :, :2]  # b (1 or n) 2 d
        shift, scale = (table + rows).unbind(2)
        normed = torch.nn.functional.rms_norm(img, img.shape[-1:], eps=1e-6)
        return torch.addcmul(shift, normed, 1 + scale)

    def grid(self, latent: tuple[int, ...]) -> Grid:
        return tuple(latent[2:])

    def calibration(self, references: bool) -> Calibration:
        return TEACACHE["ltx_video"]


ARCHITECTURE = LTXV()
