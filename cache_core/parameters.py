"""One statement of a parameter: widgets, checks, help, the bench's graphs and the trace derive from it.

A method's file holds one function, published with its parameters:

    @published("SpectralCache", PARAMETERS, ...)
    def spectralcache(threshold: float, ...) -> Method: ...

Calling it fills in defaults, checks every value and writes the values into the method, so that a trace tells them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .profile import Profile
from .types import CacheError, Method


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method. Its kind follows from the default: true or false, whole, a number, one of `choices`, or
    text where there are none.

    low, high: smallest and largest value; tooltip: what it does, in which direction it trades, typical values; folded:
    among the advanced inputs of a node; late: came behind the node's first release, so that old graphs lack it.
    """

    name: str
    default: bool | int | float | str
    tooltip: str
    low: float = 0.0
    high: float = 0.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    folded: bool = False
    late: bool = False

    def check(self, value: object) -> None:
        """Raise `CacheError` with the value and the way out; None counts as absent (a linked input before the run)."""
        if value is None:
            return
        if self.choices:
            if value not in self.choices:
                raise CacheError(f"{self.name} is {value!r}; use {' or '.join(self.choices)}")
        elif isinstance(self.default, str):
            if not isinstance(value, str):
                raise CacheError(f"{self.name} is {value!r}; use text")
        elif isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise CacheError(f"{self.name} is {value!r}; use true or false")
        elif not isinstance(value, (int, float)) or not math.isfinite(value) or not self.low <= value <= self.high:
            raise CacheError(f"{self.name} is {value}; use a number from {self.low:g} to {self.high:g}")
        elif isinstance(self.default, int) and value != int(value):
            raise CacheError(f"{self.name} is {value}; use a whole number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True, slots=True)
class Order:
    """Of two parameters the first may not exceed the second; `advice` says what to do."""

    lower: str
    upper: str
    advice: str

    def check(self, given: Mapping[str, Any]) -> None:
        least, most = given.get(self.lower), given.get(self.upper)
        if isinstance(least, (int, float)) and isinstance(most, (int, float)) and least > most:
            raise CacheError(f"{self.lower} {least} is above {self.upper} {most}; {self.advice}")


@dataclass(frozen=True, slots=True)
class Published:
    """A method's function with all that is stated of it once. Call it for a `Method`.

    never, refusing, skipping: settings with which nothing can be skipped, with which everything is recorded and every
    evaluation refused, and with which about two of three steps or more are skipped, on models of random weights too:
    the tests of the invariants run on these.
    variants: the same for other places that the method can be asked to use; aliases: further words by which the graph's
    search finds it; advice: one sentence on when to use it; own_node: whether it has a node of its own, besides being
    an option of Cache Method, and so runs in every test of the invariants; profiled: the groups of a profile that its
    function follows; it then takes one as `profile` (None where there is none).
    """

    title: str
    build: Callable[..., Method]
    parameters: tuple[Parameter, ...]
    orders: tuple[Order, ...]
    never: Mapping[str, Any]
    refusing: Mapping[str, Any]
    skipping: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...] = ()
    aliases: tuple[str, ...] = ()
    advice: str = ""
    own_node: bool = False
    profiled: tuple[str, ...] = ()

    def __call__(self, profile: Profile | None = None, **given: Any) -> Method:
        """The method with these values. Raises `CacheError` on values that no run could use and on unknown names, and
        for a profile that it would not use.
        """
        if profile is not None and not self.profiled:
            raise CacheError(f"{self.title} uses no profile; take it off")
        unknown = given.keys() - {parameter.name for parameter in self.parameters}
        if unknown:
            known = ", ".join(parameter.name for parameter in self.parameters)
            raise CacheError(f"{self.title} has no {' and no '.join(sorted(unknown))}; it has {known}")
        params = {**self.defaults, **given}
        self.check(params)
        if not self.profiled:
            return replace(self.build(**params), params=params)
        return replace(self.build(**params, profile=profile), params=params)

    @property
    def defaults(self) -> dict[str, Any]:
        return {parameter.name: parameter.default for parameter in self.parameters}

    @property
    def compared(self) -> tuple[str, ...]:
        """The parameters that have to be held against each other."""
        return tuple(dict.fromkeys(name for order in self.orders for name in (order.lower, order.upper)))

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `CacheError` where a value, or two of them together, cannot be used; any subset may be given."""
        for parameter in self.parameters:
            parameter.check(given.get(parameter.name))
        for order in self.orders:
            order.check(given)


def published(
    title: str,
    parameters: tuple[Parameter, ...],
    *,
    orders: tuple[Order, ...] = (),
    never: Mapping[str, Any],
    refusing: Mapping[str, Any],
    skipping: Mapping[str, Any],
    variants: tuple[Mapping[str, Any], ...] = (),
    aliases: tuple[str, ...] = (),
    advice: str = "",
    own_node: bool = False,
    profiled: tuple[str, ...] = (),
) -> Callable[[Callable[..., Method]], Published]:
    """Publish a method's function; see `Published`."""
    return lambda build: Published(
        title, build, parameters, orders, never, refusing, skipping, variants, aliases, advice, own_node, profiled
    )
