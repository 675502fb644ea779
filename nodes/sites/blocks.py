"""Site blocks: every block of a described model by itself, each with a decision of its own behind the one before it.

A block that is skipped runs nothing. Where the feature is "affine", image and text go through it channel by channel, y
= a·x + c, with a and c fitted by least squares to what entered and left it when it was last computed: two vectors a
stream are kept of a block, not its tokens. Else what it has added then is added again. Each decision is a
device-to-host read, since what enters a block is known only behind the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...cache_core.affine import applied, fitted
from ...cache_core.track import Track
from ...cache_core.types import BLOCKS, Probe, Slot, Streams, Unit
from .common import Around, ModelCall, eager
from .hooked import Hook, Hooked, Pass
from .trunk import TEXT


@dataclass(slots=True)
class BlockPass(Pass):
    """One model call on its way through the blocks; entered: what came into the block that is being computed."""

    streams: Streams | None = None
    entered: dict[Unit, torch.Tensor] | None = None


class Blocks(Hooked[BlockPass]):
    """See the module docstring."""

    name = BLOCKS.kind

    def __init__(self, track: Track, around: Around) -> None:
        super().__init__(track, around)
        self.affine = track.rule.feature == "affine"
        self.enter, self.take = eager(self._enter), eager(self._take)
        self.hooks = {slot: eager(self._hook(slot), recursive=False) for slot in self.slots}

    def begin(self, call: ModelCall, foreign: Mapping[Slot, Hook]) -> BlockPass:
        return BlockPass(call, foreign)

    def _hook(self, slot: Slot) -> Hook:
        def hook(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            now = self.now
            if now is None:  # somebody kept our hook and calls it outside of our run
                return extra["original_block"](args)
            instead = self.enter(now, slot, args)
            if instead is not None:
                return instead
            inner = now.foreign.get(slot)
            out = extra["original_block"](args) if inner is None else inner(args, extra)
            self.take(now, slot, out)
            return out

        return hook

    def _enter(self, now: BlockPass, slot: Slot, args: dict[str, Any]) -> Mapping[str, torch.Tensor] | None:
        """What the block returns if it is skipped, else None."""
        now.entered = None
        with self.guarded(now):
            if self.under_way() is None:
                return None
            if slot == self.slots[0]:
                self.check_recording()
                now.streams = self.architecture.enter(args)
            if now.streams is not None:
                return self._decided(now, now.streams, slot, args)
        return None

    def _decided(
        self, now: BlockPass, streams: Streams, slot: Slot, args: dict[str, Any]
    ) -> Mapping[str, torch.Tensor] | None:
        call, part, entered = now.call.call, self.track.part(slot), self._tokens(args, slot, streams)
        img, txt = entered.values()
        facts = now.call.facts(*img.shape[1:], *txt.shape[1:], streams.targets, of=img)
        probe = partial(self._probe, img, streams.targets)
        if not part.enter(call, facts, probe, self.architecture.calibration(streams.references)):
            now.entered = {unit: tokens.clone() for unit, tokens in entered.items()}  # blocks add into them in place
            return None
        through = applied if self.affine else torch.add
        img, txt = (through(part.predict(call, unit), tokens) for unit, tokens in entered.items())
        instead = self.architecture.replaced(args, slot, streams.txt.shape[1], img, txt)
        self.track.leave_out(call, 1 / len(self.slots))
        now.left = True
        return instead

    def _take(self, now: BlockPass, slot: Slot, out: Mapping[str, torch.Tensor]) -> None:
        with self.guarded(now):
            entered, now.entered = now.entered, None
            if entered is None or now.streams is None or self.under_way() is None:
                return
            for unit, tokens in self._tokens(out, slot, now.streams).items():
                feature = fitted(entered[unit], tokens) if self.affine else tokens - entered[unit]
                self.track.part(slot).store(now.call.call, feature, unit)

    def _tokens(self, values: Mapping[str, torch.Tensor], slot: Slot, streams: Streams) -> dict[Unit, torch.Tensor]:
        """All image tokens and all text tokens at a block, in this order."""
        text = streams.txt.shape[1]
        return {
            slot: self.architecture.image(values, slot, text),
            (slot, TEXT): self.architecture.text(values, slot, text),
        }

    def _probe(self, img: torch.Tensor, targets: int, rows: slice) -> Probe:
        return Probe(targets=targets, entered=img[rows, :targets])
