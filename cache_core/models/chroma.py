"""Chroma: FLUX's blocks, each with modulations that a small network makes of the step, outside of the blocks.

https://huggingface.co/lodestones/Chroma; in ComfyUI `comfy/ldm/chroma/model.py`, class `Chroma`. A member that leaves
out blocks for good is not described here.
"""

from __future__ import annotations

from .flux2 import Flux2, modulated_from_outside


class Chroma(Flux2):
    """See the module docstring."""

    name, kind = "Chroma", "Chroma"
    patch = (2, 2)

    def matches(self, model: object) -> bool:
        left_out = [*getattr(model, "skip_mmdit", ()), *getattr(model, "skip_dit", ())]
        return type(model).__name__ == self.kind and not left_out and modulated_from_outside(model)


ARCHITECTURE = Chroma()
