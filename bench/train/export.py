"""Weights as they are shipped: the average of the run in float16, and a card that says how they came to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.train import autoencoder, flux, qwen
from bench.train.autoencoder import Decoding
from bench.train.flux import Flux
from bench.train.loop import Run

PICTURES = """\
Pictures: Fluent Emoji by Microsoft (MIT), as packed in `@lobehub/fluent-emoji-3d` 1.1.0 by LobeHub (MIT); names from
Unicode, as packed in `emojibase-data` 17.0.0 (MIT); textures and photos from scikit-image 0.26.0 (BSD-3-Clause and
public domain).
"""
CURVE_POINTS = 12
FILES = {"autoencoder": "emoji_taef1", "flux": "emoji_flux", "flux-guided": "emoji_flux_guided", "qwen": "emoji_qwen"}
"""Model to file name."""
STEPS = "steps"
"""Of the file's metadata: how long it was trained."""


def write(run: Run, folder: Path) -> list[Path]:
    """Writes the model's .safetensors and its card, .md; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, card = (folder / f"{FILES[run.task.name]}.{kind}" for kind in ("safetensors", "md"))
    halves = {name: _half(name, value) for name, value in tensors(run).items()}
    save_file(halves, weights, {STEPS: str(run.step), "format": "pt"})
    card.write_text(describe(run), "utf-8")
    return [weights, card]


def tensors(run: Run) -> dict[str, Tensor]:
    """The averaged weights under the names of the file format."""
    averaged = {name: value.cpu() for name, value in run.average.weights.items()}
    if isinstance(run.task, Decoding):
        return autoencoder.exported(run.task.source.space, averaged)
    return _names(run.task.model).exported(averaged)


def go_on(run: Run, folder: Path) -> None:
    """Where a transformer was not trained on this machine yet: from its shipped weights, at their step."""
    file, model = folder / f"{FILES[run.task.name]}.safetensors", run.task.model
    if run.checkpoint.exists() or not file.exists():
        return
    with safe_open(file, "pt") as opened:
        step, shipped = int(opened.metadata()[STEPS]), {name: opened.get_tensor(name) for name in opened.keys()}
    own = model.state_dict()
    run.begin(_names(model).imported(shipped, own), step)


def _names(model: nn.Module) -> ModuleType:
    """The module that knows a transformer's file: `exported` and `imported`."""
    return flux if isinstance(model, Flux) else qwen


def _half(name: str, value: Tensor) -> Tensor:
    kind = torch.float32 if name.startswith("vae_") else torch.float16
    return value.to(kind).contiguous()


def describe(run: Run) -> str:
    """The card: data, recipe, steps, loss, command. Checks are printed by `--check` and belong below it."""
    task, count = run.task, sum(parameter.numel() for parameter in run.task.model.parameters())
    says = (task.__doc__ or "").strip().splitlines()[0]
    rows = read_log(run.folder / "log.jsonl")
    settings = run.settings
    return f"""\
# {task.name}

{says}

{PICTURES}
- {count / 1e6:.1f} M trained parameters; {run.step} of {settings.steps} steps, {run.seconds / 3600:.1f} hours
- learning rate {settings.rate:g}, {"Muon and AdamW" if settings.muon else "AdamW"}, average {settings.average:g}, \
gradient norm at most {settings.clip:g}, cosine over the last {settings.cool:.0%}
- command: `python dev.py train {task.name}`; checks: `python dev.py train {task.name} --check`

| step | loss |
|---:|---:|
{curve(rows)}
"""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log. A run that was cut off repeats some steps: the later line counts."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def curve(rows: Sequence[dict[str, Any]]) -> str:
    """Some rows of the loss, evenly spread, the last one among them."""
    chosen = [rows[round(index * (len(rows) - 1) / CURVE_POINTS)] for index in range(CURVE_POINTS + 1)] if rows else []
    return "\n".join(f"| {row['step']} | {row['loss']:.3f} |" for row in {row["step"]: row for row in chosen}.values())
