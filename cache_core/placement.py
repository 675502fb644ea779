"""Where a fixed number of computed steps does most good: a density over the run, early-dense, with a shorter last gap.

Denoisers bend most at the start and once more at the very end (measured on the small FLUX: the second difference of the
velocity falls by 30 over the run and rises by 4 in the last tenth). A forecast's error grows with the cube of a gap, so
even errors need steps at a density of the curvature's cube root.

How much more it bends at the start differs from picture to picture and shows in the run: by how much the feature
changes between the first two computed steps, relative to its length. At CFG 1 that is some 0.06 on the small FLUX and
the rest of the run matters nearly as much; with guidance, real or as a number, it is 0.1 to 1, and so it is for the odd
picture at CFG 1. So once two steps are known the density of the rest goes from FLAT to EARLY (`opening`). 6, 8, 12 of
28 steps, dpmpp_2m, ten pairs that no table uses, FLAT throughout instead of EARLY: +0.9, +1.5, +4.9 dB at CFG 1, -0.4,
-3.5, -6.7 dB at CFG 3; with the guidance as a number -1.0, -2.2, -6.0 dB. Lists with wide steps between narrow ones
keep EARLY (`ragged`): evenly placed steps may miss all the wide ones (wide and narrow by turns, 10 of 20 steps, CFG 1:
dpmpp_2m from 2.3 dB over fewer steps to 3.5 below).

BudCache (arXiv 2606.13496), MeanCache (2601.19961) and DPCache (2602.22654) search the places on the model itself; this
is a formula for models that nobody searched.

With t = step / (T - 1):   density(t) = 1 / (early + t) · (1 + LATE · max(0, t - TAIL) / (1 - TAIL))

What bends is the denoiser over the noise, not over the steps. The density was chosen on schedules of shift 1.5; one of
shift 13 takes half of its steps where next to nothing bends, and few where all does (10 of 20 steps, dpmpp_2m, CFG 3:
35 dB placed by step, 54 dB by noise; fewer steps 36). So steps of such schedules count by where they would stand on one
of shift USUAL (`even`):

    sigma = s·u / (1 + (s - 1)·u), u from 1 to 0: evenly spaced u are a schedule of shift s

A schedule of shift USUAL or less counts its steps as they are, and so does one of another kind of model. (Placed by
noise, lists that are uneven in other ways came out worse: a narrow step behind a wide gap has to be computed with it,
since multistep solvers divide by its width.) A run that ends on the way, as the first of two experts does, is counted
alike: the first 10 of 20 steps of shift 8, 4 of them computed, 67 -> 73 dB at CFG 1, no other places at CFG 3.

A run that does not begin with pure noise (denoise below 1, the second expert) starts like any other, over as much of
the way and so over more of the run: `early` is a length on the way, of which `begun` tells how much lies behind. Six
pairs, two models, 5 of 20 steps: denoise 0.3 +2.2 to +5.3 dB, 0.5 +2.0 to +2.7, 0.75 -1.1 to +1.9; 10 of 20: -1.6 to
+1.2. Counting u from the start of the whole way instead (1 / (early + begun + t)), or a higher power of what is left,
lost 3 to 7 dB with 10 of 20 steps, denoise 0.75, CFG 3.

Some lists end in a step of next to nothing (normal, ddim_uniform, kl_optimal, OptimalSteps): from sigma 0.16 to 0.01 to
0 with normal, 20 steps of shift 3. The last step cannot repair there what the one before it missed, so that both are
the end (`ending`): 10 of 20 steps there, six samplers, two pairs: +5 dB at CFG 1, +4 at CFG 3. Where the step before
starts from little noise already it is not worth one of the others: kl_optimal, from 0.04, -1 and -5 dB.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

EARLY, LATE, TAIL = 0.2, 1.5, 0.8
"""Constants of the density, chosen on prompts and seeds that no table of the bench uses."""
FLAT, CALM, LIVELY = 0.6, 0.06, 0.12
"""What `early` is in place of EARLY where the first change is at most CALM; from LIVELY on it is EARLY."""
USUAL = 3.0
"""The largest shift whose steps count as they are."""
ALIKE = 0.1
"""A shift so little above it (relative) is still usual: FLUX's own is 3.16."""
WHOLE, LITTLE = 0.82, 0.1
"""A run that begins at so large a u is a whole one: the U-Nets' schedules begin at sigma 14.6, not with pure noise.
Where less than LITTLE of the way is left, its start is as even as there.
"""
SPIKE = 2.0
"""How many times what either neighbour takes makes a step a wide one between narrow ones."""
LEAST = 1e-6
"""How close to pure noise a level counts."""
SLIGHT, NOISY, ENOUGH = 0.25, math.log(0.1), 3
"""A last step is next to nothing below this share of the one before it; that one matters from this logarithm of noise
over signal on, and where so many steps are left for the run behind its first.
"""


def opening(change: float) -> float:
    """`early` of a run whose feature changes by so much, relative to its length, between its first two computed steps;
    0: not known yet; NaN where a model gives that.
    """
    if not change > 0:
        return EARLY
    share = math.log(change / CALM) / math.log(LIVELY / CALM)
    return FLAT * (EARLY / FLAT) ** min(max(share, 0.0), 1.0)


