"""The small trained models that figures rest on: their files, and what a page says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.host.graphs import MODEL_FILE

COLUMN = "model"
"""Of a table's CSV: the model that its rows were made with."""


@dataclass(frozen=True, slots=True)
class Model:
    """A file of bench/weights and what goes with it. All know the same captions, latents and noise levels.

    says: for a page. guidance: the CFG values that mean something to it; distilled: the guidance that it is told as a
    number, where it was trained so. frames: of Qwen-Image's class, whose latents have a frame, b c 1 h w. kin: the
    published model of its class.
    """

    file: str
    says: str
    guidance: tuple[float, ...] = (1.0, 3.0)
    distilled: float | None = None
    frames: bool = False
    kin: str = "FLUX.1"


MODELS: Mapping[str, Model] = {
    "flux": Model(
        MODEL_FILE,
        "The small FLUX of this repository: 9 M parameters, objects on many grounds, 192 × 192 pixels, shift 1.62.",
    ),
    "flux-guided": Model(
        "emoji_flux_guided.safetensors",
        "The small FLUX of this repository that takes its guidance as a number, as FLUX.1-dev does (here 3, so there "
        "is no CFG): 9 M parameters, objects on many grounds, 192 × 192 pixels, shift 1.62.",
        guidance=(1.0,), distilled=3.0,
    ),
    "qwen": Model(
        "emoji_qwen.safetensors",
        "The small Qwen-Image of this repository: 10 M parameters, objects on many grounds, 192 × 192 pixels, shift "
        "1.62.",
        frames=True, kin="Qwen-Image",
    ),
}  # fmt: skip
FIRST = next(iter(MODELS))
"""What a table rests on unless it says otherwise."""


def of(rows: Sequence[Mapping[str, str]]) -> str:
    """The model of a table's rows."""
    return rows[0][COLUMN] if rows else FIRST


def introduction(name: str) -> str:
    """What a page has to say of its model."""
    return (
        f"{MODELS[name].says} Its figures cannot be compared with published ones of {MODELS[name].kin}: a small smooth "
        "model is followed far more closely by every method."
    )


def named(table: str, model: str) -> str:
    """The file of a table: other models' stand beside the first one's."""
    return table if model == FIRST else f"{table}-{model}"
