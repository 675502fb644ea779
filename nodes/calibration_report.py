"""A profile in words: what was learned, how well each fit fits, and what the methods would make of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from ..cache_core.generators import Guided, smoothed
from ..cache_core.profile import MODULES, Profile
from ..cache_core.tables import State

LETTERS = ".amX"
FEWEST = 3
"""Steps in which something must have been measured to be shown."""


def report(profile: Profile) -> str:
    """The profile in words."""
    about = profile.about
    head = (
        f"{about['model']}; {about['sampler']}, {about['scheduler']}, {about['steps']} steps, CFG {about['cfg']:g}, "
        f"{about['samples']} samples of {about['size']}, {about['date']}"
    )
    parts = {"modules": _modules}
    return "\n".join([head, *(line for group in profile.groups if group in parts for line in parts[group](profile))])


def _modules(profile: Profile) -> Iterator[str]:
    yield ""
    yield "Change of a module's output, in percent, mean over blocks: at the start, in the middle, at the end"
    for kind in MODULES:
        for lag, rows in enumerate(profile.tables[f"{kind}.change"].nanmean(dim=2).tolist(), 1):
            known = [value for value in rows if math.isfinite(value)]
            if len(known) >= FEWEST:
                places = (known[0], known[len(known) // 2], known[-1])
                yield f"{kind}, {lag} step{'s' * (lag > 1)}: " + ", ".join(f"{100 * v:.1f}" for v in places)
    yield ""
    yield "What the methods make of it (X both reused, m the MLP, a attention, . computed)"
    guided = Guided(profile)
    for wanted in (0.7, 0.5, 0.35):
        table, gains = guided.table(wanted), guided.gains(wanted)
        off = [gain for gain, state in zip(gains, table, strict=True) if state]
        gain = f", noise times {statistics.fmean(off):.3f} in the mean" if off else ""
        yield f"FEB-Cache, work {wanted:g}:  {''.join(LETTERS[state] for state in table)}{gain}"
    for state, kind in zip((State.ATTENTION, State.MLP), MODULES, strict=True):
        rests = smoothed(profile, state, 0.15, 3)
        shown = "".join("x" if step in rests else "." for step in range(profile.total))
        yield f"SmoothCache, alpha 0.15, {kind}:  {shown}"
