"""FEB-Cache's table (arXiv 2503.07120, Algorithm 1): what each step of a run reuses, found by walking over the run.

With E the norm of the predicted noise, at each step the first of these whose change |1 - E / E_ori| stays below
delta(t) is taken: both modules reused, the stage's one module reused, nothing reused. Samples vote, and the walk goes
on with what won, so that what is reused later is as old as it will be. The one module is the MLP in the first 60 % of
the run and attention in the last 40 %: early steps are fragile in low frequencies, which attention carries.

delta(t) = scale · (1/2 + t), t from 1 (noise) to 0: the authors found a rising line best, and publish no coefficients;
the scale is the smallest that leaves no more than the wanted share of the work.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from .placement import cumulative

STAGE = 0.6
"""Where the single module changes, in step / T."""


class State(enum.IntEnum):
    """What a step reuses, from the most careful to the boldest."""

    FULL = 0
    ATTENTION = 1
    MLP = 2
    BOTH = 3


WORK = {State.FULL: 1.0, State.ATTENTION: 0.5, State.MLP: 0.5, State.BOTH: 0.0}
"""What is left to do, in shares of a step; attention and MLP cost about alike at 1024² in FLUX and Qwen-Image."""

Table = tuple[State, ...]


def single(step: int, total: int) -> State:
    """The one module that may be reused alone at this step."""
    return State.MLP if step < STAGE * total else State.ATTENTION


class World(Protocol):
    """What the walk asks of a model: how far a state would move the norm of each sample, and to go on with one."""

    def changes(self, step: int, state: State) -> Sequence[float]: ...
    def advance(self, step: int, state: State) -> None: ...


def walk(total: int, world: World, scale: float) -> Table:
    """Algorithm 1 over `total` steps; both ends are computed. `scale` is delta's."""
    table = []
    for step in range(total):
        state = State.FULL
        if 0 < step < total - 1:
            limit = scale * (0.5 + 1 - step / total)
            state = _voted(world.changes(step, State.BOTH), world, step, single(step, total), limit)
        world.advance(step, state)
        table.append(state)
    return tuple(table)


def _voted(both: Sequence[float], world: World, step: int, alone: State, limit: float) -> State:
    """The state that most samples can bear; where two have as many votes, the more careful one."""
    votes = [State.BOTH if change < limit else None for change in both]
    if None in votes:
        singles = world.changes(step, alone)
        votes = [vote or (alone if change < limit else State.FULL) for vote, change in zip(votes, singles, strict=True)]
    count = Counter(vote for vote in votes if vote is not None)
    return max(count, key=lambda state: (count[state], -state))


def work(table: Table) -> float:
    """The share of a run's work that is left."""
    return sum(WORK[state] for state in table) / len(table)


def fitted(total: int, world: Callable[[], World], wanted: float) -> Table:
    """The walk with the smallest scale that leaves at most this share of the work (or all that can be left out)."""
    low, high = 0.0, 1.0
    while work(walk(total, world(), high)) > wanted and high < LARGEST:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if work(walk(total, world(), middle)) > wanted else (low, middle)
    return walk(total, world(), high)


LARGEST, HALVINGS = 2.0**20, 40


@dataclass
class Drift:
    """The stated default where no model was measured: a reused module moves the norm by what the run has covered since
    it was computed, each module half. The run is covered at `placement`'s density, fastest at the start.
    """

    total: int
    computed: dict[State, int] = field(default_factory=dict)

    def changes(self, step: int, state: State) -> Sequence[float]:
        """One sample's."""
        reused = (State.ATTENTION, State.MLP) if state == State.BOTH else (state,)
        return [sum(self._covered(step) - self._covered(self.computed[module]) for module in reused) / 2]

    def advance(self, step: int, state: State) -> None:
        for module in (State.ATTENTION, State.MLP):
            if state not in (module, State.BOTH):
                self.computed[module] = step

    def _covered(self, step: int) -> float:
        return cumulative(step / max(self.total - 1, 1))


@lru_cache(maxsize=64)
def by_share(total: int, wanted: float) -> Table:
    """The default table of `total` steps with this share of the work."""
    return fitted(total, lambda: Drift(total), wanted)
