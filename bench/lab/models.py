"""The small trained models that figures rest on: their files, what they know, what a page says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.host.graphs import MODEL_FILE, TRAINED_SHIFT, VAE_FILE
from bench.lab import pairs
from bench.lab.pairs import Pair

COLUMN = "model"
"""Of a table's CSV: the model that its rows were made with."""


@dataclass(frozen=True, slots=True)
class Model:
    """Files of bench/weights and what goes with them.

    shift: of the noise schedule that it was trained for. words: how many a caption has at most. prompts: captions and
    seeds of the tables. others: captions for what is learned from full runs, at seeds that no table uses. guidance:
    the CFG values that mean something to it; distilled: the guidance that it is told as a number, where it was trained
    so. frames: of Qwen-Image's class, whose latents have a frame, b c 1 h w. says: for a page.
    """

    file: str
    vae: str
    shift: float
    words: int
    prompts: Callable[[int], list[tuple[str, int]]]
    others: tuple[str, ...]
    says: str
    guidance: tuple[float, ...] = (1.0, 3.0)
    distilled: float | None = None
    frames: bool = False


MODELS: Mapping[str, Model] = {
    "flux": Model(
        MODEL_FILE, VAE_FILE, TRAINED_SHIFT, 12, pairs.emoji, pairs.EMOJI_OTHERS,
        "The small FLUX of this repository: 9 M parameters, objects on many grounds, 192 × 192 pixels, shift 1.62.",
    ),
    "flux-guided": Model(
        "emoji_flux_guided.safetensors", VAE_FILE, TRAINED_SHIFT, 12, pairs.emoji, pairs.EMOJI_OTHERS,
        "The small FLUX of this repository that takes its guidance as a number, as FLUX.1-dev does (here 3, so there "
        "is no CFG): 9 M parameters, objects on many grounds, 192 × 192 pixels, shift 1.62.",
        guidance=(1.0,), distilled=3.0,
    ),
    "qwen": Model(
        "emoji_qwen.safetensors", VAE_FILE, TRAINED_SHIFT, 12, pairs.emoji, pairs.EMOJI_OTHERS,
        "The small Qwen-Image of this repository: 8 M parameters, objects on many grounds, 192 × 192 pixels, "
        "shift 1.62.",
        frames=True,
    ),
    "shapes": Model(
        "tiny_flux.safetensors", "tiny_taef1.safetensors", 1.5, 8, pairs.prompts, pairs.OTHERS,
        "The first small FLUX of this repository: 13 M parameters, shapes and photos, 192 × 192 pixels, shift 1.5.",
    ),
}  # fmt: skip
FIRST = next(iter(MODELS))
"""What a table rests on unless it says otherwise."""
BEFORE = "shapes"
"""What tables rest on that were made when there was no other, and their CSV had no column for it."""


def of(rows: Sequence[Mapping[str, str]]) -> str:
    """The model of a table's rows."""
    return (rows[0].get(COLUMN) if rows else None) or BEFORE


def introduction(name: str) -> str:
    """What a page has to say of its model."""
    return (
        f"{MODELS[name].says} Its figures cannot be compared with published ones of FLUX.1: a small smooth model is "
        "followed far more closely by every method."
    )


def named(table: str, model: str) -> str:
    """The file of a table: other models' stand beside the first one's."""
    return table if model == FIRST else f"{table}-{model}"


def cases(model: str, count: int, cfg: float) -> list[Pair]:
    """The first prompt and seed pairs of a model."""
    return [Pair(text, seed, cfg) for text, seed in MODELS[model].prompts(count)]


def others(model: str, first_seed: int, cfg: float) -> list[Pair]:
    """Captions at seeds that no table uses with them."""
    return [Pair(text, first_seed + i, cfg) for i, text in enumerate(MODELS[model].others)]
