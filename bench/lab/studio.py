"""The small trained FLUX of this repository, and runs of it that make pictures."""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

from bench import ROOT
from bench.lab.lab import Lab, module_at
from bench.lab.painter import Encode, Painter

WEIGHTS = ROOT / "bench" / "weights"
SHIFT = 1.5
SIDE = 24
"""Height and width of the latents that the model was trained on."""


class Studio(Painter):
    """The small trained FLUX: pictures of its captions."""

    def __init__(self, lab: Lab, side: int = SIDE) -> None:
        self.side = side
        file = WEIGHTS / "tiny_flux.safetensors"
        shifting: Any = importlib.import_module("comfy_extras.nodes_model_advanced")
        (model,) = shifting.ModelSamplingAuraFlow().patch_aura(lab.comfy.sd.load_diffusion_model(str(file)), SHIFT)
        vae = lab.comfy.sd.VAE(sd=lab.comfy.utils.load_torch_file(str(WEIGHTS / "tiny_taef1.safetensors")))
        weights = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        super().__init__(lab, model, vae, captions(), (1, 16, side, side), weights)


def captions() -> Encode:
    """Captions to conditioning, as the small models were trained: they have no text encoder."""
    words = module_at(ROOT / "tests" / "packs" / "stand_in" / "words.py")

    def encode(text: str) -> list[Any]:
        tokens, pooled = words.conditioning(text)
        return [[tokens, {"pooled_output": pooled}]]

    return encode