def ragged(sigmas: Sequence[float]) -> bool:
    """Whether a step takes more than SPIKE times what each of its neighbours takes (the last step aside)."""
    widths = [above - below for above, below in itertools.pairwise(sigmas)][:-1]
    return any(
        here > SPIKE * before and here > SPIKE * after
        for before, here, after in zip(widths, widths[1:], widths[2:], strict=False)
    )


def cumulative(t: float, early: float = EARLY) -> float:
    """The integral of the density from 0 to t, for t in 0 .. 1."""
    grown = math.log((early + t) / early)
    if t > TAIL:
        grown += LATE / (1 - TAIL) * ((t - TAIL) - (early + TAIL) * math.log((early + t) / (early + TAIL)))
    return grown


def inverse(mass: float, early: float = EARLY) -> float:
    """The t at which `cumulative` reaches `mass`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cumulative(middle, early) < mass else (low, middle)
    return (low + high) / 2


def even(sigmas: tuple[float, ...]) -> tuple[float, ...] | None:
    """Where each of a flow model's T steps stands, 0 to T, counted by noise; None where it is its own number. The run
    may begin or end on the way.
    """
    total = len(sigmas) - 1
    if total < 2 or any(after >= before for before, after in itertools.pairwise(sigmas)):
        return None
    odds = [_odds(sigma) for sigma in sigmas]
    if _shift(odds) <= USUAL * (1 + ALIKE):
        return None
    left = [_usual(each) for each in odds]
    return tuple(total * (left[0] - each) / (left[0] - left[-1]) for each in left[:-1])


def begun(sigma: float, flow: bool) -> float:
    """The share of the way from noise to picture that lies before a run's first noise level, by its u on a schedule of
    shift USUAL: 0 for a whole run, 1 without noise. flow: whether the signal's scale is 1 - sigma, or 1.
    """
    return max(1 - _usual(_odds(sigma) if flow else sigma) / WHOLE, 0.0)


def late(early: float, begun: float) -> float:
    """`early`, a length on the whole way, as a share of what is left of it behind this share."""
    return early / max(1 - begun, LITTLE)


def _odds(sigma: float) -> float:
    """Noise over signal, of a flow model."""
    return sigma / max(1 - sigma, LEAST)


def _usual(odds: float) -> float:
    """The u at which a schedule of shift USUAL has these odds."""
    return odds / (odds + USUAL)


def _shift(odds: Sequence[float]) -> float:
    """The shift s with which the middle step's u = odds / (odds + s) lies in the middle; infinite where none does."""
    middle = (len(odds) - 1) // 2
    share = middle / (len(odds) - 1)
    first, here, last = odds[0], odds[middle], odds[-1]
    below = (1 - share) * first + share * last - here
    above = here * (first + last) - (1 - share) * first * (here + last) - share * last * (first + here)
    return above / below if below > 0 else math.inf


def ending(sigmas: Sequence[float], log_noise: float, left: int) -> int:
    """How many steps are the end of a run, 1 or 2. log_noise: over signal, where the step before the last one starts;
    left: steps that are still to be computed behind the first.
    """
    if len(sigmas) < 4 or left < ENOUGH:
        return 1
    before, last = sigmas[-3] - sigmas[-2], sigmas[-2] - sigmas[-1]
    return 2 if last < SLIGHT * before and log_noise >= NOISY else 1


def following(
    step: int, left: int, end: int, stride: float = 1.0, stands: Sequence[float] | None = None, early: float = EARLY
) -> int:
    """The next computed step behind `step`, with `left` of them still to place, the last of which is `end`.

    stride: above 1 the next one comes later than the density says, below 1 earlier; those behind it share the rest.
    stands: where each step counts, its own number unless given; early: see `opening`. There are always steps enough
    for the others: step < result <= end - left + 1.
    """
    if left <= 1 or end <= 0:
        return end
    scale = end / stands[end] if stands else 1.0
    here = (stands[step] * scale if stands else step) if step > 0 else 0
    done, last = cumulative(here / end, early), cumulative(1.0, early)
    place = end * inverse(done + stride * (last - done) / left, early)
    if stands:
        place = _step_at(place / scale, stands, end)
    return max(step + 1, min(round(place), end - left + 1))


def _step_at(stand: float, stands: Sequence[float], end: int) -> float:
    """The step, with a fraction, that stands there."""
    above = min(max(bisect.bisect_left(stands, stand, 0, end + 1), 1), end)
    before, after = stands[above - 1 : above + 1]
    return above - 1 + (stand - before) / (after - before)


def places(total: int, count: int, stands: Sequence[float] | None = None, early: float = EARLY) -> list[int]:
    """All computed steps of a run of `total` if nothing moves them: the first, the last, `count` in all."""
    found = [0]
    while len(found) < count and found[-1] < total - 1:
        found.append(following(found[-1], count - len(found), total - 1, stands=stands, early=early))
    return found
