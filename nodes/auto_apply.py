"""SpectralCache Auto: see `cache_core/methods/auto.py` for what the numbers mean, `gates.py` for the budget,
`placement.py`, `backtest.py` and `corrections.py` for the formulas.
"""

from ..cache_core import methods
from .apply import ApplyNode, compared
from .schema import ALIASES


class SpectralCacheAutoApply(ApplyNode):
    """One dial: how much faster."""

    ID, NAME, METHOD = "SpectralCacheAutoApply", "SpectralCache Auto", "auto"
    DESCRIPTION = (
        "Speeds up sampling, with one dial: say how much faster, and only so many steps are computed, where "
        "they matter most; the others are forecast, and the next computed step makes good what a forecast "
        "missed. Put it anywhere between the model loader and the sampler. Remove or bypass it and the picture "
        "is exactly the original again. Connect Cache Stats to see what was skipped."
    )
    ALIASES = (*ALIASES, "auto", "automatic", "one dial", "easy", "budget", "自动", "自動")
    MODELS = "any diffusion model."
    validate_inputs = compared(NAME, methods()[METHOD], "speedup", "tolerance", "keep_first", "keep_last", "bands")
