"""A profile in words: what was learned, how well each fit fits, and what the methods would make of it."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Collection, Iterator, Sequence

from ..cache_core.calibrated import Expectation
from ..cache_core.coefficients import TEACACHE
from ..cache_core.fits import explained_by, polynomial_of, surface_of
from ..cache_core.generators import Guided, smoothed
from ..cache_core.magnitudes import of_profile
from ..cache_core.placement import places
from ..cache_core.profile import MODULES, Profile
from ..cache_core.schedules import skipped
from ..cache_core.session import flow_noise
from ..cache_core.tables import State
from ..cache_core.types import CacheError, Schedule

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
    parts = {"modules": _modules, "trunk": _trunk, "branch": _branch, "course": _course, "gain": _gain}
    return "\n".join([head, *(line for group in profile.groups for line in parts[group](profile))])


def _places(values: Sequence[float], scale: float = 100.0) -> str:
    """The first, the middle and the last of what was measured."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < FEWEST:
        return "not measured"
    return ", ".join(f"{scale * value:.3g}" for value in (known[0], known[len(known) // 2], known[-1]))


def _trunk(profile: Profile) -> Iterator[str]:
    yield ""
    yield "From step to step: at the start, in the middle, at the end"
    for name, (table, scale, unit) in {
        "change of the blocks' residual": ("trunk.change", 100.0, " percent"),
        "change of the modulated input": ("trunk.signal", 100.0, " percent"),
        "change of the modulation": ("trunk.embedding", 100.0, " percent"),
        "residual's norm over the one before": ("trunk.magnitude", 1.0, ""),
    }.items():
        measured = profile.tables[table]
        mean = measured.flatten(0, 1).nanmean(0) if measured.ndim > 1 else measured
        yield f"{name}: {_places(mean.tolist(), scale)}{unit}"
    try:
        fit, (surface, surface_unit, explained) = polynomial_of(profile), surface_of(profile)
    except CacheError as error:
        yield f"Nothing can be fitted: {error}"
        return
    calibration = fit.calibration
    powers = ", ".join(f"{weight:.4g}" for weight in calibration.polynomial)
    low, high = calibration.domain or (0.0, math.inf)
    yield ""
    yield f"TeaCache, SpectralCache: P(d) = {powers} (highest power first), d from {low:.3g} to {high:.3g}"
    yield f"  explains {100 * fit.explained:.0f} % of the residual's change (R²) of {fit.pairs} steps"
    for other in (row for row in TEACACHE.values() if row.name == profile.about["family"]):
        yield f"  the published one explains {100 * explained_by(profile, other):.0f} % at its best scale"
    yield f"  unit {calibration.unit:.3g}: threshold 0.6 then computes about half of these runs' steps"
    yield f"PromptTea: P(x, t) of {len(surface)} terms explains {100 * explained:.0f} % (R²), unit {surface_unit:.3g}"
    with contextlib.suppress(CacheError):
        schedule = Schedule((*profile.tables["sigmas"].tolist(), 0.0), flow_noise)
        for limit in (0.06, 0.12, 0.24):
            rests = skipped(of_profile(profile), schedule, limit, 3, 0.2) - {0, profile.total - 1}
            yield f"MagCache, threshold {limit:g}:  {_shown(rests, profile.total)}"


def _branch(profile: Profile) -> Iterator[str]:
    yield ""
    difference = profile.tables["branch.difference"].nanmean(0).tolist()
    yield f"Difference of the two sides of guidance: {_places(difference)} percent (start, middle, end)"


def _course(profile: Profile) -> Iterator[str]:
    yield ""
    gram = profile.tables["course.gram"]
    size = gram.diagonal().sqrt()
    alike = (gram / size / size[:, None]).diagonal(1).tolist()
    yield f"Cosine of the derivative with the step before: {_places(alike, 1.0)} (start, middle, end)"
    amplified = profile.tables["course.amplified"].tolist()
    if not all(map(math.isfinite, amplified)):
        return
    yield f"An error of one step moves the picture's latent by {_places(amplified, 1.0)} times itself"
    with contextlib.suppress(CacheError):
        expectation = Expectation(profile)
        for share in (0.5, 0.6, 0.7):
            count = max(round(share * profile.total), 2)
            error = expectation.error(places(profile.total, count))
            yield f"SpectralCache Auto by it, {count} computed: error of the latent about {100 * error:.1f} %"


def _gain(profile: Profile) -> Iterator[str]:
    yield ""
    yield f"Gain of {profile.about['gained']}"
    yield f"predicted noise: {_places(profile.tables['gain.noise'].tolist(), 1.0)} (start, middle, end)"
    channels = profile.tables["gain.channels"]
    spread = f"{channels.min():.3g} to {channels.max():.3g}"
    yield f"channels: {_places(channels.mean(1).tolist(), 1.0)} in the mean, {spread} in all"


def _shown(rests: Collection[int], total: int) -> str:
    return "".join("x" if step in rests else "." for step in range(total))


def _modules(profile: Profile) -> Iterator[str]:
    yield ""
    yield "Change of a module's output, in percent, mean over blocks: at the start, in the middle, at the end"
    for kind in MODULES:
        for lag, rows in enumerate(profile.tables[f"{kind}.change"].nanmean(dim=2).tolist(), 1):
            yield f"{kind}, {lag} step{'s' * (lag > 1)}: {_places(rows)}"
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
        yield f"SmoothCache, alpha 0.15, {kind}:  {_shown(rests, profile.total)}"
