"""Where computation is skipped: the trunk of a described model, or the whole model call of any other.

Both stand around one model call and speak to the same session. This file knows the host's calling conventions (block
hooks, `patches_replace`), but imports nothing of it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from ..cache_core import Session
from ..cache_core.coefficients import IDENTITY
from ..cache_core.session import Call, Facts
from ..cache_core.types import MODEL, TRUNK, Architecture, Grid, Probe, Slot, Streams

LOG = logging.getLogger("SpectralCache")
KEY = "spectralcache"

Options = dict[str, Any]
Forward = Callable[[Options], torch.Tensor]
"""The model call itself, with these transformer_options."""


@dataclass(slots=True)
class ModelCall:
    """One model call as a site sees it. x: b c ..., sigma: b; `options` are the call's transformer_options."""

    call: Call
    x: torch.Tensor
    sigma: torch.Tensor
    options: Options
    model_sampling: Any
    control: frozenset[tuple[str, int]] = frozenset()
    weights: frozenset[tuple[object, float]] = frozenset()
    # what links the block hooks of this call
    foreign: Mapping[Slot, Callable[..., Any]] = field(default_factory=dict)
    text: int = 0
    targets: int = 0
    entry: torch.Tensor | None = None
    target: torch.Tensor | None = None

    def sigmas(self) -> torch.Tensor:
        """sigma as b 1 ..., to multiply x with."""
        return self.sigma.view(-1, *(1 for _ in self.x.shape[1:]))


class Site(Protocol):
    """Something that can stand around a model call."""

    name: str

    def run(self, call: ModelCall, forward: Forward) -> torch.Tensor:
        """Compute or skip: returns what the model call returns, the denoised latent (b c ...)."""


def warn(session: Session, why: str) -> None:
    """Stand down for the rest of the run: once in the log, once in the trace."""
    if session.stand_down(why):
        LOG.warning("SpectralCache: %s.", why)


@contextlib.contextmanager
def fail_open(session: Session) -> Iterator[None]:
    """Our own work may fail; the picture may not. On any error the run goes on uncached and says so once."""
    try:
        yield
    except Exception as error:
        LOG.debug("SpectralCache", exc_info=True)
        warn(session, f"caching failed ({type(error).__name__}: {error}); the run goes on uncached")


