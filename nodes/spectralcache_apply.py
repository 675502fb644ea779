"""SpectralCache Apply: see `cache_core/methods/spectralcache.py` for what the numbers mean in the paper."""

from ..cache_core import methods
from .apply import ApplyNode, compared
from .schema import ALIASES


class SpectralCacheApply(ApplyNode):
    """SpectralCache's decision, step by step."""

    ID, NAME, METHOD = "SpectralCacheApply", "SpectralCache Apply", "spectralcache"
    DESCRIPTION = (
        "Speeds up sampling: steps whose input has hardly changed reuse the transformer's last result. Put it "
        "anywhere between the model loader and the sampler. Remove or bypass it and the picture is exactly the "
        "original again. Connect Cache Stats to see what was skipped."
    )
    ALIASES = ALIASES
    validate_inputs = compared(NAME, methods()[METHOD])
