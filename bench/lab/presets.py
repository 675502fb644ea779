"""The settings of each method that the bench measures, from careful to draft, and what they are compared with.

A new method adds its table here, by the name of its file in `cache_core/methods`; until then the bench says so and
stops, so that no method goes unmeasured. Presets were chosen to spread over budgets of 1.5x to 5x, not for their
results: a curve joins the presets of one family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bench.lab.arms import EULER, Alike, Arm, Cached, Dense, Plain, Shipped

NO_TADS, NO_CEB, NO_FDC = (
    {"tads_min": 1.0, "tads_max": 1.0},
    {"max_consecutive": 1000},
    {"gamma_low": 1000.0, "gamma_high": 1000.0},
)
INTERVALS = (2, 3, 4, 6, 9, 14)
CORE_THRESHOLDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0)
POWERS = (1.3, 1.6)
FEWER = "fewer steps"
ALIKE = "fewer steps, where Auto's are"


class MissingPresets(Exception):
    """A method of cache_core that the bench has no settings for."""


def _spectral() -> list[Cached]:
    family = "SpectralCache"
    settings = ((0.15, 2), (0.25, 2), (0.4, 2), (0.6, 2), (0.8, 4), (1.2, 4), (1.6, 6), (2.4, 8))
    arms = [
        Cached(
            family,
            f"{family} {threshold:g}" + ("" if most == 2 else f", up to {most}"),
            method="spectralcache",
            params={"threshold": threshold, "max_consecutive": most},
            core=threshold == 0.6,
            quick=threshold in (0.4, 0.8),
        )
        for threshold, most in settings
    ]
    return arms


def _freqca() -> list[Cached]:
    published = [
        Cached("FreqCa", f"FreqCa N={n}", method="freqca", params={"interval": n}, core=n == 4, quick=n in (3, 6))
        for n in INTERVALS
    ]
    hold = {"transform": "none", "high_order": 0}
    held = [Cached("hold, every N", f"hold N={n}", method="freqca", params={"interval": n, **hold}) for n in INTERVALS]
    both = [
        Cached(
            "FreqCa, SpectralCache's gate",
            f"FreqCa adaptive {threshold:g}" + ("" if most == 2 else f", up to {most}"),
            method="freqca",
            params={"schedule": "adaptive", "threshold": threshold, "max_consecutive": most},
        )
        for threshold, most in ((0.15, 2), (0.25, 2), (0.4, 2), (0.6, 2), (0.8, 4), (1.2, 4), (1.6, 6), (2.4, 8))
    ]
    return [*published, *both, *held]


AUTO = "SpectralCache Auto"
AUTO_COUNTS = (23, 20, 17, 14, 12, 10, 8, 7, 6, 5)


def auto(count: int, total: int = 28) -> Cached:
    """Auto with a budget of so many computed steps of `total`."""
    return Cached(
        AUTO, f"Auto {total / count:.2g}x", method="auto", params={"speedup": total / count, "quality": "Custom"},
        core=(count, total) == (10, 28), quick=count in (14, 8),
    )  # fmt: skip


def _swept(family: str, method: str, name: str, values: Iterable[float], **fixed: object) -> list[Cached]:
    """One method over one of its parameters."""
    return [Cached(family, f"{family} {v:g}", method=method, params={name: v, **fixed}) for v in values]


def _forecast(family: str, method: str) -> list[Cached]:
    """A fixed schedule with a forecast, over its interval; three steps of warm-up suit 28 steps."""
    return [
        Cached(family, f"{family} N={n}", method=method, params={"interval": n, "warmup_steps": 3}) for n in INTERVALS
    ]


def _magcache() -> list[Cached]:
    """The authors' settings from careful to draft, on FLUX's curve, whichever small model it is."""
    settings = ((0.02, 1), (0.06, 2), (0.1, 3), (0.24, 5), (0.6, 6), (1.2, 10))
    return [
        Cached("MagCache", f"MagCache {threshold:g}, up to {most}", method="magcache",
            params={"threshold": threshold, "max_consecutive": most, "retention": 0.1, "curve": "FLUX.1"})
        for threshold, most in settings
    ]  # fmt: skip


def _adacache() -> list[Cached]:
    settings = (("slow", 0.3), ("slow", 1.0), ("fast", 0.1), ("fast", 0.3), ("fast", 1.0))
    return [
        Cached("AdaCache", f"AdaCache {book} x{scale:g}", method="adacache", params={"codebook": book, "scale": scale})
        for book, scale in settings
    ]


def _dbcache() -> list[Cached]:
    """One block decides, since the small models have few; the tail repairs."""
    settings = ((0.04, 2, 0), (0.08, 3, 0), (0.12, 3, 1), (0.2, 4, 0), (0.3, 6, 0))
    return [
        Cached("DBCache", f"DBCache F1B{tail} {threshold:g}, up to {most}", method="dbcache",
               params={"threshold": threshold, "head": 1, "tail": tail, "warmup_steps": 3, "max_consecutive": most})
        for threshold, most, tail in settings
    ]  # fmt: skip


def _halves() -> list[Cached]:
    settings = ((0.1, 0.2), (0.2, 0.4), (0.3, 0.6), (0.5, 1.0), (0.8, 1.6))
    return [
        Cached("SpectralCache, half steps", f"SpectralCache, half steps {skip:g}, {half:g}", method="spectral_halves",
               params={"skip": skip, "half": half})
        for skip, half in settings
    ]  # fmt: skip


def _profilingdit() -> list[Cached]:
    settings = ((2, 2), (3, 2), (4, 2), (6, 2), (8, 3))
    return [
        Cached("ProfilingDiT", f"ProfilingDiT N={most} to {least}", method="profilingdit",
               params={"interval_most": most, "interval_least": least})
        for most, least in settings
    ]  # fmt: skip


def _spectrum() -> list[Cached]:
    settings = ((2, 0), (2, 0.25), (2, 0.75), (2, 1.5), (2, 3))
    return [
        Cached("Spectrum", f"Spectrum {window:g} + {growth:g}r", method="spectrum",
               params={"window": window, "growth": growth, "warmup_steps": 3})
        for window, growth in settings
    ]  # fmt: skip


def _fastcache() -> list[Cached]:
    """As the authors compare, step by step, and with a limit of skips; 0.15 is the setting of the paper's tables."""
    settings = ((0.05, 1000), (0.08, 1000), (0.1, 1000), (0.15, 1000), (0.3, 2))
    return [
        Cached("FastCache", f"FastCache {threshold:g}" + ("" if most == 1000 else f", up to {most}"),
               method="fastcache", params={"threshold": threshold, "max_consecutive": most})
        for threshold, most in settings
    ]  # fmt: skip


