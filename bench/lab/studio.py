"""The small trained FLUX of this repository, and runs of it that make pictures."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from bench import ROOT
from bench.lab.lab import Lab, Sampled, module_at
from bench.lab.pairs import Pair

WEIGHTS = ROOT / "bench" / "weights"
SHIFT = 1.5
SIDE = 24
"""Height and width of the latents that the model was trained on."""


class Studio:
    """The small trained FLUX: pictures of its captions, from any model that is derived from it."""

    def __init__(self, lab: Lab, side: int = SIDE) -> None:
        self.lab, self.side = lab, side
        shifting: Any = importlib.import_module("comfy_extras.nodes_model_advanced")
        plain = lab.comfy.sd.load_diffusion_model(str(WEIGHTS / "tiny_flux.safetensors"))
        (self.model,) = shifting.ModelSamplingAuraFlow().patch_aura(plain, SHIFT)
        self.vae = lab.comfy.sd.VAE(sd=lab.comfy.utils.load_torch_file(str(WEIGHTS / "tiny_taef1.safetensors")))
        self._words = module_at(ROOT / "tests" / "packs" / "stand_in" / "words.py")

    def conditioning(self, text: str) -> list[Any]:
        tokens, pooled = self._words.conditioning(text)
        return [[tokens, {"pooled_output": pooled}]]

    def make(
        self, model: Any, pair: Pair, steps: int, sigmas: torch.Tensor | None = None, sampler: str = "euler"
    ) -> Sampled:
        """One run; the noise is the one that the seed gives in the host's own nodes."""
        noise = self.lab.comfy.sample.prepare_noise(torch.zeros(1, 16, self.side, self.side), pair.seed)
        positive, negative = self.conditioning(pair.prompt), self.conditioning("")
        return self.lab.sample(model, noise, positive, negative, pair.cfg, steps, sigmas, pair.seed, sampler)

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        """b h w c, 0 to 1, float."""
        return self.vae.decode(latent)

    def sigmas(self, steps: int) -> torch.Tensor:
        """The scheduler simple on the shifted schedule: T + 1 noise levels."""
        return self.lab.comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)
