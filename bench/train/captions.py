"""What the small models are asked for: a grammar of captions of at most 12 words, and which are never trained.

    a {small|large} NAME {at the left|right|top|bottom} on GROUND
    a NAME {left of|right of|above|below} a NAME on GROUND
    a photo of PHOTO

GROUND is a colour, a gradient ("red to blue", from top to bottom) or a texture. Every eighth pair of a name and a
colour, and every eighth pair of two names, is held out: both halves are seen often, the combination never.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

COLOURS = {
    "red": (0.84, 0.18, 0.20), "green": (0.25, 0.65, 0.31), "blue": (0.20, 0.38, 0.82), "yellow": (0.97, 0.84, 0.25),
    "purple": (0.52, 0.27, 0.72), "orange": (0.96, 0.55, 0.17), "white": (0.96, 0.96, 0.96),
    "black": (0.07, 0.07, 0.08), "pink": (0.97, 0.66, 0.76), "gray": (0.55, 0.56, 0.58),
}  # fmt: skip
TEXTURES = ("grass", "gravel", "brick", "sky", "dusk")
PHOTOS = {
    "astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg",
    "galaxy": "hubble_deep_field.jpg", "retina": "retina.jpg", "tissue": "ihc.png",
}  # fmt: skip
SIZES, PLACES = ("small", "large"), ("left", "right", "top", "bottom")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""The first object's side of the second: x, y."""
MOST_WORDS = 12
HELD_OUT = 8

SUBGROUPS = (
    "animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug",
    "plant-flower", "plant-other", "food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet",
    "drink", "dishware", "transport-ground", "transport-water", "transport-air", "sky-weather", "event", "sport",
    "game", "musical-instrument", "music", "clothing", "light-video", "computer", "phone", "tool", "science",
    "household", "arts-crafts", "book-paper", "award-medal", "place-building", "place-other", "money", "mail",
    "writing", "office", "lock", "sound", "time", "hotel",
)  # fmt: skip
# Nearly the same picture as a plainer name's, or none with one plain object.
LEFT_OUT = re.compile(
    r"oncoming|moon|railway|foggy?|cityscape|sunset|sunrise|cigarette|white flower|.*(departure|arrival|volume|thirty)$"
)


@dataclass(frozen=True, slots=True)
class Caption:
    """One picture's contents. A single object has one name; a photo has only `photo`; ground is 1 or 2 words."""

    names: tuple[str, ...] = ()
    ground: tuple[str, ...] = ()
    size: str = ""
    place: str = ""
    relation: str = ""
    photo: str = ""

    def __str__(self) -> str:
        if self.photo:
            return f"a photo of {self.photo}"
        if self.relation:
            first, second = self.names
            text = f"{_article(first)} {self.relation} {_article(second)}"
        else:
            text = _article(" ".join(filter(None, (self.size, self.names[0]))))
        if self.place:
            text += f" at the {self.place}"
        return f"{text} on {' to '.join(self.ground)}"

    @property
    def held_out(self) -> bool:
        """Whether the trainer never shows it."""
        if len(self.names) == 2 and _every("|".join(sorted(self.names))):
            return True
        return len(self.ground) == 1 and any(_every(f"{name}|{self.ground[0]}") for name in self.names)


def _article(text: str) -> str:
    return f"a {text}"  # "an" would be a second word for the same thing


def _every(key: str) -> bool:
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % HELD_OUT == 0


def names(emoji: Path, data: Path) -> dict[str, Path]:
    """Name to picture: plain objects of one or two words that have a picture, in an order that mixes all groups."""
    messages = json.loads((data / "messages.json").read_text("utf-8"))
    subgroups = {item["order"]: item["key"] for item in messages["subgroups"]}
    pictures = {path.stem.lower(): path for path in emoji.glob("*.webp")}
    found: dict[str, Path] = {}
    for item in json.loads((data / "data.json").read_text("utf-8")):
        code, name = item["hexcode"].lower(), item["label"].lower()
        plain = subgroups.get(item.get("subgroup", -1)) in SUBGROUPS and re.fullmatch(r"[a-z-]+( [a-z-]+)?", name)
        spelled = (code, f"{code}-fe0f", code.replace("-fe0f", ""))
        picture = next((pictures[key] for key in spelled if key in pictures), None)
        if plain and picture and "200d" not in code and not LEFT_OUT.match(name):
            found.setdefault(name, picture)
    return dict(sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()))


def draw(rng: np.random.Generator, known: Sequence[str], held_out: bool = False) -> Caption:
    """A random caption of these names; never a held-out one, or only those."""
    while True:
        caption = _draw(rng, known)
        if caption.held_out == held_out and len(str(caption).split()) <= MOST_WORDS:
            return caption


def _draw(rng: np.random.Generator, known: Sequence[str]) -> Caption:
    kind = rng.random()
    if kind < 0.05:
        return Caption(photo=_pick(rng, tuple(PHOTOS)))
    if kind < 0.25:
        first, second = rng.choice(len(known), 2, replace=False)
        return Caption((known[first], known[second]), ground(rng), relation=_pick(rng, tuple(RELATIONS)))
    caption = Caption((_pick(rng, known),), ground(rng))
    detail = rng.random()
    if detail < 0.30:
        caption = replace(caption, size=_pick(rng, SIZES))
    if 0.20 < detail < 0.45 and caption.size != "large":
        caption = replace(caption, place=_pick(rng, PLACES))
    return caption


def ground(rng: np.random.Generator) -> tuple[str, ...]:
    """A colour (3 of 5), a gradient of two or a texture."""
    kind = rng.random()
    colours = tuple(COLOURS)
    if kind < 0.6:
        return (_pick(rng, colours),)
    if kind < 0.8:
        first, second = rng.choice(len(colours), 2, replace=False)
        return colours[first], colours[second]
    return (_pick(rng, TEXTURES),)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
