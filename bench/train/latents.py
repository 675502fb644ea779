"""The latent space: a fixed linear map of 8 × 8 × 3 pixel blocks to 16 numbers.

The first 16 principal components of blocks of training pictures, each divided by the square root of its standard
deviation, then all by one number so that their mean variance is 1. A component's deviation so becomes the root of what
it was: the first components, which carry structure, stay the largest, and a squared error in this space weighs them
most. (The first stand-ins gave every component unit variance, and 12 of 16 channels to texture.)

A linear map is exact and known before any training, so the transformers need not wait for the autoencoder: it has this
map as its encoder, and learns only to decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

CHANNELS, BLOCK = 16, 8


@dataclass(frozen=True, slots=True)
class Space:
    """latent = matrix · (block − mean). mean: d, matrix: c d, inverse: d c with d = 3 · 8 · 8, blocks as c h w."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, pictures: Tensor) -> Space:
        """From pictures b c h w, 0 to 1."""
        blocks = F.unfold(pictures, BLOCK, stride=BLOCK).transpose(1, 2).reshape(-1, 3 * BLOCK * BLOCK).double()
        mean = blocks.mean(dim=0)
        values, vectors = torch.linalg.eigh((blocks - mean).T.cov())
        deviation = values.flip(0)[:CHANNELS].sqrt()
        basis = vectors.flip(1)[:, :CHANNELS].T
        basis = basis * basis.sum(dim=1, keepdim=True).sign()  # a component's sign is arbitrary; fix it
        gain = (deviation.sqrt() * deviation.mean().sqrt()).reciprocal()[:, None]
        return cls(mean.float(), (gain * basis).float(), (basis / gain).T.contiguous().float())

    @classmethod
    def load(cls, path: Path) -> Space:
        return cls(**load_file(path))

    def save(self, path: Path) -> None:
        save_file({"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}, path)

    def encode(self, pictures: Tensor) -> Tensor:
        """b 3 (h 8) (w 8), 0 to 1 -> b c h w."""
        kernel = self.matrix.reshape(CHANNELS, 3, BLOCK, BLOCK)
        return F.conv2d(pictures, kernel, -self.matrix @ self.mean, stride=BLOCK)

    def decode(self, latents: Tensor) -> Tensor:
        """b c h w -> b 3 (h 8) (w 8): the linear way back, without what the autoencoder learns to add."""
        kernel = self.inverse.T.reshape(CHANNELS, 3, BLOCK, BLOCK)
        mean = self.mean.reshape(1, 3, BLOCK, BLOCK).repeat(1, 1, *latents.shape[-2:])
        return F.conv_transpose2d(latents, kernel, stride=BLOCK) + mean
