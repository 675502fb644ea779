"""Prompts and seeds of the bench: captions that the small FLUX was trained on, spread over what it knows."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = ("small", "medium", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
GROUNDS = ("grass", "gravel", "brick", "sky", "dusk")
PHOTOS = ("astronaut", "cat", "coffee", "rocket", "galaxy", "retina", "tissue")
FIRST_SEED = 1000
COUNT = 24


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its seed and guidance: one picture, however it is sampled."""

    prompt: str
    seed: int
    cfg: float


EMOJI = (
    "a fox on blue", "a cloud on sky", "a mushroom left of a snail on grass", "a sailboat on pink",
    "a large crown on purple", "a penguin on white", "a pear on brick", "a rose right of a gear on gray",
    "a small airplane on black", "a camel on yellow", "a maple leaf on blue to pink", "a beer mug at the top on white",
    "a goat on green", "a camera above a books on red", "a large strawberry on black", "a violin on dusk",
    "a bison on brick", "a snowman on sky", "a bird left of a rose on purple", "a stop sign on orange",
    "a teapot on gray", "a large popcorn on green", "a scorpion on red", "a motorcycle on black to white",
)  # fmt: skip
"""Captions for the model that bench/train makes: single objects, pairs, sizes, places; every kind of ground."""
EMOJI_OTHERS = (
    "a small snail on yellow", "a large teapot on dusk", "a gear right of a bird on gray", "a photo of astronaut",
)  # fmt: skip
OTHERS = (
    "a small yellow star on brick", "a large white ring on dusk", "a medium purple cross on gravel",
    "a photo of astronaut",
)  # fmt: skip
"""Captions for what is learned from full runs, at seeds of their own."""


def emoji(count: int = COUNT) -> list[tuple[str, int]]:
    """(caption, seed) for the model that was trained on emoji."""
    return [(caption, FIRST_SEED + i) for i, caption in enumerate(EMOJI[:count])]


def prompts(count: int = COUNT) -> list[tuple[str, int]]:
    """(caption, seed): every third one a photo, the others shapes that walk through sizes, colours, forms, grounds."""
    made = []
    for i in range(count):
        if i % 3 == 2:
            caption = f"a photo of {PHOTOS[i // 3 % len(PHOTOS)]}"
        else:
            k = i - i // 3
            size, colour, shape = SIZES[k % 3], COLOURS[k % 8], SHAPES[(k + k // 6) % 6]
            caption = f"a {size} {colour} {shape} on {GROUNDS[k % 5]}"
        made.append((caption, FIRST_SEED + i))
    return made
