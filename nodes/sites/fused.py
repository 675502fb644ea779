"""Blocks whose attention and MLP lie side by side in two linear layers (FLUX's single blocks), cut where that can be.

With A attention's result, H the MLP's activated hidden channels and W = [W_a | W_m], b the second layer:

    W·[A, H] + b = (W_a·A) + (W_m·H + b)

so that the two terms are the outputs of attention and of the MLP. A computed block runs as it is, and the second term
is what is left of its output; a reused term needs neither its rows of the first layer nor its columns of the second,
and a reused MLP needs no activation between them, which then gives no channels. A layer whose weight cannot be cut
(quantised formats) is skipped whole or computed whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ...cache_core.session import Session
from ...cache_core.types import ATTENTION, MLP, Fused
from .common import Weights


class Misfit(Exception):
    """A block that was to be skipped in part has to be run again in full. Raised before it has changed its input."""


class Side(Protocol):
    """What a block asks of the site that stores one of its two terms."""

    @property
    def session(self) -> Session: ...
    def standing(self, layer: int, stream: str, like: Tensor) -> Tensor | None: ...
    def replaced(self, layer: int, stream: str, idle: bool) -> None: ...
    def records(self, layer: int) -> bool: ...
    def stored(self, layer: int, stream: str, out: Tensor) -> Tensor: ...
    def alone(self) -> AbstractContextManager[None, bool]: ...


class Cut:
    """Products with a part of a layer's weight, in the precision that the layer computes in."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._known: dict[tuple[type, torch.dtype], bool] = {}

    def possible(self, like: Tensor, *layers: Any) -> bool:
        """Whether these layers are linear maps of their plain weights; tried once on a token for each kind of layer."""
        return all(self._possible(like, layer) for layer in layers)

    def _possible(self, like: Tensor, layer: Any) -> bool:
        weight: Any = getattr(layer, "weight", None)
        if type(weight) not in (Tensor, torch.nn.Parameter) or not weight.is_floating_point() or weight.ndim != 2:
            return False
        kind = (type(layer), weight.dtype)
        if kind not in self._known:
            self._known[kind] = self._tried(like, layer)
        return self._known[kind]

    def product(self, layer: Any, x: Tensor, *, rows: slice = slice(None), columns: slice = slice(None),
                bias: bool = True) -> Tensor:  # fmt: skip
        """x·W[rows, columns]^T, with the bias where asked for: b t d."""
        with self.weights(layer, x) as (weight, offset):
            added = offset[rows] if bias and offset is not None else None
            return torch.nn.functional.linear(x, weight[rows, columns], added)

    def _tried(self, like: Tensor, layer: Any) -> bool:
        try:
            token = torch.linspace(-1, 1, layer.in_features, dtype=like.dtype, device=like.device).view(1, 1, -1)
            whole, ours = type(layer).forward(layer, token).float(), self.product(layer, token).float()
        except Exception:
            return False
        return bool((whole - ours).abs().max() <= TOLERANCE * whole.abs().max())


UNCUT = (
    "the layers that hold both attention and MLP cannot be cut in this weight format: these blocks are skipped whole "
    "or computed whole"
)
TOLERANCE = 0.02
"""Of the largest value: a layer that computes in fp8 differs by as much, one that scales its weight by more."""


