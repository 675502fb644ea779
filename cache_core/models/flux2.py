"""FLUX.2 (dev, klein): FLUX's blocks with one modulation for all of them, which comes from outside.

Black Forest Labs, https://github.com/black-forest-labs/flux2; in ComfyUI `comfy/ldm/flux/model.py`, class `Flux` with
`global_modulation`. A token is one latent pixel. Reference tokens follow the target's; under "index_timestep_zero" they
are modulated for t = 0, with a row of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..coefficients import Calibration, unfitted
from ..types import Streams
from .flux import Flux


class Flux2(Flux):
    """See the module docstring."""

    name = "FLUX.2"
    signal_over_references = False
    patch = (1, 1)

    def matches(self, model: object) -> bool:
        named = any(base.__name__ == "Flux" for base in type(model).__mro__)
        return named and hasattr(model, "double_stream_modulation_img") and modulated_from_outside(model)

    def enter(self, args: Mapping[str, Any]) -> Streams:
        first, _ = args["vec"][0]  # of the image: shift, scale, gate, each b 1 d; a second row is the references'
        vec = torch.cat((first.shift[:, 0], first.scale[:, 0]), dim=-1)  # b 2d
        return replace(super().enter(args), vec=vec)

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        shift, scale = vec[:, None].chunk(2, dim=-1)  # b 1 d
        return torch.addcmul(shift, model.double_blocks[0].img_norm1(img), 1 + scale)

    def calibration(self, references: bool) -> Calibration:
        return unfitted(self.name)


def modulated_from_outside(model: object) -> bool:
    """Whether a model has both kinds of FLUX's blocks, without modulations of their own."""
    doubles: Any = getattr(model, "double_blocks", ())
    singles: Any = getattr(model, "single_blocks", ())
    parts = ("img_norm1", "img_attn", "txt_attn", "img_mlp", "txt_mlp")
    return (
        len(doubles) > 0
        and len(singles) > 0
        and all(hasattr(doubles[0], part) for part in parts)
        and not hasattr(doubles[0], "img_mod")
    )


ARCHITECTURE = Flux2()
