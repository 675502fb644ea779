"""FEB-Cache Apply: see `cache_core/methods/feb_cache.py` for what the numbers mean in the paper."""

from ..cache_core import methods
from .apply import ApplyNode, compared
from .schema import ALIASES


class SpectralCacheFEBApply(ApplyNode):
    """FEB-Cache's table of half steps."""

    ID, NAME, METHOD = "SpectralCacheFEBApply", "FEB-Cache Apply", "feb_cache"
    DESCRIPTION = (
        "Speeds up sampling by half steps: in every block attention, the MLP, or both reuse their last result, by a "
        "table that is known before the run. Put it anywhere between the model loader and the sampler. Remove or "
        "bypass it and the picture is exactly the original again. Connect Cache Stats to see what was reused."
    )
    ALIASES = (*ALIASES, "feb cache", "febcache", "attention", "mlp", "half step")
    MODELS = (
        "FLUX, Chroma, Qwen-Image, Wan and HunyuanVideo, whose blocks are described; others are computed in full, and "
        "Cache Stats says so."
    )
    validate_inputs = compared(NAME, methods()[METHOD])
