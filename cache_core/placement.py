"""Where a fixed number of computed steps does most good: a density over the run, early-dense, with a shorter last gap.

Denoisers bend most at the start and once more at the very end (measured on the small FLUX: the second difference of the
velocity falls by 30 over the run and rises by 4 in the last tenth). A forecast's error grows with the cube of a gap, so
even errors need steps at a density of the curvature's cube root.

BudCache (arXiv 2606.13496), MeanCache (2601.19961) and DPCache (2602.22654) search the places on the model itself; this
is a formula for models that nobody searched.

With t = step / (T - 1):   density(t) = 1 / (EARLY + t) · (1 + LATE · max(0, t - TAIL) / (1 - TAIL))
"""

from __future__ import annotations

import math

EARLY, LATE, TAIL = 0.2, 1.5, 0.8
"""Constants of the density, chosen on prompts and seeds that no table of the bench uses."""


def cumulative(t: float) -> float:
    """The integral of the density from 0 to t, for t in 0 .. 1."""
    grown = math.log((EARLY + t) / EARLY)
    if t > TAIL:
        grown += LATE / (1 - TAIL) * ((t - TAIL) - (EARLY + TAIL) * math.log((EARLY + t) / (EARLY + TAIL)))
    return grown


def inverse(mass: float) -> float:
    """The t at which `cumulative` reaches `mass`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cumulative(middle) < mass else (low, middle)
    return (low + high) / 2


def following(step: int, left: int, end: int, stride: float = 1.0) -> int:
    """The next computed step behind `step`, with `left` of them still to place, the last of which is `end`.

    stride: above 1 the next one comes later than the density says, below 1 earlier; those behind it share the rest.
    There are always steps enough for the others: step < result <= end - left + 1.
    """
    if left <= 1 or end <= 0:
        return end
    here, last = cumulative(max(step, 0) / end), cumulative(1.0)
    place = round(end * inverse(here + stride * (last - here) / left))
    return max(step + 1, min(place, end - left + 1))


def places(total: int, count: int) -> list[int]:
    """All computed steps of a run of `total` if nothing moves them: the first, the last, `count` in all."""
    found = [0]
    while len(found) < count and found[-1] < total - 1:
        found.append(following(found[-1], count - len(found), total - 1))
    return found
