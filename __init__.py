"""SpectralCache: faster sampling with diffusion transformers in ComfyUI.

ComfyUI loads this file by path and asks `comfy_entrypoint` for the nodes. Importing it without ComfyUI does nothing.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """Return the pack's `ComfyExtension`; called by ComfyUI once, at start-up."""
    from .nodes import SpectralCacheExtension

    return SpectralCacheExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
