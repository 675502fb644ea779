"""What a calibration learned of one model: small tables with a header, read and written without running anything.

A profile is a safetensors file whose metadata hold one JSON text, so that loading it cannot execute code. Everything in
it is checked before it is used: sizes, names, types, finite figures where figures have to be finite.

    sigmas                         t      the run's noise levels, falling

Behind it groups of tables, each whole or not there. NaN: not measured. c is the side of guidance (0 the positive, 1 the
negative prompt), n the sample, k the lag, l the layer; figures of step t compare it with the step before.

modules
    attention.change, mlp.change   k t l  |F_t - F_(t-lag)|_1 / |F_t|_1 at lags 1 .. k, by layer
    attention.norm, mlp.norm       t l    mean absolute output, by layer
    attention.noise, mlp.noise,    k t n  norm of the predicted noise with that module, or both, `lag` steps old, over
    both.noise                            the norm without reuse, by sample (FEB-Cache, 2503.07120, Algorithm 1)
trunk
    trunk.signal                   c n t  relative L1 change of the first block's modulated input (TeaCache's d)
    trunk.change                   c n t  relative L1 change of the trunk's residual
    trunk.magnitude                c n t  mean over tokens of |r_t|_2 / |r_(t-1)|_2 (MagCache's gamma)
    trunk.embedding                t      relative L1 change of the vector that modulates the blocks (PromptTea's x)
branch
    branch.difference              n t    |v_uncond - v_cond|_1 / |v_cond|_1 of the ODE derivatives
course
    course.gram                    t t    <F_s, F_t> of the guided result's ODE derivatives, mean over samples, over
                                          their mean square: float64, since differences of neighbours count
    course.amplified               t      |change of the last latent| over |change of F_t| times the step's width
gain: what the cache named in the header as `gained` does to a run (`gains`); d is the latent's channel
    gain.noise                     t      norm of the predicted noise without the cache over the one with it
    gain.channels                  t d    cov(x, x^) / var(x^) of the denoised latents
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .types import CacheError

VERSION = 1
KEY = "spectralcache_profile"
LARGEST_FILE, LARGEST_HEADER = 64 * 2**20, 2**20
MODULES, BOTH = ("attention", "mlp"), "both"
ALWAYS = {"sigmas": "t"}
GROUPS: Mapping[str, Mapping[str, str]] = {
    "modules": {
        **{f"{module}.change": "ktl" for module in MODULES},
        **{f"{module}.norm": "tl" for module in MODULES},
        **{f"{module}.noise": "ktn" for module in (*MODULES, BOTH)},
    },
    "trunk": {"trunk.signal": "cnt", "trunk.change": "cnt", "trunk.magnitude": "cnt", "trunk.embedding": "t"},
    "branch": {"branch.difference": "nt"},
    "course": {"course.gram": "tt", "course.amplified": "t"},
    "gain": {"gain.noise": "t", "gain.channels": "td"},
}
"""The tables of each group, and a letter for each of their axes."""
WIDE = frozenset({"course.gram"})
"""Tables in float64."""
WORDS = ("model", "family", "sampler", "scheduler", "size", "date", "pack", "name")
LATE = {"gained": ""}
"""Words that older profiles lack, and what they then are."""
NUMBERS = ("steps", "cfg", "samples", "shift")
GUIDANCE, AREA = 2.0, 8.0
"""By what factor a run's CFG, and the area of its latent, may differ from the profile's."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """about: model (a fingerprint of its dimensions), family, sampler, scheduler, size (of the latent), date, pack,
    name (by which it is stored), steps, cfg, samples, shift (0: not known), gained (the cache whose gain it holds, as
    `gains.settings` says it).
    """

    about: Mapping[str, Any]
    tables: Mapping[str, Tensor] = field(repr=False)

    @property
    def total(self) -> int:
        """The run's number of steps."""
        return int(self.tables["sigmas"].shape[0])

    @property
    def groups(self) -> tuple[str, ...]:
        """What it holds."""
        return tuple(group for group, tables in GROUPS.items() if tables.keys() <= self.tables.keys())

    @property
    def title(self) -> str:
        """Which one it is, for people."""
        about = self.about
        return (
            f"{about['name'] or 'unnamed'} ({about['family']}, {about['sampler']}, {about['scheduler']}, "
            f"{about['steps']} steps, CFG {about['cfg']:g}, {about['date']})"
        )

    def lacks(self, groups: tuple[str, ...]) -> str:
        """Why a method that asks for these groups cannot use it, in half a sentence, or an empty string."""
        missing = [group for group in groups if group not in self.groups]
        return f"it holds nothing of {' and '.join(IN_WORDS[group] for group in missing)}" if missing else ""

    def refusal(self, model: str) -> str:
        """Why it cannot be used with a model of this fingerprint, in half a sentence, or an empty string."""
        if self.about["model"] == model:
            return ""
        return f"it was made for {self.about['family']} ({self.about['model']}), not for this model ({model})"

    def refusal_in(
        self, sampler: str, noisy: bool, cfg: float | None, was_noisy: bool, size: tuple[int, ...] = ()
    ) -> str:
        """Why it cannot be used in a run of this sampler, CFG (None: not known) and size of the latent (empty: not
        known), in half a sentence, or an empty string. noisy, was_noisy: whether this sampler, or the profile's, adds
        noise of its own: the two move apart.
        """
        about = self.about
        larger = math.prod(size) / max(math.prod(int(side) for side in re.findall(r"\d+", about["size"])), 1)
        if size and not 1 / AREA <= larger <= AREA:
            return f"it was made at a latent of {about['size']}, this run has {' x '.join(str(side) for side in size)}"
        if noisy != was_noisy:
            kinds = ("adds noise of its own" if noisy else "adds no noise", "did" if was_noisy else "did not")
            return f"{sampler} {kinds[0]}, which {about['sampler']}, with which it was made, {kinds[1]}"
        if cfg is None:
            return ""
        least, most = sorted((max(cfg, 1.0), max(about["cfg"], 1.0)))
        if (least == 1) != (most == 1) or most > GUIDANCE * least:
            return f"it was made at CFG {about['cfg']:g}, this run has {cfg:g}, and guidance changes what can be reused"
        return ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A profile that could not be read: which, and why, in half a sentence."""

    name: str
    why: str


IN_WORDS = {
    "modules": "attention and MLP",
    "trunk": "the blocks as a whole",
    "branch": "the two sides of guidance",
    "course": "the run's course",
    "gain": "a cache's gain",
}


def to_bytes(profile: Profile) -> bytes:
    """The file's content."""
    from safetensors.torch import save

    header = json.dumps({"version": VERSION, **profile.about}, sort_keys=True)
    tables = {name: table.detach().to("cpu", _dtype(name)).contiguous() for name, table in profile.tables.items()}
    return save(tables, {KEY: header})


