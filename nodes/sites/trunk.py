"""Site trunk: the blocks of a described model, or those between a head and a tail that always run.

First block: look. First block behind the head: decide; on a skip make the target, else remember what entered. Blocks
between: pass through on a skip, so that nothing of them runs. Last block before the tail: return the target, or take
the feature. The target is returned at the *last* block because the host adds ControlNet outputs after every block, and
those are already inside the feature. Where a tail follows, it goes on with text and references too, so that all image
tokens are stored and the text stream is a unit of its own.

What goes wrong in a hook falls back as `hooked` says; only a skip that finds out in mid-trunk leaves the forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...cache_core.track import Track
from ...cache_core.types import TRUNK, WHOLE, Grid, Probe, Slot, Streams, Unit
from .common import Around, ModelCall, Unfit, eager, probe
from .hooked import Again, Hook, Hooked, Pass

TEXT: Unit = "text"
"""The text stream, stored where a tail goes on with it. It has no grid."""


@dataclass(slots=True)
class TrunkPass(Pass):
    """One model call on its way through the trunk. text, targets: tokens; entered, stand_in: what came in and what goes
    out instead, by unit.
    """

    skip: bool = False
    streams: Streams | None = None
    text: int = 0
    targets: int = 0
    entered: dict[Unit, torch.Tensor] | None = None
    stand_in: dict[Unit, torch.Tensor] | None = None
    tap: torch.Tensor | None = None


class Trunk(Hooked[TrunkPass]):
    """See the module docstring."""

    name = TRUNK.kind

    def __init__(self, track: Track, around: Around) -> None:
        super().__init__(track, around)
        self.absolute, slots, place = track.rule.feature == "absolute", self.slots, around.place
        if place.head + place.tail >= len(slots):
            self.obstacle = (
                f"head {place.head} and tail {place.tail} leave none of the {len(slots)} blocks of "
                f"{self.architecture.name} to skip; lower them"
            )
        self.tail = place.tail > 0
        self.first, self.behind_head = slots[0], slots[min(place.head, len(slots) - 1)]
        self.last = slots[max(len(slots) - 1 - place.tail, 0)]
        tap = track.rule.signal.tap
        self.tapped = None if tap is None else slots[round(tap * (len(slots) - 1))]
        start, end = slots.index(self.behind_head), slots.index(self.last)
        self.between = frozenset(slots[start : end + 1])
        self.look, self.decide, self.take = eager(self._look), eager(self._decide), eager(self._take)
        self.pass_by = eager(self._skipped)
        self.hooks = {slot: eager(self._hook(slot), recursive=False) for slot in slots[: end + 1]}

    def begin(self, call: ModelCall, foreign: Mapping[Slot, Hook]) -> TrunkPass:
        return TrunkPass(call, foreign)

    def _hook(self, slot: Slot) -> Hook:
        def hook(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            now = self.now
            if now is None:  # somebody kept our hook and calls it outside of our run
                return extra["original_block"](args)
            if slot == self.first:
                self.look(now, args, extra)
            if slot == self.behind_head:
                self.decide(now, args)
            if now.skip and slot in self.between:
                return self.pass_by(now, slot, args)
            inner = now.foreign.get(slot)
            out = extra["original_block"](args) if inner is None else inner(args, extra)
            return self.take(now, slot, out) if slot in (self.last, self.tapped) else out

        return hook

    def _look(self, now: TrunkPass, args: dict[str, Any], extra: dict[str, Any]) -> None:
        """What enters the first block; blocks add into their input in place, so a head gets a copy of it."""
        with self.guarded(now):
            options = args.get("transformer_options") or extra.get("transformer_options") or {}
            streams = self._counted(self.architecture.enter({**args, "transformer_options": options}), now)
            if self.behind_head != self.first and self.track.rule.signal.needs:
                streams = replace(streams, img=streams.img.clone())
            now.streams, now.text = streams, streams.txt.shape[1]
            now.targets = streams.img.shape[1] if self.tail else streams.targets

    def _counted(self, streams: Streams, now: TrunkPass) -> Streams:
        """With as many targets as the latent has; behind them are the reference's tokens, all or none (a cache of keys
        cuts them off), and nothing else.
        """
        shape, tokens = tuple(now.call.x.shape), streams.img.shape[1]
        targets = math.prod(self.architecture.grid(shape))
        references = tokens - streams.targets
        if streams.img.shape[0] != shape[0] or tokens not in (targets, targets + references):
            raise Unfit("foreign tokens", f"{tokens} image tokens enter the blocks where {targets} are the picture's")
        return replace(streams, targets=targets)

    def _decide(self, now: TrunkPass, args: dict[str, Any]) -> None:
        with self.guarded(now):
            if not self.session.active or now.streams is None or now.fault is not None:
                return
            self.check_recording()
            self._enter(now, now.streams, args)

    def _enter(self, now: TrunkPass, streams: Streams, args: dict[str, Any]) -> None:
        img = self.architecture.image(args, self.behind_head, now.text)
        call = now.call.call
        facts = now.call.facts(*img.shape[1:], *streams.txt.shape[1:], streams.targets, of=img)
        calibration = self.architecture.calibration(streams.references)
        skip = self.track.enter(call, facts, partial(self._probe, now, streams, img), calibration)
        entered = {WHOLE: img[:, : now.targets]}
        if self.tail:
            entered[TEXT] = self.architecture.text(args, self.behind_head, now.text)
        if not skip:
            # FLUX's blocks add into these tensors in place. The clones die with the forward, so they need no `keep`.
            now.entered = {unit: tokens.clone() for unit, tokens in entered.items()}
            return
        stand_in = {}
        for unit, tokens in entered.items():
            feature = self.track.predict(call, unit, self._grid(now, now.targets) if unit == WHOLE else None)
            stand_in[unit] = feature if self.absolute else tokens + feature
        self.track.leave_out(call)
        now.stand_in, now.skip, now.left = stand_in, True, True

    def _grid(self, now: TrunkPass, targets: int) -> Grid | None:
        """The target's token grid; None where somebody has added image tokens that are not on it."""
        grid = self.architecture.grid(tuple(now.call.x.shape))
        return grid if math.prod(grid) == targets else None

    def _probe(self, now: TrunkPass, streams: Streams, img: torch.Tensor, rows: slice) -> Probe:
        needs = self.track.rule.signal.needs
        head = (img - streams.img)[rows, : streams.targets] if "head" in needs else None
        seen = probe(needs, self.architecture, self.around.model, streams, rows, head)
        sigma = now.call.sigma[rows][0] if "sigma" in needs else None
        grid = self._grid(now, streams.targets) if "grid" in needs else None
        entered = img[rows, : streams.targets] if "entered" in needs else None
        return replace(seen, sigma=sigma, grid=grid, entered=entered)

    def _take(self, now: TrunkPass, slot: Slot, out: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The feature of a computed call; what the last block returned, or a repaired copy of it."""
        with self.guarded(now):
            if slot == self.tapped and not now.skip and now.fault is None:
                now.tap = self.architecture.image(out, slot, now.text)[:, : now.targets].clone()
            if slot != self.last or now.entered is None or now.fault is not None or not self.session.active:
                return out
            self._check(now, out)
            entered, now.entered = now.entered, None
            left = {WHOLE: self.architecture.image(out, slot, now.text)[:, : now.targets]}
            if TEXT in entered:
                left[TEXT] = self.architecture.text(out, slot, now.text)
            repaired = {}
            for unit, tokens in left.items():
                feature = tokens if self.absolute else tokens - entered[unit]
                grid, tap = (self._grid(now, now.targets), now.tap) if unit == WHOLE else (None, None)
                repair = self.track.store(now.call.call, feature, unit, grid, tap)
                if repair is not None:
                    repaired[unit] = tokens + repair
            if repaired:
                target = repaired.get(WHOLE, left[WHOLE])
                return {**out, **self.architecture.replaced(out, slot, now.text, target, repaired.get(TEXT))}
        return out

    def _skipped(self, now: TrunkPass, slot: Slot, args: dict[str, Any]) -> dict[str, torch.Tensor]:
        with self.guarded(now):
            if slot != self.last:
                return self.architecture.unchanged(args, slot)
            assert now.stand_in is not None
            self._check(now, args)
            return self.architecture.replaced(args, slot, now.text, now.stand_in[WHOLE], now.stand_in.get(TEXT))
        raise Again

    def _check(self, now: TrunkPass, at_last: Mapping[str, torch.Tensor]) -> None:
        """What is at the last block must be what came in at the first one: as many rows and tokens."""
        assert now.streams is not None
        came, here = now.streams.img.shape, self.architecture.image(at_last, self.last, now.text).shape
        if here != came:
            raise Unfit(
                "foreign tokens",
                f"{came[0]} x {came[1]} image tokens enter the blocks and {here[0]} x {here[1]} leave them",
            )
