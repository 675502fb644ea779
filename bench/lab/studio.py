"""The small trained models of this repository, and runs of them that make pictures."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.host.graphs import TRAINED_SHIFT, VAE_FILE
from bench.lab.lab import Lab, module_at
from bench.lab.models import FIRST, MODELS
from bench.lab.painter import Encode, Painter

WEIGHTS = ROOT / "bench" / "weights"
STAND_IN = ROOT / "tests" / "packs" / "stand_in"
SIDE = 24
"""Height and width of the latents that the models were trained on."""
WORDS = 12
"""How many a caption has at most."""


class Studio(Painter):
    """One of the small trained models: pictures of its captions."""

    def __init__(self, lab: Lab, side: int = SIDE, name: str = FIRST) -> None:
        self.side, self.name, model = side, name, MODELS[name]
        self.shift = TRAINED_SHIFT
        file = WEIGHTS / model.file
        shifting: Any = importlib.import_module("comfy_extras.nodes_model_advanced")
        loaded = _trained_qwen(file) if model.frames else lab.comfy.sd.load_diffusion_model(str(file))
        (shifted,) = shifting.ModelSamplingAuraFlow().patch_aura(loaded, self.shift)
        vae = lab.comfy.sd.VAE(sd=lab.comfy.utils.load_torch_file(str(WEIGHTS / VAE_FILE)))
        weights = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        identity = weights if model.distilled is None else f"{weights} guidance {model.distilled:g}"
        shape = (1, 16, 1, side, side) if model.frames else (1, 16, side, side)
        super().__init__(lab, shifted, vae, captions(guidance=model.distilled), shape, identity)

    def guided(self, values: Sequence[float]) -> list[float]:
        """Of these CFG values, those that mean something to this model."""
        return [cfg for cfg in values if cfg in MODELS[self.name].guidance]


def _trained_qwen(file: Path) -> Any:
    """ComfyUI's loader fixes the dimensions of the real one, so the tests' pack makes its class at the file's."""
    return module_at(STAND_IN / "trained_qwen.py").load(file)


def captions(most: int = WORDS, guidance: float | None = None) -> Encode:
    """Captions to conditioning, as the small models were trained: they have no text encoder.

    guidance: the number that a distilled model is told, as the host's FluxGuidance node tells it.
    """
    words = module_at(STAND_IN / "words.py")
    told = {} if guidance is None else {"guidance": guidance}

    def encode(text: str) -> list[Any]:
        tokens, pooled = words.conditioning(text, most)
        return [[tokens, {"pooled_output": pooled, **told}]]

    return encode
