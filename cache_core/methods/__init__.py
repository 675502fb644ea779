"""One published method per file, found by walking this folder: the function named like the file builds the `Method`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ..types import Method


def methods() -> dict[str, Callable[..., Method]]:
    """Every method of this folder by name. The function's signature is its parameters, its docstring their meaning."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: getattr(importlib.import_module(f".{name}", __name__), name) for name in names}
