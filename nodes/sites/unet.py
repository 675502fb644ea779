"""Site unet: the deep part of a U-Net (SD1.5, SDXL and their kin), between the outermost blocks of both sides.

With `head` = `tail` = b + 1, a skip runs the input blocks 0 .. b and the output blocks that are joined to them; what
enters the first of these output blocks stands in for everything between. Nothing is copied of the host's forward: for
the time of one call the model's own lists are shortened, and one layer that gives the stand-in takes the middle's
place. Computed calls run untouched, and a hook on the last layer before that output block reads what leaves it.

With the lists shortened the host counts its blocks otherwise, and whoever patches blocks would be called for others. So
a model with patches of any kind, with wrappers inside, or compiled is left alone; so is a call with a ControlNet, whose
outputs belong to blocks that would not run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...cache_core.coefficients import IDENTITY
from ...cache_core.track import Track
from ...cache_core.types import UNET, Probe
from .common import Around, Forward, ModelCall, Options, Site, fail_open

CONTROLLED = "ControlNet"


class StandIn(torch.nn.Module):
    """A layer that gives what it was made with, whatever comes in."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value


class UNet(Site):
    """See the module docstring."""

    name = UNET.kind

    def __init__(self, track: Track, around: Around) -> None:
        super().__init__(track, around)
        model, blocks = around.model, len(around.model.input_blocks)
        self.kept = min(around.place.head, blocks)
        before = blocks - self.kept - 1
        self.last = last_layer(model.output_blocks[before] if before >= 0 else model.middle_block)
        self.left_out = 1 - share(model, self.kept)
        self._sizes: dict[torch.Size, torch.Size] = {}

    @staticmethod
    def suits(model: Any) -> bool:
        if type(model).__name__ != "UNetModel":
            return False
        same = len(model.input_blocks) == len(model.output_blocks)
        return same and model.middle_block is not None

    def run(self, call: ModelCall, options: Options, forward: Forward) -> torch.Tensor:
        track, feature = self.track, None
        with fail_open(self.session):
            foreign = foreign_parts(options)
            if foreign:
                track.compute(call.call, "blocks patched")
                self.around.fall_back(f"{foreign} may count on every block of this U-Net")
            elif call.control:
                track.compute(call.call, CONTROLLED)
                self.session.recorder.note("steps with a ControlNet are computed in full: its outputs go to all blocks")
            elif track.enter(call.call, call.facts(*call.x.shape[1:], of=call.x), lambda rows: Probe(), IDENTITY):
                size = self._sizes[call.x.shape[2:]]
                feature = track.predict(call.call, grid=tuple(size)).unflatten(1, size).movedim(-1, 1)
        if feature is not None:
            track.leave_out(call.call, self.left_out)
            return self._shortened(feature, partial(forward, options))
        seen: list[torch.Tensor] = []
        handle = self.last.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            out = forward(options)
        finally:
            handle.remove()
        with fail_open(self.session):
            if track.reached(call.call) and len(seen) == 1:
                entered = seen[0]
                self._sizes[call.x.shape[2:]] = entered.shape[2:]
                track.store(call.call, entered.movedim(1, -1).flatten(1, -2), grid=tuple(entered.shape[2:]))
        return out

    def _shortened(self, feature: torch.Tensor, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The host's own forward over the blocks that are kept; b c h w of the feature that enters the last ones."""
        model, blocks = self.around.model, torch.nn.ModuleList
        whole = {name: getattr(model, name) for name in ("input_blocks", "middle_block", "output_blocks")}
        try:
            model.input_blocks = blocks(list(whole["input_blocks"])[: self.kept])
            model.middle_block = torch.nn.Sequential(StandIn(feature))
            model.output_blocks = blocks(list(whole["output_blocks"])[-self.kept :])
            return forward()
        finally:
            for name, own in whole.items():
                setattr(model, name, own)


def last_layer(block: Any) -> torch.nn.Module:
    """The host runs a block's layers one by one, so that a hook must be on a layer."""
    layers: list[torch.nn.Module] = list(block)
    return layers[-1]


def share(model: Any, kept: int) -> float:
    """The share of the work that runs with so many blocks kept at either end: parameters times positions, which
    quarter at each downsampling. What attention costs beyond its weights is not counted.
    """
    levels, level = [], 0
    for block in model.input_blocks:
        level += any(type(layer).__name__ == "Downsample" for layer in block)
        levels.append(level)
    down = [weight(block) / 4**at for block, at in zip(model.input_blocks, levels, strict=True)]
    up = [weight(block) / 4**at for block, at in zip(model.output_blocks, reversed(levels), strict=True)]
    everything = sum(down) + sum(up) + weight(model.middle_block) / 4**level
    return (sum(down[:kept]) + sum(up[-kept:])) / everything


def weight(block: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters())


def foreign_parts(options: Options) -> str:
    """What others have put inside this call, in words, or an empty string."""
    if any(options.get("patches", {}).values()) or any(options.get("patches_replace", {}).values()):
        return "a patch of another node"
    wrappers = options.get("wrappers", {})
    if any(wrappers.get("diffusion_model", {}).values()):
        return "a wrapper of another node"
    compiled = any("compile" in str(key) for by_key in wrappers.values() for key in by_key)
    return "torch.compile" if compiled else ""
