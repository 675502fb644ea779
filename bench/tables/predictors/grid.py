"""The grid of `bench predictors`: what stands in on a skipped evaluation, and where the computed ones lie, at equal
budgets.

Controls: the plain sampler with as many steps, evenly, and on the same early-dense noise levels. Every predictor is
measured at one placement and two budgets; elsewhere only those that can still change a decision.
"""

from __future__ import annotations

from bench.lab.arms import Arm
from bench.lab.grid import Group, group
from bench.lab.presets import dense, fewer
from bench.tables.predictors.parts import BUDGETS, EVEN, PREDICTORS, STEPS, WARM, Forecast, early

PAIRS = 6
GUIDANCE = (1.0, 3.0)
LONG_STEPS, LONG_BUDGETS, LONG_CFG = 50, (16, 10), 3.0
POWERS = (1.3, 1.6)
MAIN = early(POWERS[0])
FEATURES = ("residual", "absolute", "output")

LINEAR, BACK_TESTED = "linear in sigma × 1", "back-tested, 3 bands"
UNTRUSTING, LOG_SNR = "linear in sigma, first step dropped", "linear in log-SNR × 1"
NEWTON = "Newton 2 in sigma"
FIRST_LOOK = ("hold", LINEAR, BACK_TESTED)
SHORT = ("hold", LINEAR, NEWTON, "Hermite 2")
MIDDLE = (
    *SHORT, "linear in sigma × 0.5", "linear in step × 1", LOG_SNR, f"{NEWTON}, first step dropped",
    "Newton 2 in log-SNR", "Newton 3 in sigma", "Taylor 2", "Chebyshev 4", "FreqCa's bands", BACK_TESTED,
    "back-tested, 3 bands, averaged",
)  # fmt: skip
DENSER = (*SHORT, UNTRUSTING, LOG_SNR, "Newton 2 in log-SNR", "FreqCa's bands", BACK_TESTED)
LONG_RUN = (
    "hold", "linear in sigma × 0.75", LINEAR, UNTRUSTING, LOG_SNR, "Hermite 2", BACK_TESTED,
    "back-tested, 3 bands, averaged",
)  # fmt: skip

PRUNED = (
    f"Left out, so that it ends within the hour: away from {MAIN} the other dampings, coordinates and fits; at 10 "
    "computed everything but the first look's rows and Hermite; other features away from it (absolute stayed within "
    "0.6 dB of residual in all 48 cells of a run with 2 pairs); damping below 0.5, which lies between hold and 0.5; 50 "
    "steps at CFG 1."
)
"""What the grid does not hold."""


def arm(feature: str, placement: str, predictor: str, count: int, steps: int = STEPS) -> Forecast:
    return Forecast(
        f"{feature} | {placement} | {predictor}", f"{count}",
        feature=feature, placement=placement, predictor=predictor, count=count, steps=steps,
    )  # fmt: skip


def arms() -> list[Arm]:
    """28 steps."""
    found: list[Arm] = []
    here: dict[str, tuple[str, ...]]
    for count in BUDGETS:
        found += controls(count)
        if count == 10:
            here = {place: (*FIRST_LOOK, "Hermite 2") for place in (WARM, *(early(power) for power in POWERS))}
        else:
            here = {
                WARM: MIDDLE,
                EVEN: (*SHORT, BACK_TESTED),
                MAIN: tuple(PREDICTORS),
                early(POWERS[1]): DENSER,
            }
            found += [arm(feature, MAIN, name, count) for feature in FEATURES[1:] for name in SHORT]
        found += [arm("residual", place, name, count) for place, names in here.items() for name in names]
    return found


def long_arms() -> list[Arm]:
    """50 steps."""
    found: list[Arm] = []
    for count in LONG_BUDGETS:
        found += controls(count)
        placed = [(early(power), name) for power in POWERS for name in LONG_RUN]
        found += [arm("residual", place, name, count, LONG_STEPS) for place, name in placed]
    return found


def controls(count: int) -> list[Arm]:
    """As many steps of the plain sampler: evenly, and on the noise levels of the early-dense placements."""
    return [fewer(count), *(dense(count, power) for power in POWERS)]


def quick_arms() -> list[Arm]:
    """The controls, and a few forecasts at two placements; each feature."""
    count = 10
    few = [arm("residual", place, name, count) for place in (WARM, MAIN) for name in FIRST_LOOK]
    return [*controls(count), *few, *(arm(feature, MAIN, FIRST_LOOK[0], count) for feature in FEATURES[1:])]


def grid(pairs: int | None, quick: bool = False) -> list[Group]:
    """`quick`: one pair, 28 steps without guidance."""
    if quick:
        return [group(STEPS, GUIDANCE[0], pairs or 1, quick_arms())]
    count = pairs or PAIRS
    groups = [group(STEPS, cfg, count, arms()) for cfg in GUIDANCE]
    return [*groups, group(LONG_STEPS, LONG_CFG, count, long_arms())]