class Fusion:
    """One such block while a model call runs; the sites of its two terms meet here."""

    def __init__(self, part: Fused, layer: int, cut: Cut) -> None:
        self.part, self.layer, self.cut = part, layer, cut
        self.sides: dict[str, Side] = {}
        self.inner_enter, self.inner_leave = part.enter.forward, part.leave.forward
        self._reused: tuple[Tensor | None, Tensor | None] = (None, None)

    def enter(self, x: Tensor) -> Tensor:
        """The first layer: b t d -> b t (3·width + hidden)."""
        stream = self.part.streams[0]
        found = {kind: side.standing(self.layer, stream, x) for kind, side in self.sides.items()}
        self._reused = attention, mlp = found.get(ATTENTION.kind), found.get(MLP.kind)
        if attention is None and mlp is None:
            return self.inner_enter(x)
        with self._side.alone():
            nothing = self._entered(x, attention is None, mlp is None)
            if nothing is not None:
                return self._left_out(nothing)
        self._reused = (None, None)
        return self.inner_enter(x)

    def _entered(self, x: Tensor, attention: bool, mlp: bool) -> Tensor | None:
        """The first layer's output with what is wanted of it: attention's part is zeros where it is not, the MLP's is
        left as it lies where nothing reads it. None where the layer cannot be cut.
        """
        if (attention or mlp) and not self.cut.possible(x, self.part.enter, self.part.leave):
            return None
        rows = slice(3 * self.part.width), slice(3 * self.part.width, None)
        out = x.new_empty(*x.shape[:-1], self.part.enter.out_features)
        for wanted, part, read in zip((attention, mlp), rows, (True, self.part.act is None), strict=True):
            if wanted:
                out[..., part] = self.cut.product(self.part.enter, x, rows=part)
            elif read:
                out[..., part] = 0
        return out

    def activate(self, inner: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        """The activation between both layers: b t hidden -> b t hidden, or b t 0 where the MLP is reused."""
        return inner(hidden) if self._reused[1] is None else hidden[..., :0]

    def leave(self, joined: Tensor) -> Tensor:
        """The second layer: b t (width + hidden) -> b t d."""
        (attention, mlp), self._reused = self._reused, (None, None)
        if attention is None and mlp is None:
            out = self.inner_leave(joined)
            with self._side.alone():
                out = self._stored(joined, out)
            return out
        with self.sides[ATTENTION.kind if mlp is None else MLP.kind].alone():
            width, stream = self.part.width, self.part.streams[0]
            if attention is None:
                attention = self._side_stored(ATTENTION.kind, stream, self._attended(joined))
            if mlp is None:
                hidden = self.cut.product(self.part.leave, joined[..., width:], columns=slice(width, None))
                mlp = self._side_stored(MLP.kind, stream, hidden)
            return attention + mlp
        raise Misfit

    def _attended(self, joined: Tensor) -> Tensor:
        width = self.part.width
        return self.cut.product(self.part.leave, joined[..., :width], columns=slice(width), bias=False)

    def _stored(self, joined: Tensor, out: Tensor) -> Tensor:
        """Both terms of a computed block's output, to whoever stores them; the output, or a repaired one."""
        wanted = [kind for kind, side in self.sides.items() if side.records(self.layer)]
        stream = self.part.streams[0]
        if self.cut.possible(out, self.part.enter, self.part.leave):
            if not wanted:
                return out
            attended = self._attended(joined)
            terms = {ATTENTION.kind: attended, MLP.kind: out - attended}
        elif len(wanted) == len((ATTENTION, MLP)):
            self._side.session.recorder.note(UNCUT)
            terms = {ATTENTION.kind: out.new_zeros(out.shape[0], 1, out.shape[-1]), MLP.kind: out}
        else:
            return out
        repaired = out
        for kind in wanted:
            kept = self.sides[kind].stored(self.layer, stream, terms[kind])
            if kept is not terms[kind]:
                repaired = repaired + (kept - terms[kind])
        return repaired

    def _side_stored(self, kind: str, stream: str, term: Tensor) -> Tensor:
        side = self.sides.get(kind)
        return side.stored(self.layer, stream, term) if side is not None and side.records(self.layer) else term

    def _left_out(self, result: Tensor) -> Tensor:
        """Says which terms do not run."""
        for kind, tensor in zip((ATTENTION.kind, MLP.kind), self._reused, strict=True):
            if tensor is not None:
                self.sides[kind].replaced(self.layer, self.part.streams[0], idle=kind == ATTENTION.kind)
        return result

    @property
    def _side(self) -> Side:
        return next(iter(self.sides.values()))
