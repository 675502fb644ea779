"""What sites inside the forward share: hooks around the blocks, and a way out of every call that does not fit them.

The hooks are made once per run and reach the call that is under way through the site itself, whatever arguments a block
is called with. Other packs bring their own copies of a forward, and call hooks in their own way. Nothing of ours that
goes wrong in a hook gets out of it: the block is computed, the hooks do nothing more in this call, and the rule goes on
at its next place in this same evaluation. A call of which something was left out before it went wrong ends where it is,
and is run again without our hooks: what the next place sees as computed has been computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ...cache_core.track import Track
from ...cache_core.types import Architecture, Slot
from .common import Around, Forward, ModelCall, Options, Site, Unfit, failure

LOG = logging.getLogger("SpectralCache")

Hook = Callable[[dict[str, Any], dict[str, Any]], Any]


@dataclass(slots=True)
class Pass:
    """One model call on its way through the blocks. left: something of it was left out; fault: why this call is none
    for our hooks; again: it left the forward because of that.
    """

    call: ModelCall
    foreign: Mapping[Slot, Hook]
    left: bool = False
    fault: Exception | None = None
    again: bool = False


class Again(Exception):
    """Ends a forward of which something was left out in vain."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Keeps an error from the host's forward; of a pass that has left something out it ends the forward."""

    now: Pass

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Again) or not isinstance(error, Exception):
            return False
        LOG.debug("SpectralCache", exc_info=error)
        now = self.now
        now.fault = now.fault or error
        if now.left:
            now.again = True
            raise Again from error
        return True


P = TypeVar("P", bound=Pass)


class Hooked(Site, Generic[P]):
    """See the module docstring. A site makes its `hooks` and its passes, and guards its own work in them."""

    hooks: Mapping[Slot, Hook]

    def __init__(self, track: Track, around: Around) -> None:
        super().__init__(track, around)
        assert around.architecture is not None
        self.architecture: Architecture = around.architecture
        self.slots = self.architecture.slots(around.model)
        self.now: P | None = None

    @staticmethod
    def fits(architecture: Architecture | None) -> bool:
        return architecture is not None

    def run(self, call: ModelCall, options: Options, forward: Forward) -> torch.Tensor:
        unfit = self.unfit(options)
        if unfit is not None:
            return self.go_on(call, options, forward, unfit.reason, unfit.why)
        foreign, ours = with_hooks(options, self.hooks)
        outer, now = self.now, self.begin(call, foreign)
        self.now = now
        out = None
        try:
            with ExitStack() as stack:
                with self.guarded(now):
                    self.install(stack, options, ours)
                out = forward(ours)
        except Exception as error:
            if not now.again and not _cannot_be_traced(error):
                raise
            now.again, now.fault = True, now.fault or Unfit("compiled as one graph", ONE_GRAPH)
        finally:
            self.now = outer
        if now.fault is None and not self.track.reached(call.call) and self.session.active:
            now.fault = Unfit("blocks not reached", "the model ran without reaching our block hooks")
        if now.fault is None:
            assert out is not None
            return out
        reason, why = failure(now.fault, "our block hooks do not fit what runs here")
        done = None if now.again else out
        return self.go_on(call, options, forward if done is None else lambda _: done, reason, why, again=now.again)

    def begin(self, call: ModelCall, foreign: Mapping[Slot, Hook]) -> P:
        """A new pass."""
        raise NotImplementedError

    def install(self, stack: ExitStack, options: Options, ours: Options) -> None:
        """What else is put around this call, for as long as the stack is open; `ours` are the options it will get."""

    def unfit(self, options: Options) -> Unfit | None:
        """Why no call with these options is for block hooks, if so."""
        return Unfit("compiled as one graph", ONE_GRAPH) if self.around.one_graph else None

    def under_way(self) -> P | None:
        """The call under way, unless our hooks have to leave it alone (or somebody calls one outside of our run)."""
        now = self.now
        return None if now is None or now.fault is not None or not self.session.active else now

    def guarded(self, now: P) -> Guard:
        """What goes wrong inside is this call's fault, told when it is over."""
        return Guard(now)

    def check_recording(self) -> None:
        """Recorded allocations of a forward must not lack a part of it."""
        if self.around.recording_open():
            raise Unfit(
                "allocations recorded",
                "ComfyUI records the allocations of this model's blocks, so they cannot be skipped",
            )


ONE_GRAPH = "the model is compiled as one graph, which leaves no room for block hooks (set fullgraph to false to skip"
ONE_GRAPH += " blocks)"


def _cannot_be_traced(error: Exception) -> bool:
    """Whether a compiler refused a graph because of our hooks: only a graph that may not break does."""
    return (type(error).__module__, type(error).__name__) == ("torch._dynamo.exc", "Unsupported")


def with_hooks(options: Options, hooks: Mapping[Slot, Hook]) -> tuple[dict[Slot, Hook], Options]:
    """The block hooks of others as they are now, and the options with ours in their place."""
    replace = options.get("patches_replace", {})
    foreign = dict(replace.get("dit", {}))
    return foreign, {**options, "patches_replace": {**replace, "dit": {**foreign, **hooks}}}
