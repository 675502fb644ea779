"""One model family per file, found by walking this folder: each module's `ARCHITECTURE` describes it."""

from __future__ import annotations

import importlib
import pkgutil

from ..types import Architecture


def architectures() -> list[Architecture]:
    """Every architecture of this folder, in the order of their file names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f".{name}", __name__).ARCHITECTURE for name in names]


def architecture_of(model: object) -> Architecture | None:
    """The architecture that describes a diffusion model, or None."""
    return next((candidate for candidate in architectures() if candidate.matches(model)), None)
