"""Why a run is sampled uncached, and what a user should know of one that is cached: steps, sampler, other caches."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..cache_core.session import THROWN_AWAY
from .samplers import AUTO_REGRESSIVE_SAMPLER, FREE_RUNNING_SAMPLERS, LATENT_MADE_ANEW, names_of

MIN_STEPS, FEW_STEPS = 5, 9
AUTO_REGRESSIVE = "auto-regressive video keeps a memory of its own, which every step has to write, so all are computed"
OTHER_CACHES = (
    "easycache",
    "lazycache",
    "teacache",
    "magcache",
    "fbcache",
    "first_block",
    "wavespeed",
    "cache_dit",
    "cachedit",
    "taylorseer",
    "seacache",
    "meancache",
    "deepcache",
    "flowcache",
)
"""Names of other caches, wherever they occur in a mark."""
OTHER_CACHES_AS_WORDS = (
    "spectrum",
    "wan_cache",
    "ltx2_cache",
    "hicache",
    "fsampler",
    "sada",
    "dicache",
    "toca",
    "duca",
    "foca",
    "dbcache",
    "speca",
)
"""Those that are part of other words too: they count only between separators."""
FORWARDS = ("forward", "_forward", "forward_orig")
"""Functions of a model that caches replace."""


def obstacles(
    sampler: Any, sigmas: Sequence[float], model_options: Mapping[str, Any], bare: Any, key: str
) -> Iterator[str]:
    """Why this run is sampled uncached, a sentence each; `key` marks what is ours on the model."""
    names = names_of(sampler)
    if any(mark in name for name in names for mark in FREE_RUNNING_SAMPLERS):
        yield "dpm_fast and dpm_adaptive choose their own noise levels, so steps cannot be told apart: use another"
    if LATENT_MADE_ANEW in names:
        yield THROWN_AWAY
    if AUTO_REGRESSIVE_SAMPLER in names:
        yield AUTO_REGRESSIVE
    if any(after > before for before, after in itertools.pairwise(sigmas)):
        yield "the sigmas do not fall from step to step; use a falling schedule to skip"
    if "multigpu_clones" in model_options:
        yield "multi-GPU runs are computed in full"
    others = other_caches(model_options, bare, key)
    if others:
        yield f"another cache is on this model ({', '.join(others)}); remove one of the two"


def too_few(steps: int) -> str:
    """Why a run of so many steps is computed in full, or an empty string."""
    leave = "1 step leaves" if steps == 1 else f"{steps} steps leave"
    return f"{leave} nothing safe to skip; caching starts at {MIN_STEPS} steps" if steps < MIN_STEPS else ""


def remarks(sigmas: Sequence[float]) -> Iterator[str]:
    """What a user should know of a run that is cached."""
    if MIN_STEPS <= len(sigmas) - 1 < FEW_STEPS:
        yield f"only {len(sigmas) - 1} steps: few can be skipped, and each one shows"


def other_caches(model_options: Mapping[str, Any], bare: Any, ours: str) -> list[str]:
    """Names of other caching packs that have left a mark on the model: a key, a function's module."""
    options = model_options.get("transformer_options", {})
    marks = [str(key) for key in options if key != ours]
    for kind in ("wrappers", "callbacks"):
        for by_key in options.get(kind, {}).values():
            for key, functions in by_key.items():
                marks += [str(key), *(_module(function) for function in functions)] if key != ours else []
    marks += [_module(value) for value in model_options.values()]
    marks += [_module(function) for function in _replaced(bare)]
    known = [cache for cache in OTHER_CACHES if any(cache in mark.lower() for mark in marks)]
    words = ["_" + re.sub(r"[^a-z0-9]+", "_", mark.lower()) + "_" for mark in marks]
    return sorted({*known, *(cache for cache in OTHER_CACHES_AS_WORDS if any(f"_{cache}_" in word for word in words))})


def _module(function: Any) -> str:
    """Where a function, a method or a callable object is from."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__module__", None) or type(function).__module__) if callable(function) else ""


def _replaced(model: Any) -> Iterator[Any]:
    """The forwards of a model and its parts where somebody has put one of their own, on the object or on its class."""
    yield from (found for name in FORWARDS if callable(found := getattr(type(model), name, None)))
    for part in model.modules() if isinstance(model, torch.nn.Module) else ():
        yield from (vars(part)[name] for name in FORWARDS if name in vars(part))
