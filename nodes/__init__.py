"""The ComfyUI side: the list of nodes. Everything that touches the patcher and its wrappers is in `host`."""

from comfy_api.latest import ComfyExtension, io

from .auto_apply import SpectralCacheAutoApply
from .calibrate import SpectralCacheCalibrate
from .compare import SpectralCacheCompare
from .feb_apply import SpectralCacheFEBApply
from .freqca_apply import SpectralCacheFreqCaApply
from .method_apply import SpectralCacheMethodApply
from .plan import add_route
from .profile_loader import SpectralCacheProfileLoader
from .replacements import register
from .spectralcache_apply import SpectralCacheApply
from .stats import SpectralCacheStats


class SpectralCacheExtension(ComfyExtension):
    """The nodes of this pack; ids are for ever, names are what users read."""

    async def on_load(self) -> None:
        add_route()
        await register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SpectralCacheAutoApply,
            SpectralCacheApply,
            SpectralCacheFreqCaApply,
            SpectralCacheFEBApply,
            SpectralCacheMethodApply,
            SpectralCacheStats,
            SpectralCacheCompare,
            SpectralCacheCalibrate,
            SpectralCacheProfileLoader,
        ]
