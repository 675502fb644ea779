"""A profile beside a method: whether it can be used, and what a run says of it.

A profile that cannot be used costs nothing but what it would have given: the method follows its stated default, and the
run says why. Of another model, or unreadable, it is refused at the node; of another kind of sampler or CFG when the run
begins, which alone knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cache_core.gains import by_profile
from ..cache_core.parameters import Published
from ..cache_core.profile import Profile, Refused
from ..cache_core.types import CacheError, Method

MAKER = "Cache Calibrate or Cache Profile"
OFF, GAIN = "off", "gain"
GAINS = (OFF, "noise", "channels")
"""What of a cache's effect is taken back (`gains`)."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What came in as `profile` beside a method. why: why it was refused already; plain: the method without it, None
    where it cannot do without.
    """

    profile: Profile | None = None
    plain: Method | None = None
    why: str = ""

    def refusal(
        self, sampler: str, noisy: bool, cfg: float | None, is_noisy: Callable[[str], bool], size: tuple[int, ...]
    ) -> str:
        """Why a run of this sampler goes without, in a sentence, or an empty string. noisy: whether it adds noise of
        its own, as `is_noisy` says of a name; size: the latent's sides.
        """
        if self.profile is None:
            return self.why
        why = self.profile.refusal_in(sampler, noisy, cfg, is_noisy(self.profile.about["sampler"]), size)
        return unused(self.profile.title, why) if why else ""


def built(
    fingerprint: str, published: Published, profile: Any, params: Mapping[str, Any]
) -> tuple[Method, Learned | None]:
    """The method with these parameters for a model of this fingerprint, with what came in as its profile."""
    if profile is None:
        return published(None, **params), None
    why = refusal(fingerprint, published, profile)
    try:
        plain = published(None, **params)
    except CacheError as error:
        if why:
            raise CacheError(f"{why}; and without one: {error}") from None
        plain = None
    if why and plain is not None:
        return plain, Learned(why=why)
    try:
        return published(profile, **params), Learned(profile, plain)
    except CacheError as error:  # nothing can be made of its tables
        if plain is None:
            raise
        return plain, Learned(why=unused(profile.title, str(error)))


def gained(
    fingerprint: str, published: Published, profile: Any, params: Mapping[str, Any], gain: str
) -> tuple[Method, Learned | None]:
    """The same with a gain of `GAINS`, which is then all that the profile is for."""
    if gain == OFF:
        return built(fingerprint, published, profile, params)
    if profile is None:
        raise CacheError(f"gain is {gain}, but there is no profile; connect {MAKER}, or switch gain off")
    plain, _ = built(fingerprint, published, None, params)
    why = _unusable(fingerprint, profile, (GAIN,))
    if why:
        return plain, Learned(why=why)
    try:
        return by_profile(plain, profile, "noise" if gain == "noise" else "channels"), Learned(profile, plain)
    except CacheError as error:
        return plain, Learned(why=unused(profile.title, str(error)))


def refusal(fingerprint: str, published: Published, profile: Any) -> str:
    """Why the method goes without this profile, in a sentence, or an empty string."""
    if isinstance(profile, Profile) and not published.profiled:
        return f"{published.title} uses no profile; the one that is connected changes nothing"
    return _unusable(fingerprint, profile, published.profiled)


def _unusable(fingerprint: str, profile: Any, groups: tuple[str, ...]) -> str:
    """Why nothing of these groups can be had from it on a model of this fingerprint, or an empty string."""
    if isinstance(profile, Refused):
        return unused(profile.name, profile.why)
    if not isinstance(profile, Profile):
        return unused("connected", f"it is {type(profile).__name__}; connect {MAKER}")
    why = profile.refusal(fingerprint) or profile.lacks(groups)
    return unused(profile.title, f"{why}; calibrate again") if why else ""


def unused(title: str, why: str) -> str:
    return f"the profile {title} is not used: {why}"
