"""The caching engine of SpectralCache: pure torch, no ComfyUI. Start reading at `types`, then `session` and `track`."""

from .methods import methods
from .models import architecture_of
from .session import Session
from .trace import RunBook, report, summary
from .types import CacheError, Method, Step

__all__ = ["CacheError", "Method", "RunBook", "Session", "Step", "architecture_of", "methods", "report", "summary"]
