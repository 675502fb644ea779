"""CFG-Cache (FasterCache, arXiv 2410.19355, sec. 3.4): the negative prompt's result is derived from the positive's.

    D = F(uncond) - F(cond) = D_low + D_high at a computed pair,   F(uncond) = F(cond) + w_1 D_low + w_2 D_high between

F is the two-dimensional spectrum of the model's output, D_low a disc of a fifth of its lines; w_1 = 1 + gain_low in the
first part of the run, w_2 = 1 + gain_high in the rest. From a third of the steps on, one pair in `interval` is
computed, and a derived evaluation costs half.

Differs from the original: only this half of FasterCache; the last steps are computed in full; the output is the ODE
derivative (a multiple of a v-prediction); the low band is round in cycles. The paper leaves open where the gains change
places: half way here. `stand_in` released lets the bands grow at every derived step, as the published code does; slope
is ours: no gains, half of the last slope in log-SNR goes on.
"""

from __future__ import annotations

from ..gates import Between, Every, Never, Within, all_of
from ..guidance import BandGains
from ..parameters import Parameter, published
from ..predictors import Linear
from ..types import BRANCH, Gate, Method, Predictor, Rule, Signal

PARAMETERS = (
    Parameter("interval", 5, "Evaluate the negative prompt in one step of this many. Higher: faster, guidance further "
              "from the original. The authors use 5; 2 is careful; 1 switches the node off.", low=1, high=100),
    Parameter("start_percent", 0.33, "Both prompts are evaluated before this share of the run's steps. Higher: slower, "
              "composition closer to the original. The authors start at a third.", high=1),
    Parameter("last_steps", 1, "Both prompts are evaluated in so many last steps. Higher: slower, finer detail. 1 is "
              "typical, 2 to 4 protect texture.", low=1, high=100),
    Parameter("gain_low", 0.2, "In the first part of the run, coarse differences of the prompts count so much more. "
              "Higher: stronger guidance. The paper: 0.2; 0 holds them.", low=-1, high=5, folded=True),
    Parameter("gain_high", 0.2, "In the rest of the run, fine differences of the prompts count so much more. Higher: "
              "stronger guidance of detail. The paper: 0.2; 0 holds them.", low=-1, high=5, folded=True),
    Parameter("turn", 0.5, "The share of the run at which gain_low ends and gain_high begins. Half way is typical; the "
              "paper does not say.", high=1, folded=True),
    Parameter("stand_in", "bands", "bands: the last difference, with its gains (the paper's). released: as in the "
              "authors' code each derived step multiplies by the gains once more; use 0.1 for both with it. slope: no "
              "gains, the difference follows half of its last slope, which holds twice as much.",
              choices=("bands", "released", "slope"), folded=True),
)  # fmt: skip


@published(
    "CFG-Cache", PARAMETERS, aliases=("fastercache", "faster cache", "cfg cache", "negative prompt cache"),
    never={"interval": 1}, refusing={"last_steps": 100}, skipping={"interval": 3, "start_percent": 0.0},
    advice="With CFG above 1, where the negative prompt costs half of every step: it saves up to that half.",
)  # fmt: skip
def cfg_cache(
    interval: int, start_percent: float, last_steps: int, gain_low: float, gain_high: float, turn: float, stand_in: str
) -> Method:
    """n, from where, to where, alpha_1 and alpha_2 with t_0, and what stands in."""
    gate: Gate = Never()
    if interval > 1:
        gate = all_of(Within(start_percent, 1.0), Between(1, last_steps), Every(interval))
    predictor: Predictor = Linear(0.5, "log_noise")
    if stand_in != "slope":
        predictor = BandGains(gain_low, gain_high, turn, stand_in == "released")
    return Method("CFG-Cache", (Rule((BRANCH,), Signal(), gate, predictor),))
