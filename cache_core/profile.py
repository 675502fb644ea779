"""What a calibration learned of one model: small tables with a header, read and written without running anything.

A profile is a safetensors file whose metadata hold one JSON text, so that loading it cannot execute code. Everything in
it is checked before it is used: sizes, names, types, finite figures where figures have to be finite.

    sigmas                         t      the run's noise levels, falling
    attention.change, mlp.change   k t l  |F_t - F_(t-lag)|_1 / |F_t|_1 at lags 1 .. k, by layer; NaN: not measured
    attention.norm, mlp.norm       t l    mean absolute output, by layer
    attention.noise, mlp.noise     k t n  norm of the predicted noise with that module `lag` steps old, over the norm
                                          without reuse, by sample (FEB-Cache, 2503.07120, Algorithm 1)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .types import CacheError

VERSION = 1
KEY = "spectralcache_profile"
LARGEST_FILE, LARGEST_HEADER = 64 * 2**20, 2**20
MODULES = ("attention", "mlp")
SHAPES = {
    "sigmas": "t",
    **{f"{module}.change": "ktl" for module in MODULES},
    **{f"{module}.norm": "tl" for module in MODULES},
    **{f"{module}.noise": "ktn" for module in MODULES},
}
WORDS = ("model", "family", "sampler", "scheduler", "date", "pack")
NUMBERS = ("steps", "cfg", "samples")


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """about: model (a fingerprint of its dimensions), family, sampler, scheduler, steps, cfg, samples, date, pack."""

    about: Mapping[str, Any]
    tables: Mapping[str, Tensor] = field(repr=False)

    @property
    def total(self) -> int:
        """The run's number of steps."""
        return int(self.tables["sigmas"].shape[0])

    def refusal(self, model: str, cfg: float | None = None) -> str:
        """Why it cannot be used with a model of this fingerprint, in half a sentence, or an empty string."""
        if self.about["model"] != model:
            return f"it was made for {self.about['family']} ({self.about['model']}), not for this model ({model})"
        if cfg is not None and (cfg > 1) != (self.about["cfg"] > 1):
            return f"it was made at CFG {self.about['cfg']:g}, and guidance changes what can be reused"
        return ""


def to_bytes(profile: Profile) -> bytes:
    """The file's content."""
    from safetensors.torch import save

    header = json.dumps({"version": VERSION, **profile.about}, sort_keys=True)
    tables = {name: table.detach().to("cpu", torch.float32).contiguous() for name, table in profile.tables.items()}
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
    return Profile(about, _checked(tables))


def _header(data: bytes) -> dict[str, Any]:
    """The JSON in the file's metadata."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 < size <= min(LARGEST_HEADER, len(data) - 8):
        raise CacheError("the file is no profile; make one with Cache Calibrate")
    try:
        metadata = json.loads(data[8 : 8 + size])["__metadata__"][KEY]
        about = json.loads(metadata)
        version, words = about["version"], {name: about[name] for name in WORDS}
        numbers = {name: about[name] for name in NUMBERS}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheError("the file is no profile; make one with Cache Calibrate") from None
    if version != VERSION:
        raise CacheError(f"the profile has version {version!r}, this pack reads {VERSION}; calibrate again")
    if not all(isinstance(word, str) and len(word) < LONGEST for word in words.values()):
        raise CacheError("the profile's header holds something else than words; calibrate again")
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers.values()):
        raise CacheError("the profile's header holds something else than numbers; calibrate again")
    return {**words, **numbers}


LONGEST = 500


def _checked(tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The known tables, each of the right shape; others, from newer versions, are left out."""
    sizes: dict[str, int] = {}
    known = {}
    for name, letters in SHAPES.items():
        table = tables.get(name)
        if table is None:
            raise CacheError(f"the profile lacks {name}; calibrate again")
        if table.dtype != torch.float32 or table.ndim != len(letters) or 0 in table.shape:
            raise CacheError(f"{name} in the profile is {table.dtype} of {tuple(table.shape)}; calibrate again")
        for letter, size in zip(letters, table.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise CacheError(f"{name} in the profile is {tuple(table.shape)}, which fits no other table")
        known[name] = table
    sigmas = known["sigmas"]
    if not bool(torch.isfinite(sigmas).all() and (sigmas[1:] < sigmas[:-1]).all() and (sigmas >= 0).all()):
        raise CacheError("the noise levels in the profile do not fall; calibrate again")
    return known
