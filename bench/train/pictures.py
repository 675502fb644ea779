"""Captions become pictures: an object with a soft shadow on its ground, a little different every time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from bench.train import files
from bench.train.captions import COLOURS, PHOTOS, RELATIONS, Caption, names

Array = np.ndarray
SCALES = {"": 0.74, "small": 0.46, "large": 0.96}
PAIR_SCALE = 0.50
SHADOW = 0.22
TINTS = {"grass": (0.62, 0.86, 0.42), "gravel": (0.98, 0.95, 0.92), "brick": (0.95, 0.62, 0.50)}
SKIES = {"sky": ((0.36, 0.62, 0.93), (0.88, 0.94, 0.99)), "dusk": ((0.24, 0.16, 0.42), (0.97, 0.56, 0.36))}


class Painter:
    """Makes the picture of a caption. Objects are opened once and kept."""

    def __init__(self, objects: Mapping[str, Path], photos: Path) -> None:
        self.objects, self._photos = dict(objects), photos
        self._object = lru_cache(maxsize=None)(self._open_object)
        self._photo = lru_cache(maxsize=None)(self._open_photo)

    @classmethod
    def from_packages(cls) -> Painter:
        """From the cache folder, where the packages are fetched on first use."""
        found = names(files.folder_of(files.EMOJI), files.folder_of(files.NAMES))
        return cls(found, files.folder_of(files.PHOTOS))

    def __reduce__(self) -> tuple[object, ...]:
        """To another process goes where the pictures are, not the opened ones."""
        return Painter, (self.objects, self._photos)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which the trainer brings them in."""
        return tuple(self.objects)

    def paint(self, caption: Caption, rng: np.random.Generator, height: int, width: int) -> Array:
        """h w c, float32, 0 to 1."""
        if caption.photo:
            return self._crop(PHOTOS[caption.photo], rng, height, width, least=0.75)
        canvas = self._ground(caption.ground, rng, height, width)
        side = min(height, width)
        if caption.relation:
            x, y = RELATIONS[caption.relation]
            reach = 0.25 * np.array([x * width, y * height])
            for name, sign in zip(caption.names, (1, -1), strict=True):
                self._put(canvas, name, PAIR_SCALE * side, sign * reach, rng)
            return canvas
        size = SCALES[caption.size] * side
        room = np.array([width - size, height - size]) / 2 * 0.92
        toward = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}.get(caption.place, (0, 0))
        self._put(canvas, caption.names[0], size, room * toward, rng)
        return canvas

    def _put(self, canvas: Array, name: str, size: float, offset: Array, rng: np.random.Generator) -> None:
        """Lays an object over the canvas, its middle at `offset` from the canvas's middle."""
        height, width, _ = canvas.shape
        size = max(8, round(size * rng.uniform(0.94, 1.04)))
        jitter = rng.uniform(-0.025, 0.025, 2) * min(height, width)
        left, top = np.round(np.array([width, height]) / 2 + offset + jitter - size / 2).astype(int)
        picture, shadow = self._object(name)
        fall = round(size * 0.05)
        dark = np.asarray(shadow.resize((size, size)), np.float32)[..., None] / 255 * SHADOW
        _blend(canvas, None, dark, left, top + fall)
        layer = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0), np.float32) / 255
        _blend(canvas, layer[..., :3], layer[..., 3:], left, top)

    def _open_object(self, name: str) -> tuple[Image.Image, Image.Image]:
        """The object with premultiplied alpha, and its blurred outline."""
        with Image.open(self.objects[name]) as source:
            picture = source.convert("RGBA").resize((256, 256))
        shadow = picture.getchannel("A").resize((64, 64)).filter(ImageFilter.GaussianBlur(2.5))
        return picture.convert("RGBa"), shadow

    def _open_photo(self, file: str) -> Image.Image:
        with Image.open(self._photos / file) as source:
            return source.convert("RGB")

    def _ground(self, words: tuple[str, ...], rng: np.random.Generator, height: int, width: int) -> Array:
        if words[0] in TINTS:
            tint = np.array(TINTS[words[0]], np.float32)
            grey = self._crop(f"{words[0]}.png", rng, height, width, least=0.5).mean(axis=2, keepdims=True)
            return np.clip((0.25 + 0.9 * grey) * tint, 0, 1).astype(np.float32)
        ends = SKIES.get(words[0]) or tuple(COLOURS[word] for word in (words[0], words[-1]))
        first, last = (np.clip(np.array(end) + rng.normal(0, 0.02, 3), 0, 1) for end in ends)
        if len(words) == 1 and words[0] in COLOURS:
            last = first
        ramp = np.linspace(0, 1, height)[:, None, None]
        return np.broadcast_to(first + (last - first) * ramp, (height, width, 3)).astype(np.float32)

    def _crop(self, file: str, rng: np.random.Generator, height: int, width: int, least: float) -> Array:
        """A random crop with the canvas's aspect, at least this share of the largest one, either way round."""
        picture = self._photo(file)
        scale = min(picture.width / width, picture.height / height) * rng.uniform(least, 1.0)
        w, h = width * scale, height * scale
        left, top = rng.uniform(0, 1, 2) * (picture.width - w, picture.height - h)
        box = (float(left), float(top), float(left + w), float(top + h))
        crop = picture.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        pixels = np.asarray(crop, np.float32) / 255
        return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _blend(canvas: Array, layer: Array | None, alpha: Array, left: int, top: int) -> None:
    """canvas = layer + (1 − alpha) · canvas where they overlap; a layer of None is black."""
    height, width = alpha.shape[:2]
    rows = slice(max(top, 0), min(top + height, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + width, canvas.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    canvas[rows, columns] *= 1 - alpha[inside]
    if layer is not None:
        canvas[rows, columns] += layer[inside]


def sheet(pictures: list[Array], columns: int) -> Image.Image:
    """Pictures of one size side by side, rows below each other."""
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    missing = rows[0].shape[1] - rows[-1].shape[1]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, missing), (0, 0)))
    return Image.fromarray((np.clip(np.concatenate(rows), 0, 1) * 255).round().astype(np.uint8))
