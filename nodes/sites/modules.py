"""Sites attention and mlp: these modules of every block of a described model, each stream of each block a unit.

What is stored is a module's output before its gate, so that a skip multiplies it with the current step's gate. The
blocks run their own forwards: while a model call runs, their submodules get a `forward` of ours beside their own. A
module that returns the output is not called on a skip; where a block computes attention itself (FLUX), its projections
into attention give zeros, attention gives zeros, and its projections out of attention return what stands in. Linear
layers that hold both are in `fused`. Two rules, one for each site, meet in one run.

A hook around every block decides, behind the first one's input, and makes what stands in for one block at a time. What
goes wrong in a hook or in a `forward` of ours falls back as `hooked` says.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ...cache_core.storage import bytes_of
from ...cache_core.track import LaneKey, Track
from ...cache_core.types import ATTENTION, CROSS, MLP, Architecture, Fused, Grid, Slot, Split, Streams, Unit, Whole
from .common import Around, ModelCall, Options, Unfit, eager, probe
from .fused import Cut, Fusion, Misfit
from .hooked import Hook, Hooked, Pass
from .shares import lengths, shares

OVERRIDE = "optimized_attention_override"
"""ComfyUI's place for somebody else's attention function."""


@dataclass(slots=True)
class ModulePass(Pass):
    """One model call on its way through the blocks.

    layer: the block that runs; stand_in: what its streams get instead; idle: its attention is not wanted; image: its
    image tokens; shares: of the whole work, by unit; done: units that were stored or replaced in this call (somebody
    may run a block twice).
    """

    skip: bool = False
    layer: int | None = None
    stand_in: dict[str, Tensor] = field(default_factory=dict)
    idle: bool = False
    image: int = 0
    shares: Mapping[Unit, float] = field(default_factory=dict)
    done: set[Unit] = field(default_factory=set)


class Modules(Hooked[ModulePass]):
    """See the module docstring."""

    def __init__(self, track: Track, around: Around) -> None:
        super().__init__(track, around)
        self.parts = {
            layer: self.architecture.parts(around.model, slot, self.name)
            for layer, slot in enumerate(self.slots)
            if around.place.only is None or layer in around.place.only
        }
        self.cut = Cut(around.weights)
        self.compiled: bool | None = None
        self.kept: frozenset[int] | None = None
        self.foreseen: dict[LaneKey, int] = {}
        self.counted: tuple[tuple[int, int], Mapping[Unit, float]] = ((0, 0), {})
        self.hooks = {slot: eager(self._hook(n), recursive=False) for n, slot in enumerate(self.slots)
                      if n == 0 or n in self.parts}  # fmt: skip

    @staticmethod
    def fits(architecture: Architecture | None) -> bool:
        return architecture is not None and type(architecture).parts is not Architecture.parts

    def begin(self, call: ModelCall, foreign: Mapping[Slot, Hook]) -> ModulePass:
        return ModulePass(call, foreign)

    def unfit(self, options: Options) -> Unfit | None:
        if self._compiled(options):
            return Unfit("compiled model", "attention and MLP of a compiled model cannot be told apart")
        return None

    def _compiled(self, options: Options) -> bool:
        """Whether the model, or a part of it, runs from a compiled graph: our functions could be frozen into it."""
        marks = [key for by_key in options.get("wrappers", {}).values() for key in by_key]
        if self.compiled is None:
            self.compiled = any(hasattr(module, "_orig_mod") for module in self.around.model.modules())
        return self.compiled or "torch.compile" in marks

    # around the blocks ------------------------------------------------------------------------------------------------

    def _hook(self, layer: int) -> Callable[..., Any]:
        slot = self.slots[layer]

        def hook(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            now = self.now
            if now is None:  # somebody kept our hook and calls it outside of our run
                return extra["original_block"](args)
            if layer == 0:
                self._decide(now, args)
            inner = now.foreign.get(slot)
            run = extra["original_block"] if inner is None else partial(_foreign, inner, extra)
            if layer not in self.parts:
                return run(args)
            self._prepare(now, layer)
            try:
                return run(args)
            except Misfit:
                now.stand_in, now.idle = {}, False
                return run(args)
            finally:
                now.layer, now.stand_in, now.idle = None, {}, False

        return hook

    def _decide(self, now: ModulePass, args: dict[str, Any]) -> None:
        with self.guarded(now):
            if self.under_way() is None:
                return
            self.check_recording()
            streams = self.architecture.enter(args)
            now.image = streams.img.shape[1]
            now.shares = self._shares(now.image, streams.txt.shape[1])
            facts = now.call.facts(*streams.img.shape[1:], *streams.txt.shape[1:], streams.targets, of=streams.img)
            self._plan(now, streams)
            calibration = self.architecture.calibration(streams.references)
            looked = partial(self._probe, streams)
            now.skip = self.track.enter(now.call.call, facts, looked, calibration)

    def _probe(self, streams: Streams, rows: slice) -> Any:
        return probe(self.track.rule.signal.needs, self.architecture, self.around.model, streams, rows)

    def _prepare(self, now: ModulePass, layer: int) -> None:
        """What stands in for this block's streams, if they are to be skipped."""
        now.layer, now.stand_in, now.idle = layer, {}, False
        verdict = self.track.verdict
        if not now.skip or verdict is None or not self._meant(verdict.only, layer):
            return
        with self.guarded(now):
            call, streams = now.call.call, [stream for part in self.parts[layer] for stream in part.streams]
            if self.under_way() is not None and all(self.track.holds(call, (layer, stream)) for stream in streams):
                now.stand_in = {
                    stream: self.track.predict(call, (layer, stream), self._grid(now, stream)) for stream in streams
                }

    def _meant(self, only: frozenset[int] | None, layer: int) -> bool:
        if self.kept is not None and layer not in self.kept:
            return False
        return only is None or layer in only or layer - len(self.slots) in only

    def _grid(self, now: ModulePass, stream: str) -> Grid | None:
        """The token grid of an image's stream, where no other image tokens are in it."""
        grid = self.architecture.grid(tuple(now.call.x.shape))
        return grid if stream in ("img", CROSS) and math.prod(grid) == now.image else None

    # around the modules -----------------------------------------------------------------------------------------------

    def install(self, stack: contextlib.ExitStack, options: Options, ours: Options) -> None:
        if self.name == ATTENTION.kind:
            ours[OVERRIDE] = eager(partial(self._attention, options.get(OVERRIDE)), recursive=False)
        for layer, parts in self.parts.items():
            for part in parts:
                if isinstance(part, Whole):
                    override(stack, part.module, partial(self._whole, layer, part))
                elif isinstance(part, Split):
                    for stream, enter, leave in zip(part.streams, part.enters, part.leaves, strict=True):
                        override(stack, enter, partial(self._enter, layer, part, stream))
                        override(stack, leave, partial(self._leave, layer, stream))
                else:
                    self._join(stack, layer, part)

    def _join(self, stack: contextlib.ExitStack, layer: int, part: Fused) -> None:
        """The other site may have been there before."""
        fusion = getattr(part.enter.__dict__.get("forward"), "fusion", None)
        if fusion is None:
            fusion = Fusion(part, layer, self.cut)
            for module, ours in ((part.enter, fusion.enter), (part.leave, fusion.leave)):
                override(stack, module, partial(_fused, ours))
            if part.act is not None:
                override(stack, part.act, fusion.activate)
            part.enter.forward.fusion = fusion
        fusion.sides[self.name] = self
        stack.callback(fusion.sides.pop, self.name)

    def _whole(self, layer: int, part: Whole, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        now = self._here(layer)
        if now is None:
            return inner(*args, **kwargs)
        with self.guarded(now):
            found = [now.stand_in.get(stream) for stream in part.streams]
            if _stands(found, (*args, *kwargs.values())):
                for stream in part.streams:
                    self.replaced(layer, stream)
                return found[0] if len(found) == 1 else tuple(found)
        out = inner(*args, **kwargs)
        with self.guarded(now):
            outs = (out,) if isinstance(out, Tensor) else out
            kept = tuple(self.stored(layer, stream, each) for stream, each in zip(part.streams, outs, strict=True))
            return kept[0] if isinstance(out, Tensor) else kept
        return out

    def _enter(self, layer: int, part: Split, stream: str, inner: Callable[..., Any], x: Tensor) -> Tensor:
        now = self._here(layer)
        if now is None or self.standing(layer, stream, x) is None:
            return inner(x)
        with self.guarded(now):
            nothing = x.new_zeros(*x.shape[:-1], 3 * part.width)
            now.idle = now.left = True
            return nothing
        return inner(x)

    def _leave(self, layer: int, stream: str, inner: Callable[..., Any], x: Tensor) -> Tensor:
        now = self._here(layer)
        found = None if now is None else now.stand_in.get(stream)
        if found is None:
            return self.stored(layer, stream, inner(x))
        self.replaced(layer, stream)
        return found

    def _attention(self, foreign: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Somebody else's attention where there is one; zeros where a block's attention is not wanted."""
        now = self.now
        if now is not None and now.idle:
            now.idle = False
            with self.guarded(now):
                return _nothing(*args, **kwargs)
        return function(*args, **kwargs) if foreign is None else foreign(function, *args, **kwargs)

    def _here(self, layer: int) -> ModulePass | None:
        """The call under way, while this block runs in it."""
        now = self.under_way()
        return now if now is not None and now.layer == layer else None

    # what `fused` asks of it ------------------------------------------------------------------------------------------

    def standing(self, layer: int, stream: str, like: Tensor) -> Tensor | None:
        """What stands in for this stream (b t d) at a block whose input is `like`; raises `Misfit` if it cannot."""
        now = self._here(layer)
        found = None if now is None else now.stand_in.get(stream)
        if found is not None and (found.shape[0] != like.shape[0] or found.shape[1] not in (1, like.shape[1])):
            raise Misfit
        return found

    def replaced(self, layer: int, stream: str, idle: bool = False) -> None:
        """Says that what stands in was used."""
        now = self.now
        assert now is not None
        now.idle, now.left = idle, True
        now.stand_in.pop(stream, None)
        now.done.add((layer, stream))
        with self.guarded(now):
            self.track.leave_out(now.call.call, now.shares.get((layer, stream), 0.0))

    def records(self, layer: int) -> bool:
        """Whether what this block computes now is to be stored."""
        now = self._here(layer)
        kept = self.kept is None or layer in self.kept
        return now is not None and kept and self.track.reached(now.call.call)

    def stored(self, layer: int, stream: str, out: Tensor) -> Tensor:
        """Store a computed output; returns it, or a repaired copy of it."""
        now, unit = self._here(layer), (layer, stream)
        if now is None or unit in now.done or out.shape[0] != now.call.x.shape[0] or not self.records(layer):
            return out
        with self.guarded(now):
            now.done.add(unit)
            repair = self.track.store(now.call.call, out, unit, self._grid(now, stream))
            if repair is not None:
                return out + repair
        return out

    def alone(self) -> contextlib.AbstractContextManager[None, bool]:
        """Keeps what goes wrong inside from the block."""
        assert self.now is not None
        return self.guarded(self.now)

    # what it holds ----------------------------------------------------------------------------------------------------

    def _plan(self, now: ModulePass, streams: Streams) -> None:
        """How much each lane will hold, and, where that is more than the budget, which layers hold nothing."""
        call, rule, width = now.call.call, self.track.rule, streams.img.shape[-1]
        if all(key in self.foreseen for key in call.keys):
            return
        tokens = lengths(streams.img.shape[1], streams.txt.shape[1])
        rows, each = (
            len(range(*call.rows[0].indices(streams.img.shape[0]))),
            bytes_of(rule.store, streams.img.dtype, width),
        )
        size = {
            layer: sum(tokens[stream] for part in parts for stream in part.streams) * width * rows * each
            for layer, parts in self.parts.items()
        }
        kept: list[int] = []
        total, budget = 0.0, self.around.place.budget
        for layer in sorted(size, reverse=True):
            cost = size[layer] * rule.predictor.depth
            if budget and total + cost > budget:
                break
            kept.append(layer)
            total += cost
        if len(kept) < len(size):
            self.kept = frozenset(kept)
            self.session.recorder.note(
                f"of {len(size)} blocks only the last {len(kept)} keep their {IN_WORDS[self.name]}, for want of memory"
            )
        self.foreseen |= dict.fromkeys(call.keys, round(total))
        self.session.recorder.foreseen_bytes += round(total) * len(call.keys)

    # what it saves ----------------------------------------------------------------------------------------------------

    def _shares(self, image: int, text: int) -> Mapping[Unit, float]:
        """Each unit's share of the multiplications in all attention and MLP modules, at these token counts."""
        if self.counted[0] != (image, text):
            own = shares(self.architecture, self.around.model, self.slots, self.name, image, text)
            self.counted = ((image, text), own)
        return self.counted[1]


class AttentionModules(Modules):
    """Site attention."""

    name = ATTENTION.kind


class MlpModules(Modules):
    """Site mlp."""

    name = MLP.kind


IN_WORDS = {ATTENTION.kind: "attention", MLP.kind: "MLP"}
TOKENS = 3
"""Dimensions of a stream: b t d."""


def override(stack: contextlib.ExitStack, module: Any, ours: Callable[..., Any]) -> None:
    """Give a module another `forward` until the stack is left; it is told the one that was there."""
    before, inner = module.__dict__.get("forward"), module.forward
    wrapped = eager(partial(ours, inner), recursive=False)

    def restore() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    module.forward = wrapped
    stack.callback(restore)


def _stands(found: Sequence[Tensor | None], given: Sequence[Any]) -> bool:
    """Whether a module's outputs can be replaced where it is called with these arguments: rows and tokens must fit."""
    tokens = [x for x in given if isinstance(x, Tensor) and x.ndim == TOKENS]
    fits = (there is not None and there.shape[:2] == x.shape[:2] for there, x in zip(found, tokens, strict=False))
    return len(tokens) >= len(found) and all(fits)


def _foreign(hook: Callable[..., Any], extra: dict[str, Any], args: dict[str, Any]) -> Any:
    return hook(args, extra)


def _fused(ours: Callable[[Tensor], Tensor], inner: Callable[..., Any], x: Tensor) -> Tensor:
    return ours(x)


def _nothing(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **options: Any) -> Tensor:
    """Zeros of the shape that attention returns."""
    if not options.get("skip_reshape"):  # b n (h d)
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    rows, heads, tokens = q.shape[:3]  # b h n d
    width = v.shape[-1]
    return (
        q.new_zeros(rows, heads, tokens, width)
        if options.get("skip_output_reshape")
        else q.new_zeros(rows, tokens, heads * width)
    )
