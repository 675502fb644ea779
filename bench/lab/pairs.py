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
