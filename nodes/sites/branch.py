"""Site branch: the unconditional result of an evaluation, derived from the conditional one.

It stands around the calculation of both sides of guidance, as often as that happens in an evaluation (once, or once a
context window). Computed: both sides, and the difference of their ODE derivatives is stored. Skipped: the host is asked
for the conditional side alone, so that nothing of the other one runs, and the difference that stands in is added.
Conditionings that come and go at known noise levels are edges, as at the site guided. Where there is not exactly one
positive and one negative side, nothing is derived, and the trace says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from ...cache_core.coefficients import IDENTITY
from ...cache_core.track import Facts, LaneKey, Track
from ...cache_core.types import BRANCH, Probe
from .common import denoised, derivative, fail_open, latent_grid

Sides = Callable[[Sequence[Any]], list[torch.Tensor]]
"""The host's own calculation: the denoised latent of each conditioning of the list, nothing for None."""


class Branch:
    """See the module docstring."""

    name = BRANCH.kind

    def __init__(self, track: Track) -> None:
        self.track, self.pairs, self.others = track, 0, 0
        self._rows: dict[LaneKey, int] = {}

    def run(
        self, key: Hashable, conds: Sequence[Any], x: torch.Tensor, sigma: torch.Tensor, sides: Sides
    ) -> list[torch.Tensor]:
        """Both sides at sigma (b) of x (b c ...); `key` tells apart what is calculated in one evaluation."""
        track, session, call, difference = self.track, self.track.session, None, None
        if len(conds) != 2 or not all(conds):
            self.others = max(self.others, len(conds))
            return sides(conds)
        self.pairs += 1
        lane, before = LaneKey((self.name, key)), session.called()
        with fail_open(session):
            call = session.open_beside(lane, x.shape[0])
            facts = Facts(tuple(x.shape), x.dtype, x.device)
            if track.enter(call, facts, lambda rows: Probe(), IDENTITY):
                difference = track.predict(call, grid=latent_grid(x))
        if difference is not None:
            uncond, (cond, *_) = None, sides([conds[0], None])
            with fail_open(session):
                session.spare(max(self._rows.get(lane, 0) - (session.called() - before), 0))
                uncond = denoised(cond, difference, sigma)
            return [cond, sides([None, conds[1]])[1] if uncond is None else uncond]
        both = sides(conds)
        with fail_open(session):
            if call is not None and track.reached(call):
                tap = None if track.rule.signal.tap is None else derivative(x, both[0], sigma)
                track.store(call, derivative(both[0], both[1], sigma), grid=latent_grid(x), tap=tap)
                self._rows[lane] = session.called() - before
        return both

    @property
    def idle(self) -> str:
        """Why nothing could be derived in the whole run, or an empty string."""
        if self.pairs:
            return ""
        if self.others > 2:
            return f"this guider calculates {self.others} sides at once, and only of two is one derived from the other"
        return "no negative side was calculated (CFG 1, or a guider that goes its own way), so there is none to derive"
