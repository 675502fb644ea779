"""What families of one shape share: how their blocks hand streams on. A file in `models` says the rest of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .types import Architecture, Slot


class OneStream(Architecture):
    """Every block hands on the image alone; the text passes by, looked at but unchanged."""

    def image(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["img"]

    def text(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["img"][:, :0]  # no block changes the text

    def unchanged(self, args: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
        return {"img": args["img"]}

    def replaced(
        self, args: Mapping[str, Any], slot: Slot, text: int, target: Tensor, txt: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"img": target_replaced(args["img"], target)}


class TwoStreams(Architecture):
    """Every block hands on image and text, each by itself."""

    def image(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["img"]

    def text(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        return out["txt"]

    def unchanged(self, args: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
        return {"img": args["img"], "txt": args["txt"]}

    def replaced(
        self, args: Mapping[str, Any], slot: Slot, text: int, target: Tensor, txt: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"img": target_replaced(args["img"], target), "txt": args["txt"] if txt is None else txt}


def target_replaced(img: Tensor, target: Tensor) -> Tensor:
    """b n d with the target's tokens, which come first, in the place of those that are there."""
    return torch.cat((target, img[:, target.shape[1] :]), dim=1)