def _quantcache() -> list[Cached]:
    """AdaCache's slow rates and bolder ones, and the pruning on top."""
    settings = ((0.04, 3, 1.0), (0.08, 3, 1.0), (0.16, 4, 1.0), (0.08, 3, 0.995), (0.08, 3, 0.98))
    return [
        Cached("QuantCache", f"QuantCache {calm:g}, up to {most}" + (f", pruned {prune:g}" if prune < 1 else ""),
               method="quantcache", params={"calm": calm, "moving": 2 * calm, "most": most, "prune": prune})
        for calm, most, prune in settings
    ]  # fmt: skip


def _cfg_cache() -> list[Cached]:
    """The paper's gains over its interval, and none of them with a slope."""
    bands = [Cached("CFG-Cache", f"CFG-Cache N={n}", method="cfg_cache", params={"interval": n}) for n in (2, 3, 5)]
    slope = [
        Cached("CFG-Cache, slope", f"CFG-Cache, slope N={n}", method="cfg_cache",
               params={"interval": n, "stand_in": "slope", "last_steps": 3})
        for n in (2, 3, 5)
    ]  # fmt: skip
    return [*bands, *slope]


def _everywhere(arms: list[Cached]) -> list[Cached]:
    """The middle setting is measured at every number of steps and guidance."""
    return [replace(arm, core=True) if i == len(arms) // 2 else arm for i, arm in enumerate(arms)]


OTHERS: Mapping[str, list[Cached]] = {
    "teacache": _swept("TeaCache", "teacache", "threshold", (0.2, 0.4, 0.6, 1.0, 1.6)),
    "first_block_cache": _swept(
        "First-Block Cache", "first_block_cache", "threshold", (0.03, 0.06, 0.08, 0.12, 0.2, 0.3)
    ),
    "magcache": _magcache(),
    "adacache": _adacache(),
    "ab_cache": _forecast("AB-Cache", "ab_cache"),
    "taylorseer": _forecast("TaylorSeer", "taylorseer"),
    "hicache": _forecast("HiCache", "hicache"),
    "foca": _forecast("FoCa", "foca"),
    "easycache": _swept("EasyCache, ours", "easycache", "threshold", CORE_THRESHOLDS),
    "lazycache": _swept("LazyCache, ours", "lazycache", "threshold", CORE_THRESHOLDS),
    "dbcache": _dbcache(),
    "spectrum": _spectrum(),
    "fastcache": _fastcache(),
    "quantcache": _quantcache(),
    "seacache": _swept("SeaCache", "seacache", "threshold", (0.1, 0.2, 0.3, 0.6, 1.2)),
    "feb_cache": _swept("FEB-Cache", "feb_cache", "work", (0.7, 0.6, 0.5, 0.4, 0.3)),
    "spectral_halves": _halves(),
    "smoothcache": _swept("SmoothCache", "smoothcache", "alpha", (0.05, 0.1, 0.15, 0.25, 0.4)),
    "learning_to_cache": _swept("Learning-to-Cache", "learning_to_cache", "share", (0.3, 0.5, 0.75, 1.0)),
    "fastercache": _swept("FasterCache (attention)", "fastercache", "interval", (2, 3, 4, 6), start_percent=0.1),
    "profilingdit": _profilingdit(),
    "cfg_cache": _cfg_cache(),
    "prompttea": _swept("PromptTea", "prompttea", "threshold", (0.25, 0.4, 0.6, 0.8), threshold_simple=0.8),
    "dyncfg_cache": [
        *_swept("DynCFGCache", "dyncfg_cache", "threshold", (0.02, 0.2)),
        *_swept("DynCFGCache, difference", "dyncfg_cache", "threshold", (0.15, 0.3, 0.6), stand_in="difference"),
    ],
    "dicache": _swept("DiCache", "dicache", "threshold", (0.1, 0.2, 0.4, 0.8, 1.6)),
}
PRESETS: Mapping[str, list[Cached]] = {
    "auto": [auto(count) for count in AUTO_COUNTS],
    "spectralcache": _spectral(),
    "freqca": _freqca(),
    **{name: _everywhere(arms) for name, arms in OTHERS.items()},
}


DEEPCACHE = [
    *_swept("DeepCache", "deepcache", "interval", (2, 3, 4, 5, 7, 10)),
    *_swept("DeepCache, quadratic", "deepcache", "interval", (3, 4, 5, 7, 10), schedule="quadratic"),
    *_swept("DeepCache, two blocks more", "deepcache", "interval", (2, 3, 5, 10), branch=2),
]
ELSEWHERE: Mapping[str, list[Cached]] = {"deepcache": DEEPCACHE}
"""Methods for models that the small FLUX is not."""
PARTS = ("FreqCa, SpectralCache's gate", "hold, every N")
"""Families that show what a part of a method is worth, and are not the method as it was published."""
NEED_GUIDANCE = ("cfg_cache", "dyncfg_cache")
"""Methods that do nothing at CFG 1."""


def method_arms(names: Iterable[str]) -> list[Cached]:
    """Every preset of these methods. Raises `MissingPresets` for one without."""
    arms: list[Cached] = []
    for name in names:
        if name in ELSEWHERE:
            continue
        if not PRESETS.get(name):
            raise MissingPresets(
                f"the bench has no settings for cache_core/methods/{name}.py; add its table to bench/lab/presets.py"
            )
        arms += PRESETS[name]
    return arms


def core_arms() -> list[Shipped]:
    """What ComfyUI ships, over its threshold; and EasyCache without the repair that it needs in float32."""
    shipped = [
        Shipped(kind, f"{kind} {threshold:g}", kind, threshold,
                core=kind == "EasyCache" and threshold == 0.2, quick=kind == "EasyCache" and threshold in (0.1, 0.2))
        for kind in ("EasyCache", "LazyCache")
        for threshold in CORE_THRESHOLDS
    ]  # fmt: skip
    ruined = Shipped("EasyCache in float32, unrepaired", "EasyCache 0.2 unrepaired", "EasyCache", 0.2, repaired=False)
    return [ruined, *shipped]


def fewer(count: int, sampler: str = EULER) -> Plain:
    """The control: the plain sampler with this many steps."""
    return Plain(FEWER, f"{count} steps", count, sampler=sampler, core=True, quick=True)


def alike(count: int) -> Alike:
    """The fair control for Auto's placement: this many Euler steps on the noise levels that its plan computes."""
    return Alike(ALIKE, f"{count} steps where Auto's are", count)


def dense(count: int, power: float) -> Dense:
    """The control for placement: this many Euler steps on an early-dense subset of the full run's noise levels."""
    return Dense(f"fewer steps, early-dense p={power:g}", f"{count} steps, p={power:g}", count, power)


def counts(total: int) -> list[int]:
    """Step counts of the fewer-steps curve: budgets of 1.2x to 7x."""
    budgets = (1.2, 1.4, 1.65, 2.0, 2.33, 2.8, 3.5, 4.0, 4.67, 5.6, 7.0)
    return sorted({max(2, round(total / budget)) for budget in budgets} - {total})


def control_arms(total: int) -> list[Arm]:
    """The fewer-steps curve and the early-dense ones."""
    near = [round(total / budget) for budget in (1.4, 2.0, 2.8, 3.5, 4.67, 5.6)]
    return [*(fewer(n) for n in counts(total)), *(dense(n, power) for power in POWERS for n in near)]
