"""Samplers that cut one run into pieces or single steps: a run that starts where the last one of the same node
execution stopped goes on with its history.

Only within one execution of a node. Across nodes a first sampler that ComfyUI has cached would leave no history, so
that the second one's picture would depend on what ran before it.

What an unfinished run leaves is held in a context variable: each prompt runs in an asyncio task with a context of its
own, so nothing is held when it has ended. The next run takes it or drops it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from ..cache_core import Session
from ..cache_core.trace import Recorder
from ..cache_core.types import SIGMA_TOLERANCE
from .conditioning import called

LOOKED_AT, ALIKE = 1024, 1e-3
"""So many elements of a latent are compared; a relative difference that rounding explains."""


@dataclass(frozen=True, slots=True)
class Left:
    """What an unfinished run leaves: who made it, where it stopped, and its session."""

    piece: Piece
    latent: torch.Tensor
    shape: tuple[int, ...]
    session: Session


_LEFT: ContextVar[Left | None] = ContextVar("spectralcache_left", default=None)


class Piece:
    """One run as part of a node execution `place` (None outside the executor). goes_on: whether it goes on with the one
    before it; uuids: what its conditionings were called there.
    """

    def __init__(self, place: Any, attachment: Any, guider: Any) -> None:
        self.place, self.attachment, self.model = place, attachment, guider.model_patcher.model
        self.conds = dict(guider.conds)
        self.goes_on = False
        self.uuids: dict[Any, Any] = {}

    def follow(self, levels: Sequence[float], given: Any, recorder: Recorder) -> Session | None:
        """The session of the run that this one goes on with, if there is one."""
        left = _LEFT.get()
        _LEFT.set(None)
        if left is None:
            return None
        names = called(left.piece.conds, self.conds) if self._same(left.piece) else None
        if names is None or not _picks_up(left, levels, given.noise, given.latent_image):
            left.session.close()
            return None
        self.uuids = {new: left.piece.uuids.get(old, old) for new, old in names.items()}
        self.goes_on = True
        left.session.go_on(levels, recorder)
        return left.session

    def leave(self, session: Session, samples: Any) -> bool:
        """Pause a run that can be gone on with; False where it is over."""
        if self.place is None or not session.active or session.schedule.sigmas[-1] <= 0:
            return False
        session.pause()
        _LEFT.set(Left(self, _looked_at(samples), tuple(samples.shape), session))
        return True

    def _same(self, before: Piece) -> bool:
        """The same execution, model and method."""
        mine, others = ((p.place, p.attachment, p.model) for p in (self, before))
        return all(one is other for one, other in zip(mine, others, strict=True))


def _picks_up(left: Left, levels: Sequence[float], noise: Any, latent: Any) -> bool:
    """Whether a run begins with the latent and at the noise level that another one has ended with."""
    level = left.session.schedule.sigmas[-1]
    if latent is None or tuple(latent.shape) != left.shape or abs(levels[0] - level) > SIGMA_TOLERANCE * level:
        return False
    if any(after > before for before, after in itertools.pairwise(levels)) or (noise is not None and bool(noise.any())):
        return False
    here = _looked_at(latent)
    return bool((here - left.latent).norm() <= ALIKE * left.latent.norm())


def _looked_at(latent: torch.Tensor) -> torch.Tensor:
    flat = latent.flatten()
    return flat[:: max(1, flat.numel() // LOOKED_AT)].float().cpu()
