"""HunyuanVideo: FLUX's blocks on the tokens of a video.

Tencent, https://github.com/Tencent-Hunyuan/HunyuanVideo; in ComfyUI `comfy/ldm/hunyuan_video/model.py`, class
`HunyuanVideo`. Where a first frame is given as it is, the modulation vector has a row for it and one for all others. A
reference latent comes before the target, which the trunk cannot tell apart: the whole model call is skipped then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..coefficients import TEACACHE, Calibration
from ..types import Streams
from .flux import Flux


class HunyuanVideo(Flux):
    """See the module docstring."""

    name = "HunyuanVideo"
    signal_over_references = False
    patch: tuple[int, ...] = (1, 2, 2)

    def matches(self, model: object) -> bool:
        blocks: Any = getattr(model, "double_blocks", ())
        return (
            type(model).__name__ == "HunyuanVideo"
            and tuple(getattr(model, "patch_size", ())) == self.patch
            and len(blocks) > 0
            and len(getattr(model, "single_blocks", ())) > 0
            and all(hasattr(blocks[0], part) for part in ("img_mod", "img_norm1"))
        )

    def enter(self, args: Mapping[str, Any]) -> Streams:
        vec = args["vec"]  # b d, or b 2 d with the first frame's row before
        return replace(super().enter(args), vec=vec if vec.ndim == 2 else vec[:, -1])

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        block = model.double_blocks[0]
        mod, _ = block.img_mod(vec)  # scale, shift: b 1 d
        return torch.addcmul(mod.shift, block.img_norm1(img), 1 + mod.scale)

    def calibration(self, references: bool) -> Calibration:
        return TEACACHE["hunyuan_video"]


ARCHITECTURE = HunyuanVideo()
