"""Prompts and seeds of the bench: captions that the small models were trained on, spread over what they know."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SEED = 1000
COUNT = 24


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its seed and guidance: one picture, however it is sampled."""

    prompt: str
    seed: int
    cfg: float


SHOWN = (
    "a fox on blue", "a cloud on sky", "a mushroom left of a snail on grass", "a sailboat on pink",
    "a large crown on purple", "a penguin on white", "a pear on brick", "a rose right of a gear on gray",
    "a small airplane on black", "a camel on yellow", "a maple leaf on blue to pink", "a beer mug at the top on white",
    "a goat on green", "a camera above a books on red", "a large strawberry on black", "a violin on dusk",
    "a bison on brick", "a snowman on sky", "a bird left of a rose on purple", "a stop sign on orange",
    "a teapot on gray", "a large popcorn on green", "a scorpion on red", "a motorcycle on black to white",
)  # fmt: skip
"""Captions of the tables: single objects, pairs, sizes, places; every kind of ground."""
OTHERS = (
    "a small snail on yellow", "a large teapot on dusk", "a gear right of a bird on gray", "a photo of astronaut",
)  # fmt: skip
"""Captions for what is learned from full runs, at seeds of their own."""


def cases(count: int, cfg: float) -> list[Pair]:
    """The first of the tables' pairs."""
    return [Pair(caption, FIRST_SEED + i, cfg) for i, caption in enumerate(SHOWN[:count])]


def others(first_seed: int, cfg: float) -> list[Pair]:
    """The other captions, at seeds that no table uses with them."""
    return [Pair(caption, first_seed + i, cfg) for i, caption in enumerate(OTHERS)]
