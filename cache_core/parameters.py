"""Checking the parameters of a method: one message for every way in which they can be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .types import CacheError

Ranges = Mapping[str, tuple[float, float]]
Ordered = Iterable[tuple[str, str, str]]


def check(
    params: Mapping[str, object],
    ranges: Ranges,
    ordered: Ordered = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Raise `CacheError` with the value and the way out.

    `params` may be any subset of the parameters; None counts as absent (a linked input before the run). `ordered` holds
    (lower, upper, advice).
    """
    for name, (low, high) in ranges.items():
        value = params.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
            raise CacheError(f"{name} is {value}; use a number from {low:g} to {high:g}")
    for name, known in (choices or {}).items():
        value = params.get(name)
        if value is not None and value not in known:
            raise CacheError(f"{name} is {value!r}; use {' or '.join(known)}")
    for lower, upper, advice in ordered:
        least, most = params.get(lower), params.get(upper)
        if isinstance(least, (int, float)) and isinstance(most, (int, float)) and least > most:
            raise CacheError(f"{lower} {least} is above {upper} {most}; {advice}")
