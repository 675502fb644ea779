"""The course of a run: which step an evaluation belongs to, told by order where noise levels do not tell it.

Most samplers show a model the schedule's own noise levels, or levels between two of them, and the rule of
`Schedule.index` holds. Some do not: with churn a step begins above its own level, and wrappers show levels that are
lower than the schedule's. Samplers report every step to a callback; an evaluation belongs to the last step that was
reported or to the next one, and how many evaluations passed between the last two reports says to which.

Evaluations that stand apart belong to no step: they are computed and leave no trace in any history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .types import SIGMA_TOLERANCE, Schedule, Step

SIGMA_ROSE, SIGMA_ZERO, OTHER_SIZE = "sigma rose", "sigma 0", "another size"
REACH = 2
"""So many steps ahead of the one in progress an evaluation may lie on the schedule (heunpp2)."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where an evaluation stands: its step; why it stands apart, or nothing; whether the schedule starts again."""

    step: Step
    apart: str = ""
    again: bool = False


class Course:
    """What a run has shown so far. `told` is the newest step that the sampler has reported; first: the step of the
    schedule that it begins at, and counts from.
    """

    def __init__(self, schedule: Schedule, first: int = 0) -> None:
        self.schedule, self.first = schedule, first
        self.told: int | None = None
        self._stages: dict[int, int] = {}
        self._before: float | None = None
        self._index = first
        self._above = 1.0
        self._since, self._usual = 0, 0
        self._size: tuple[int, ...] | None = None
        self._last_size: tuple[int, ...] | None = None

    @property
    def revisits(self) -> bool:
        """Whether the sampler evaluates steps more than once."""
        return max(self._stages.values(), default=0) > 1

    def report(self, step: int) -> None:
        """The sampler says that it has come to this step."""
        if self.told is not None:
            self._usual = self._since
        self.told, self._since = self.first + step, 0

    def other_size(self, shape: tuple[int, ...]) -> bool:
        """Whether this evaluation is of another size than the run's. The second one in a row is the run's new size."""
        same = self._size in (None, shape) or self._last_size == shape
        self._size, self._last_size = shape if same else self._size, shape
        return not same

    def visit(self, sigma: float, *, ordered: bool, apart: str = "") -> Stand:
        """Locate an evaluation, and count it. `ordered`: it is in progress, so that its place in the order is known."""
        plain = self.schedule.index(sigma)
        if apart or (ordered and sigma <= 0):
            return Stand(self.schedule.at(sigma), apart or SIGMA_ZERO)
        index = self._ordered(sigma, plain) if ordered else plain
        again = ordered and plain == 0 and self._index >= REACH and self._on(sigma, 0)
        if again:
            self._stages, index, self.told, self._usual, self._above = {}, 0, None, 0, 1.0
        stage = self._stages.get(index, 0)
        self._stages[index] = stage + 1
        step = self.schedule.at(sigma, stage)
        if index != plain:
            step = self._moved(step, index)
        rising = self._before is not None and sigma > self._before * (1 + SIGMA_TOLERANCE)
        rising &= not again and (index == plain or index < self._index)
        self._before, self._index = sigma, index
        self._since += 1
        return Stand(step, SIGMA_ROSE if rising else "", again)

    def _on(self, sigma: float, index: int) -> bool:
        return abs(sigma - self.schedule.sigmas[index]) <= SIGMA_TOLERANCE * self.schedule.sigmas[index]

    def _ordered(self, sigma: float, plain: int) -> int:
        """The step by order, where it differs from the plain rule's."""
        total = self.schedule.total
        if self.told is None:
            return self._scaled(sigma, plain)
        first, last = min(self.told, total - 1), min(self.told + 1, total - 1)
        if any(self._on(sigma, i) for i in range(first, min(first + REACH, total - 1) + 1)):
            return plain
        if self._usual and self._since + 1 >= self._usual:  # those of the step in progress have been
            return last
        return min(max(plain, first), last)

    def _scaled(self, sigma: float, plain: int) -> int:
        """The step of a sampler that reports nothing: one that began above the schedule goes on at that distance."""
        top = self.schedule.sigmas[0]
        if self._before is None and sigma > top * (1 + SIGMA_TOLERANCE):
            self._above = sigma / top
        if self._above == 1.0 or self._on(sigma, plain):
            return plain
        return self.schedule.index(sigma / self._above)

    def _moved(self, step: Step, index: int) -> Step:
        """The same evaluation as one of this step: at the step's own noise level, or within the step."""
        own = self.schedule.at(self.schedule.sigmas[index], step.stage)
        below = self.schedule.sigmas[index + 1]
        if below < step.sigma < own.sigma and not (self._usual and self._since + 1 >= self._usual):
            offset = (own.sigma - step.sigma) / (own.sigma - below)
            return replace(own, sigma=step.sigma, offset=offset, log_noise=step.log_noise)
        return replace(own, index=index)
