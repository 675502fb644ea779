"""Takes a package's place where it is imported and never used: all of it can be imported, and using it says what is
missing.

bench/host/carried.py copies this file as the package's `__init__.py`. It is for a package that ComfyUI imports at the
top of a file, that sampling does not call, and that is large: PyAV, which reads and writes videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__


class Unusable(type):
    """The type of everything in here: good for annotations and for `from ... import`."""

    def __getattr__(cls, name: str) -> Any:
        return part(f"{cls.__qualname__}.{name}")

    def __call__(cls, *_: Any, **__: Any) -> Any:
        # An ImportError, since packages that can do without this one catch that.
        raise ImportError(
            f"{cls.__qualname__} cannot be used: a stand-in was carried for {PACKAGE}; leave --stand-in {PACKAGE} away."
        )


def part(name: str) -> Any:
    """Something of the package by its dotted name. What Python itself looks for is absent."""
    if name.rpartition(".")[2].startswith("__"):
        raise AttributeError(name)
    return Unusable(name, (), {"__module__": PACKAGE})


class Finder(MetaPathFinder, Loader):
    """Makes every submodule."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith(f"{PACKAGE}.") else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: part(f"{module.__name__}.{name}")  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    return part(f"{PACKAGE}.{name}")


sys.meta_path.append(Finder())
