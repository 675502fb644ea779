"""Spectrum (arXiv 2603.01623): a ridge fit of Chebyshev polynomials to every computed output, at growing intervals.

    h(t) = sum over m <= M of c_m · T_m(t),   C = (P'P + ridge · I)^-1 P'H;   F^ = blend · h + (1 - blend) · slope

`extrapolation.Ridge`. Behind the warm-up one step in floor(window + growth · r) is computed, r the computed ones since:
growth 0.75 computes 14 of 50, 3 computes 10.

Differs from the original: at most the last ten computed outputs count; the model's output stands for the last block's
feature; the last step is computed.
"""

from __future__ import annotations

from ..extrapolation import Ridge
from ..gates import Between, Never, all_of
from ..parameters import Parameter, published
from ..schedules import Growing
from ..types import MODEL, Gate, Method, Rule, Signal
from .ab_cache import WARMUP

PARAMETERS = (
    Parameter("window", 2.0, "The first interval between computed steps. Higher: faster, further from the original "
              "picture. The authors use 2; 1 with growth 0 switches the node off.", low=1, high=100),
    Parameter("growth", 0.75, "How much longer each interval is than the one before. Higher: faster, most of it late "
              "in the run. The authors use 0.75, or 3 for drafts.", high=10),
    WARMUP,
    Parameter("degree", 4, "The highest polynomial. Higher: bolder. The authors use 4.", low=1, high=8, folded=True),
    Parameter("ridge", 0.1, "How much the fit is held back. Lower: bolder. The authors use 0.1.", low=0.0001, high=10,
              step=0.001, folded=True),
    Parameter("blend", 0.5, "The share of the fit; the rest follows the last slope. Lower: only the last two computed "
              "steps count. The authors use 0.5.", high=1, folded=True),
)  # fmt: skip


@published(
    "Spectrum", PARAMETERS, aliases=("chebyshev", "spectral forecast"),
    never={"window": 1.0, "growth": 0.0}, refusing={"warmup_steps": 100},
    skipping={"window": 3.0, "growth": 0.0, "warmup_steps": 1},
    advice="From about 14 computed steps on, on any model; with fewer a local forecast is better.",
)  # fmt: skip
def spectrum(window: float, growth: float, warmup_steps: int, degree: int, ridge: float, blend: float) -> Method:
    """The window, alpha, the warm-up, M, lambda and w."""
    gate: Gate = Never()
    if window >= 2 or growth:
        gate = all_of(Between(warmup_steps, 1), Growing(warmup_steps, window, growth))
    return Method("Spectrum", (Rule((MODEL,), Signal(), gate, Ridge(degree, ridge, blend)),))
