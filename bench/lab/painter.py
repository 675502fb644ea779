"""One model with all that a picture needs besides: words to conditioning, a decoder, the size of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.lab.lab import Lab, Sampled
from bench.lab.pairs import Pair

Encode = Callable[[str], Any]
"""A prompt to the host's conditioning."""


class Painter:
    """Pictures from one model, or from any that is derived from it.

    shape: of a latent of one picture. identity: tells apart whatever a figure could depend on, beside the code.
    """

    def __init__(self, lab: Lab, model: Any, vae: Any, encode: Encode, shape: tuple[int, ...], identity: str) -> None:
        self.lab, self.model, self.vae, self.conditioning = lab, model, vae, encode
        self.shape, self.identity = shape, identity

    def make(
        self,
        model: Any,
        pair: Pair,
        steps: int,
        sigmas: torch.Tensor | None = None,
        sampler: str = "euler",
        latent: torch.Tensor | None = None,
        noisy: bool = True,
    ) -> Sampled:
        """One run; the noise is the one that the seed gives in the host's own nodes. latent: what it starts from, with
        that noise over it or, not `noisy`, as another run left it.
        """
        empty = torch.zeros(self.shape)
        noise = self.lab.comfy.sample.prepare_noise(empty, pair.seed) if noisy else empty
        positive, negative = self.conditioning(pair.prompt), self.conditioning("")
        return self.lab.sample(model, noise, positive, negative, pair.cfg, steps, sigmas, pair.seed, sampler, latent)

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        """b h w c, 0 to 1, float; frames of a video's decoder count as pictures, as in the host's node."""
        pictures: torch.Tensor = self.vae.decode(latent)
        return pictures.flatten(0, -4)

    def sigmas(self, steps: int, scheduler: str = "simple", model: Any = None) -> torch.Tensor:
        """A scheduler on the schedule of the model, or of one derived from it, shift included: T + 1 noise levels."""
        sampling = (model or self.model).get_model_object("model_sampling")
        return self.lab.comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
