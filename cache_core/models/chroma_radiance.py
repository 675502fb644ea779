"""Chroma Radiance: Chroma's blocks on patches of pixels, between embeddings of its own.

https://huggingface.co/lodestones/Chroma1-Radiance; in ComfyUI `comfy/ldm/chroma_radiance/model.py`.
"""

from __future__ import annotations

from .chroma import Chroma


class ChromaRadiance(Chroma):
    """See the module docstring."""

    name, kind = "Chroma Radiance", "ChromaRadiance"
    patch = (16, 16)


ARCHITECTURE = ChromaRadiance()
