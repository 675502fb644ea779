"""What a sampler's name and options tell of it: whether it adds noise of its own, chooses its own noise levels, or
wraps another one. Its moves, which the engine watches, have the last word (`cache_core/motion.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

FREE_RUNNING_SAMPLERS = ("dpm_fast", "dpm_adaptive")
STOCHASTIC_MARKS = ("ancestral", "sde", "lcm", "ddpm", "seeds_", "sa_solver")
LATENT_MADE_ANEW, AUTO_REGRESSIVE_SAMPLER = "lcm", "ar_video"
DEEPEST = 4
"""How far samplers within samplers are looked for."""


def fresh_noise(name: str) -> str:
    return f"{name} adds fresh noise at every step, which no cache foresees: skipped steps show more"


def kind_of(sampler: Any) -> tuple[str, bool]:
    """The sampler's name, or that of one inside it which adds noise of its own, and whether one does, as far as names
    and options tell.
    """
    names = names_of(sampler)
    noisy = next((name for name in names if is_stochastic(name)), names[0] if _churns(sampler) else "")
    return noisy or names[0], bool(noisy)


def is_stochastic(name: str) -> bool:
    return any(mark in name for mark in STOCHASTIC_MARKS)


def _churns(thing: Any, depth: int = 0) -> bool:
    """Whether noise is added before steps (s_churn), here or in a sampler inside."""
    options = getattr(thing, "extra_options", None) or {}
    inner = depth < DEEPEST and any(_churns(value, depth + 1) for value in options.values())
    return bool(options.get("s_churn", 0)) or inner


def names_of(sampler: Any) -> list[str]:
    """The sampler's name, and those of samplers that it wraps (Detail Daemon and others hold them in their options)."""
    found: list[str] = []
    inside = [(sampler, 0)]
    while inside:
        thing, depth = inside.pop(0)
        function = getattr(thing, "sampler_function", thing if callable(thing) else None)
        while isinstance(function, partial):
            function = function.func
        name = str(getattr(function, "__name__", ""))
        if not found:
            found.append((name or type(sampler).__name__).removeprefix("sample_"))
        elif hasattr(thing, "sampler_function") or name.startswith("sample_"):
            found.append(name.removeprefix("sample_"))
        if depth < DEEPEST:
            options = thing if isinstance(thing, dict) else getattr(thing, "extra_options", None)
            values = thing if isinstance(thing, (list, tuple)) else (options or {}).values()
            inside += [(value, depth + 1) for value in values]
    return found
