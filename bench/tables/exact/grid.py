"""What `bench exact` compares: ways to a picture that cost so many evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bench.lab.arms import Cached
from bench.lab.presets import method_arms

GUIDANCE = (1.0, 3.0)
BUDGETS = (6, 8, 10, 12, 14)
SAMPLERS = (
    "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v", "deis",
    "res_multistep", "gradient_estimation", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""The host's deterministic samplers. Not here: ddim, which is euler; the *_cfg_pp, whose guidance is another one and
with it their picture; dpm_fast and dpm_adaptive, which choose times and number of evaluations themselves.
"""
PLACES = "Auto's places"
"""The noise levels that Auto's plan computes of 28 steps of the scheduler simple."""
SCHEDULES = ("simple", "beta", "normal", "sgm_uniform", "kl_optimal", "linear_quadratic", "karras", PLACES)
EVALUATIONS = {"heun": 2, "dpm_2": 2, "exp_heun_2_x0": 2, "heunpp2": 3}
"""Of a step in the middle of a run, of samplers that need more than one."""
AUTO_SAMPLERS, AUTO_STEPS = ("euler", "dpmpp_2m", "res_multistep", "ipndm"), (20, 28, 50, 100)
RECOMMENDED = ("dpmpp_2m", 50)
"""Sampler and steps that README recommends, one for all columns: 28 are as good until 10 are computed, and from 12 on
what 28 steps themselves miss is seen.
"""
OTHERS = {
    "freqca": ("FreqCa N=2", "FreqCa N=3", "FreqCa N=4"),
    "spectralcache": ("SpectralCache 0.25", "SpectralCache 0.4", "SpectralCache 0.6", "SpectralCache 0.8, up to 4"),
    "spectrum": ("Spectrum 2 + 0.25r", "Spectrum 2 + 0.75r", "Spectrum 2 + 1.5r"),
    "foca": ("FoCa N=2", "FoCa N=3", "FoCa N=4"),
    "easycache": ("EasyCache, ours 0.1", "EasyCache, ours 0.2", "EasyCache, ours 0.4"),
}
CACHED_STEPS = 28
"""Steps of the Euler run that the other caches skip in."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A sampler on a schedule, every step computed."""

    sampler: str
    schedule: str
    kind: str = field(default="plain", init=False)
    steps: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return f"{self.sampler} + {self.schedule}"

    def count(self, budget: int) -> int:
        """Steps that cost `budget` evaluations, or the next number that can be had: the control never has less."""
        each = EVALUATIONS.get(self.sampler, 1)  # the last step costs one; of heunpp2 the one before it two
        spare = {1: 0, 2: 1, 3: 3}[each]
        return max(-(-(budget + spare) // each), 1)


@dataclass(frozen=True, slots=True)
class Auto:
    """SpectralCache Auto on a sampler with `steps` steps of the scheduler simple, of which `budget` are computed."""

    sampler: str
    steps: int
    kind: str = field(default="Auto", init=False)
    schedule: str = field(default="simple", init=False)

    @property
    def name(self) -> str:
        return f"Auto on {self.sampler}, {self.steps} steps"

    def arm(self, budget: int) -> Cached:
        return Cached(self.name, f"{self.name}, {budget}", sampler=self.sampler, method="auto",
                      params={"quality": "Custom", "computed": budget})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Other:
    """Another cache with one of its presets; it computes what it computes."""

    preset: Cached
    kind: str = field(default="cache", init=False)
    schedule: str = field(default="simple", init=False)
    steps: int = field(default=CACHED_STEPS, init=False)

    @property
    def sampler(self) -> str:
        return self.preset.sampler

    @property
    def name(self) -> str:
        return self.preset.name

    @property
    def family(self) -> str:
        return self.preset.family

    def arm(self, budget: int) -> Cached:
        return self.preset


Way = Plain | Auto | Other


def others() -> list[Other]:
    """One setting a line, from careful to draft."""
    return [Other(arm) for arm in method_arms(OTHERS) if arm.name in OTHERS[arm.method]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. screen: the budget that all plain combinations are screened at, and the two that Auto's
    set-ups are; wide: how many combinations the second screening (at CFG 3, of those best at CFG 1) has; best: how many
    of each guidance go on, beside those that are always shown. own: the steps of Auto's full runs, which are compared
    with too.
    """

    pairs: int = 24
    screened: int = 2
    cached: int = 2
    budgets: tuple[int, ...] = BUDGETS
    samplers: tuple[str, ...] = SAMPLERS
    schedules: tuple[str, ...] = SCHEDULES
    screen: int = 10
    screen_auto: tuple[int, ...] = (8, 12)
    wide: int = 24
    best: int = 6
    always: tuple[tuple[str, str], ...] = (("dpmpp_2m", "simple"), ("ipndm", "beta"), ("ipndm", PLACES))
    auto: tuple[tuple[str, int], ...] = (("dpmpp_2m", 28), RECOMMENDED)
    auto_screened: tuple[tuple[str, int], ...] = tuple((s, n) for s in AUTO_SAMPLERS for n in AUTO_STEPS)
    own: int = 28
    reference: int = 101

    @classmethod
    def quick(cls) -> Size:
        """One pair, three combinations, to see that it works."""
        return cls(
            1, 1, 0, (6,), ("dpmpp_2m", "heunpp2"), ("simple", PLACES), 6, (6,), 2, 2, (), (("dpmpp_2m", 20),),
            (("dpmpp_2m", 20), ("euler", 20)), 20, 11,
        )  # fmt: skip

    def of(self, pairs: int | None, screened: int | None) -> Size:
        pairs = pairs or self.pairs
        return replace(
            self, pairs=pairs, screened=min(screened or self.screened, pairs), cached=min(self.cached, pairs)
        )

    def combinations(self) -> list[Plain]:
        return [Plain(sampler, schedule) for sampler in self.samplers for schedule in self.schedules]
