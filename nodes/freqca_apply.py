"""FreqCa Apply: see `cache_core/methods/freqca.py` for what the numbers mean in the paper."""

from ..cache_core import methods
from .apply import ApplyNode, compared
from .schema import ALIASES


class SpectralCacheFreqCaApply(ApplyNode):
    """FreqCa's fixed schedule and forecast."""

    ID, NAME, METHOD = "SpectralCacheFreqCaApply", "FreqCa Apply", "freqca"
    DESCRIPTION = (
        "Speeds up sampling on a fixed schedule: the steps between two computed ones are forecast, coarse "
        "structure held and detail extrapolated. Put it anywhere between the model loader and the sampler. "
        "Remove or bypass it and the picture is exactly the original again. Connect Cache Stats to see what "
        "was skipped."
    )
    ALIASES = (*ALIASES, "hicache", "forecast", "interval")
    validate_inputs = compared(NAME, methods()[METHOD])
