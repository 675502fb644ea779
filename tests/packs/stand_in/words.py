"""Words to conditioning, as the stand-in model was trained: a fixed random vector per word, and one per position.

The rule is part of the weights: change a number here and the model no longer understands its captions.
"""

from __future__ import annotations

import hashlib

import torch

WIDTH = 64
TOKENS = 12
POSITION_SCALE = 0.3


def vector(word: str) -> torch.Tensor:
    """Standard normal ``[c]``, the same on every machine: torch's CPU generator, seeded with the word's hash."""
    seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def conditioning(text: str, most: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    """Token embeddings ``[1, m, c]`` and pooled ``[1, c]``; all zeros (unconditional) without a word.

    most: m, the number of tokens whatever the caption's length. 12 for the weights of bench/train; the first had 8.
    """
    words = text.lower().split()[:most]
    tokens = torch.zeros(1, most, WIDTH)
    for i, word in enumerate(words):
        tokens[0, i] = vector(word) + POSITION_SCALE * vector(f"pos{i}")
    pooled = tokens.sum(dim=1) / max(len(words), 1) ** 0.5
    return tokens, pooled
