"""What `bench mine` takes for granted of a model family, unless an option says otherwise.

A family is recognised by the class that the host's own loader chose for the weights. The settings are those of the
workflows that ship with the pack or with ComfyUI; for a family that is not listed they are a guess, and the page says
that it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.host.graphs import TRAINED_SHIFT, TRAINED_SIZE
from bench.lab.models import MODELS


@dataclass(frozen=True, slots=True)
class Family:
    """host: the class in comfy.supported_models. clip: type for the host's text encoder loaders. guidance: embedded
    (FLUX), None without. shift: None leaves the schedule as the model comes. size: width and height.
    """

    name: str
    host: str
    clip: str
    steps: int
    cfg: float
    guidance: float | None
    shift: float | None
    size: tuple[int, int]


FAMILIES = (
    Family("FLUX.1", "Flux", "flux", 28, 1.0, 3.5, None, (1024, 1024)),
    Family("FLUX.1-schnell", "FluxSchnell", "flux", 4, 1.0, None, None, (1024, 1024)),
    Family("FLUX.2", "Flux2", "flux2", 28, 1.0, 4.0, None, (1024, 1024)),
    Family("Qwen-Image", "QwenImage", "qwen_image", 30, 4.0, None, 3.1, (1328, 1328)),
    Family("Z-Image", "ZImage", "lumina2", 28, 4.0, None, None, (1024, 1024)),
    Family("Lumina 2", "Lumina2", "lumina2", 28, 4.0, None, None, (1024, 1024)),
    Family("Wan, one frame", "WAN21_T2V", "wan", 30, 5.0, None, None, (832, 480)),
    Family("Chroma", "Chroma", "chroma", 28, 4.0, None, None, (1024, 1024)),
    Family("Stable Diffusion 3", "SD3", "sd3", 28, 4.5, None, None, (1024, 1024)),
    Family("HiDream", "HiDream", "hidream", 28, 5.0, None, None, (1024, 1024)),
    Family("SDXL", "SDXL", "sdxl", 28, 7.0, None, None, (1024, 1024)),
)
SMALL = Family(
    "the small FLUX of this repository", "", "flux", 28, 3.0, None, TRAINED_SHIFT, (TRAINED_SIZE, TRAINED_SIZE)
)
SMALL_GUIDED = replace(
    SMALL, name=f"{SMALL.name} that takes its guidance as a number", cfg=1.0, guidance=MODELS["flux-guided"].distilled
)
OWN = frozenset({SMALL.name, SMALL_GUIDED.name})
"""Models of this repository, which know its captions and need no text encoder; settings may be others."""
SMALL_WIDTH = 64
"""Of its text tokens; no published FLUX has so narrow ones."""


def family_of(model: Any) -> Family:
    """Of a ModelPatcher: the first listed class that its own is, or comes from."""
    known = {family.host: family for family in FAMILIES}
    names = [base.__name__ for base in type(model.model.model_config).__mro__]
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        return Family(f"{names[0]} (not listed: settings guessed)", "", "", 28, 4.0, None, None, (1024, 1024))
    flux = "Flux" in names and model.model.diffusion_model
    if not flux or flux.txt_in.weight.shape[1] != SMALL_WIDTH:
        return found
    return SMALL_GUIDED if flux.params.guidance_embed else SMALL