def from_bytes(data: bytes) -> Profile:
    """The profile in a file's content. Raises `CacheError` with the reason for anything else, however broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(data) > LARGEST_FILE:
        raise CacheError(f"the profile has {len(data)} bytes; none is larger than {LARGEST_FILE}")
    about = _header(data)
    try:
        tables = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CacheError(f"the profile cannot be read ({error}); calibrate again") from None
    found = Profile(about, _checked(tables))
    if found.total != about["steps"]:
        raise CacheError(f"the profile says {about['steps']} steps and holds {found.total}; calibrate again")
    return found


def _header(data: bytes) -> dict[str, Any]:
    """The JSON in the file's metadata."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 < size <= min(LARGEST_HEADER, len(data) - 8):
        raise CacheError("the file is no profile; make one with Cache Calibrate")
    try:
        metadata = json.loads(data[8 : 8 + size])["__metadata__"][KEY]
        about = json.loads(metadata)
        version, words = about["version"], {name: about[name] for name in WORDS}
        late = {name: about.get(name, default) for name, default in LATE.items()}
        numbers = {name: about[name] for name in NUMBERS}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheError("the file is no profile; make one with Cache Calibrate") from None
    if version != VERSION:
        raise CacheError(f"the profile has version {str(version)[:20]}, this pack reads {VERSION}; calibrate again")
    short = all(isinstance(word, str) and len(word) < LONGEST for word in words.values())
    if not short or not all(isinstance(word, str) and len(word) < LONGEST_SETTINGS for word in late.values()):
        raise CacheError("the profile's header holds something else than words; calibrate again")
    if not all(type(n) in (int, float) and 0 <= n <= LARGEST_NUMBER for n in numbers.values()):
        raise CacheError("the profile's header holds something else than numbers; calibrate again")
    return {**words, **numbers, **late}


LONGEST, LONGEST_SETTINGS, LARGEST_NUMBER = 200, 4000, 1e9


def _checked(tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The known tables, each of the right shape, every group whole; others, from newer versions, are left out."""
    groups = [group for group in GROUPS.values() if group.keys() & tables.keys()]
    if not groups:
        raise CacheError("the profile holds none of the tables that are known here; calibrate again")
    sizes: dict[str, int] = {}
    known = {}
    for name, letters in {name: axes for group in (ALWAYS, *groups) for name, axes in group.items()}.items():
        table = tables.get(name)
        if table is None:
            raise CacheError(f"the profile lacks {name}; calibrate again")
        if table.dtype != _dtype(name) or table.ndim != len(letters) or 0 in table.shape:
            raise CacheError(f"{name} in the profile is {table.dtype} of {tuple(table.shape)}; calibrate again")
        for letter, size in zip(letters, table.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise CacheError(f"{name} in the profile is {tuple(table.shape)}, which fits no other table")
        if bool(torch.isinf(table).any()):
            raise CacheError(f"{name} in the profile holds infinite figures; calibrate again")
        known[name] = table
    sigmas = known["sigmas"]
    if not bool(torch.isfinite(sigmas).all() and (sigmas[1:] < sigmas[:-1]).all() and (sigmas >= 0).all()):
        raise CacheError("the noise levels in the profile do not fall; calibrate again")
    return known


def _dtype(name: str) -> torch.dtype:
    return torch.float64 if name in WIDE else torch.float32