class _Guarded:
    """A site whose own work cannot break a model call."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @contextlib.contextmanager
    def guard(self, call: ModelCall) -> Iterator[None]:
        with fail_open(self.session):
            try:
                yield
            except Exception:
                call.call.skip = False
                call.entry = call.target = None
                raise


class WholeModel(_Guarded):
    """Site model: any model at all, skipped outside its forward.

    The feature is the ODE derivative d = (x - denoised) / sigma, so a skip returns x - sigma·d (for a flow model d is
    the velocity, for an epsilon model the noise). Computed calls are only read, unless a correction repairs them.
    The signal sees the model's input, `model_sampling.calculate_input(sigma, x)`, in place of a modulated input.
    """

    name = MODEL

    def run(self, call: ModelCall, forward: Forward) -> torch.Tensor:
        with self.guard(call):
            shape = (*call.x.shape[1:], call.x.shape[0] // len(call.call.rows))
            facts = Facts(shape, call.x.dtype, call.x.device, call.control, call.weights)
            self.session.enter(call.call, facts, partial(self._probe, call), IDENTITY)
            if call.call.skip:
                return self._denoised(call, self.session.predict(call.call, self._grid(call)))
        denoised = forward(call.options)
        with self.guard(call):
            if call.call.reached:
                derivative = (call.x - denoised) / call.sigmas()
                tokens = derivative.movedim(1, -1).flatten(1, -2)  # b c ... -> b (...) c
                repair = self.session.keep(call.call, tokens, self._grid(call))
                if repair is not None:
                    return self._denoised(call, tokens + repair)
        return denoised

    @staticmethod
    def _grid(call: ModelCall) -> Grid | None:
        """Latent pixels are the tokens here; several latents packed into one (b 1 n: audio with video) have no grid."""
        size = tuple(call.x.shape[2:])
        return size if len(size) > 1 else None

    @staticmethod
    def _denoised(call: ModelCall, tokens: torch.Tensor) -> torch.Tensor:
        """What the model call returns for a feature: b (...) c -> b c ..."""
        return call.x - call.sigmas() * tokens.unflatten(1, call.x.shape[2:]).movedim(-1, 1)

    @staticmethod
    def _probe(call: ModelCall, rows: slice) -> Probe:
        model_input = call.model_sampling.calculate_input(call.sigma[rows], call.x[rows])
        return Probe(model_input.movedim(1, -1))  # channels last, as in a modulated input


class Trunk(_Guarded):
    """Site trunk: the blocks of a described model. The hooks are made once per run.

    First block: decide; on a skip make the target, else remember what entered. Blocks between: pass through on a skip,
    so that nothing of the trunk runs. Last block: return the target, or take the feature. The target is returned at the
    *last* block because the host adds ControlNet outputs after every block, and those are already inside the feature.
    """

    name = TRUNK

    def __init__(
        self,
        session: Session,
        architecture: Architecture,
        model: Any,
        recording_open: Callable[[], bool],
        fall_back: Callable[[str], None],
    ) -> None:
        super().__init__(session)
        self.architecture = architecture
        self.model = model
        self.recording_open = recording_open
        self.fall_back = fall_back
        slots = architecture.slots(model)
        self.first, self.last = slots[0], slots[-1]
        self.decide, self.take = eager(self._decide), eager(self._take)
        self.hooks = {slot: eager(self._hook(slot), recursive=False) for slot in slots}

    def run(self, call: ModelCall, forward: Forward) -> torch.Tensor:
        replace = call.options.get("patches_replace", {})
        call.foreign = dict(replace.get("dit", {}))
        blocks = {"patches_replace": {**replace, "dit": {**call.foreign, **self.hooks}}, KEY: call}
        out = forward({**call.options, **blocks})
        if not call.call.reached and self.session.active:
            self.session.compute(call.call, "blocks not reached")
            self.fall_back("the model ran without reaching our block hooks")
        return out

    def _hook(self, slot: Slot) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        def hook(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            call: ModelCall = args["transformer_options"][KEY]
            if slot == self.first:
                self.decide(call, args)
            if call.call.skip:
                return self._skipped(call, slot, args)
            inner = call.foreign.get(slot)
            out = extra["original_block"](args) if inner is None else inner(args, extra)
            return self.take(call, slot, out) if slot == self.last else out

        return hook

    def _decide(self, call: ModelCall, args: dict[str, Any]) -> None:
        with self.guard(call):
            if not self.session.active:
                return
            if self.recording_open():
                self.session.compute(call.call, "allocations recorded")
                self.fall_back("ComfyUI records the allocations of this model's blocks, so they cannot be skipped")
                return
            self._enter(call, self.architecture.enter(args))

    def _enter(self, call: ModelCall, streams: Streams) -> None:
        img = streams.img
        call.text, call.targets = streams.txt.shape[1], streams.targets
        shape = (*img.shape[1:], *streams.txt.shape[1:], streams.targets, img.shape[0] // len(call.call.rows))
        facts = Facts(shape, img.dtype, img.device, call.control, call.weights)
        calibration = self.architecture.calibration(streams.references)
        self.session.enter(call.call, facts, partial(self._probe, streams), calibration)
        entry = img[:, : streams.targets]
        if call.call.skip:
            feature = self.session.predict(call.call, self._grid(call))
            call.target = feature if self.session.absolute else entry + feature
        else:
            # FLUX's blocks add into this tensor in place. The clone dies with the forward, so it needs no `keep`.
            call.entry = entry.clone()

    def _grid(self, call: ModelCall) -> Grid | None:
        """The target's token grid; None where somebody has added image tokens that are not on it."""
        grid = self.architecture.grid(tuple(call.x.shape))
        return grid if math.prod(grid) == call.targets else None

    def _probe(self, streams: Streams, rows: slice) -> Probe:
        if "modulated" not in self.session.rule.signal.needs:
            return Probe()
        tokens = streams.img.shape[1] if self.architecture.signal_over_references else streams.targets
        modulated = self.architecture.modulated(self.model, streams.img[rows, :tokens], streams.vec[rows])
        return Probe(modulated, streams.targets)

    def _take(self, call: ModelCall, slot: Slot, out: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The feature of a computed call; what the last block returned, or a repaired copy of it."""
        entry, call.entry = call.entry, None
        with self.guard(call):
            if entry is None or not self.session.active:
                return out
            exit_ = self.architecture.image(out, slot, call.text)[:, : call.targets]
            feature = exit_ if self.session.absolute else exit_ - entry
            repair = self.session.keep(call.call, feature, self._grid(call))
            if repair is not None:
                return {**out, **self.architecture.replaced(out, slot, call.text, exit_ + repair)}
        return out

    def _skipped(self, call: ModelCall, slot: Slot, args: dict[str, Any]) -> dict[str, torch.Tensor]:
        if slot != self.last:
            return self.architecture.unchanged(args, slot)
        target, call.target = call.target, None
        assert target is not None
        return self.architecture.replaced(args, slot, call.text, target)


def eager(function: Callable[..., Any], *, recursive: bool = True) -> Callable[..., Any]:
    """Keep a function out of compiled graphs: traced under TorchCompileModel, its first decision would be frozen.

    `recursive=False` leaves what it calls (the blocks) to the compiler. Where nothing has loaded the compiler, nothing
    is done: loading it takes most of a second.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    wrapped: Callable[..., Any] = torch.compiler.disable(function, recursive=recursive)
    return wrapped
