"""The small trained FLUX models of this repository, and runs of them that make pictures."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import ROOT
from bench.lab import pairs
from bench.lab.lab import Lab, module_at
from bench.lab.painter import Encode, Painter

WEIGHTS = ROOT / "bench" / "weights"
SHIFT = 1.5
SIDE = 24
"""Height and width of the latents that the models were trained on."""


@dataclass(frozen=True, slots=True)
class Model:
    """Files of bench/weights and what goes with them. words: how many a caption has at most; says: for a page."""

    file: str
    vae: str
    shift: float
    words: int
    prompts: Callable[[int], list[tuple[str, int]]]
    says: str


MODELS = {
    "shapes": Model(
        "tiny_flux", "tiny_taef1", SHIFT, 8, pairs.prompts,
        "The small FLUX of this repository (13 M parameters, 192 × 192 pixels, shift 1.5)",
    ),
    "emoji": Model(
        "emoji_flux", "emoji_taef1", 1.62, 12, pairs.emoji,
        "The second small FLUX of this repository, trained on other pictures and captions in another latent space "
        "(9 M parameters, 192 × 192 pixels, shift 1.62; its training is not finished, see its card)",
    ),
}  # fmt: skip
"""The first is what every table rests on unless it says otherwise."""
FIRST = next(iter(MODELS))


class Studio(Painter):
    """A small trained FLUX: pictures of its captions."""

    def __init__(self, lab: Lab, side: int = SIDE, name: str = FIRST) -> None:
        self.side, self.name, model = side, name, MODELS[name]
        file = WEIGHTS / f"{model.file}.safetensors"
        shifting: Any = importlib.import_module("comfy_extras.nodes_model_advanced")
        loaded = lab.comfy.sd.load_diffusion_model(str(file))
        (shifted,) = shifting.ModelSamplingAuraFlow().patch_aura(loaded, model.shift)
        vae = lab.comfy.sd.VAE(sd=lab.comfy.utils.load_torch_file(str(WEIGHTS / f"{model.vae}.safetensors")))
        weights = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        super().__init__(lab, shifted, vae, captions(model.words), (1, 16, side, side), weights)

    def cases(self, count: int, cfg: float) -> list[pairs.Pair]:
        """The first prompt and seed pairs of this model."""
        return [pairs.Pair(text, seed, cfg) for text, seed in MODELS[self.name].prompts(count)]


def captions(most: int = MODELS[FIRST].words) -> Encode:
    """Captions to conditioning, as the small models were trained: they have no text encoder."""
    words = module_at(ROOT / "tests" / "packs" / "stand_in" / "words.py")

    def encode(text: str) -> list[Any]:
        tokens, pooled = words.conditioning(text, most)
        return [[tokens, {"pooled_output": pooled}]]

    return encode
