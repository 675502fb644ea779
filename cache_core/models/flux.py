"""FLUX.1 (dev, schnell, Fill, Kontext): double-stream blocks, then single-stream blocks on text and image joined.

Black Forest Labs, `src/flux/model.py`; in ComfyUI `comfy/ldm/flux/model.py`, class `Flux`. Text comes first in the
joined sequence; reference tokens (Kontext) follow the target's. FLUX.2 shares the class but modulates globally (its
blocks have no modulation of their own): see `flux2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..coefficients import TEACACHE, Calibration
from ..types import ATTENTION, Architecture, Fused, Grid, Part, Slot, Split, Streams, Whole

DOUBLE, SINGLE = "double_block", "single_block"


class Flux(Architecture):
    """See the module docstring."""

    name = "FLUX.1"
    signal_over_references = True  # Kontext's fit
    patch: tuple[int, ...] = (2, 2)
    """Latent pixels along each side of a token (frames first); odd sizes are padded."""

    def matches(self, model: object) -> bool:
        named = any(base.__name__ == "Flux" for base in type(model).__mro__)
        blocks: Any = getattr(model, "double_blocks", ())
        parts = ("img_mod", "img_norm1")
        return (
            named and hasattr(model, "single_blocks") and len(blocks) > 0 and all(hasattr(blocks[0], p) for p in parts)
        )

    def slots(self, model: Any) -> tuple[Slot, ...]:
        doubles = ((DOUBLE, i) for i in range(len(model.double_blocks)))
        singles = ((SINGLE, i) for i in range(len(model.single_blocks)))
        return (*doubles, *singles)

    def enter(self, args: Mapping[str, Any]) -> Streams:
        img = args["img"]  # b n d
        references = sum(args["transformer_options"].get("reference_image_num_tokens", ()))
        return Streams(img, args["txt"], args["vec"], img.shape[1] - references)

    def modulated(self, model: Any, img: Tensor, vec: Tensor) -> Tensor:
        block = model.double_blocks[0]
        mod, _ = block.img_mod(vec)  # scale, shift: b 1 d
        return torch.addcmul(mod.shift, block.img_norm1(img), 1 + mod.scale)

    def grid(self, latent: tuple[int, ...]) -> Grid:
        return tuple(-(-size // patch) for size, patch in zip(latent[2:], self.patch, strict=True))

    def image(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["img"] if slot[0] == DOUBLE else out["img"][:, text:]

    def text(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["txt"] if slot[0] == DOUBLE else out["img"][:, :text]

    def unchanged(self, args: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
        return {"img": args["img"], "txt": args["txt"]} if slot[0] == DOUBLE else {"img": args["img"]}

    def replaced(
        self, args: Mapping[str, Any], slot: Slot, text: int, target: Tensor, txt: Tensor | None = None
    ) -> dict[str, Tensor]:
        tokens, double = args["img"], slot[0] == DOUBLE
        before = 0 if double else text
        parts = (tokens[:, :before] if double or txt is None else txt, target, tokens[:, before + target.shape[1] :])
        out = {**self.unchanged(args, slot), "img": torch.cat(parts, dim=1)}
        return {**out, "txt": txt} if double and txt is not None else out

    def parts(self, model: Any, slot: Slot, kind: str) -> tuple[Part, ...]:
        if slot[0] == SINGLE:
            block = model.single_blocks[slot[1]]
            act = None if getattr(block, "yak_mlp", False) else block.mlp_act
            return (Fused(block.linear1, block.linear2, block.hidden_size, act),)
        block = model.double_blocks[slot[1]]
        if kind == ATTENTION.kind:
            sides = (block.img_attn, block.txt_attn)
            enters, leaves = tuple(side.qkv for side in sides), tuple(side.proj for side in sides)
            return (Split(enters, leaves, ("img", "txt"), block.hidden_size),)
        return (Whole(block.img_mlp, ("img",)), Whole(block.txt_mlp, ("txt",)))

    def calibration(self, references: bool) -> Calibration:
        return TEACACHE["flux_kontext" if references else "flux"]


ARCHITECTURE = Flux()
