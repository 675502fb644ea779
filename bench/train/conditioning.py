"""Captions become what a text encoder would give, by the rule of the test pack: a fixed random vector per word."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from bench.train.captions import MOST_WORDS

RULE = Path(__file__).resolve().parents[2] / "tests" / "packs" / "stand_in" / "words.py"


@lru_cache(maxsize=1)
def _rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spectralcache_words", RULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=4096)
def _one(text: str) -> tuple[Tensor, Tensor]:
    tokens, pooled = _rule().conditioning(text, MOST_WORDS)
    return tokens, pooled


def conditioning(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens b m d and pooled b d; an empty text is unconditional."""
    tokens, pooled = zip(*map(_one, texts), strict=True)
    return torch.cat(tokens), torch.cat(pooled)
