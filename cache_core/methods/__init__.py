"""One published method per file, found by walking this folder: what is named like the file builds the `Method`."""

from __future__ import annotations

import importlib
import pkgutil

from ..parameters import Published


def methods() -> dict[str, Published]:
    """Every method of this folder by name, with the one statement of its parameters."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: getattr(importlib.import_module(f".{name}", __name__), name) for name in names}
