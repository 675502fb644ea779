"""Where the pack's own lines wait for the device, counted in one run, evaluation by evaluation.

On a GPU torch itself reports reads and copies that wait (`torch.cuda.set_sync_debug_mode`), copies of pageable memory
to the device included. On the CPU nothing waits: there the calls are counted that would copy a result to the host on a
GPU. The trace's timing events, which are read once the last step is done, are in neither count.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench import ROOT

READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
OURS = (str(ROOT / "cache_core"), str(ROOT / "nodes"))
PASSED_OVER = (str(Path(torch.__file__).parent), warnings.__file__, __file__)
"""Frames between a line of ours and the call that waits: torch's own Python, and what counts here."""
MARK = "synchronizing"
"""In torch's warning: called a synchronizing CUDA operation."""
KEY = "bench waits"


@dataclass(slots=True)
class Waits:
    """places: how often, by file and line; evaluations: one number each; once: outside all of them."""

    places: Counter[str] = field(default_factory=Counter)
    evaluations: list[int] = field(default_factory=list)
    once: int = 0
    _inside: bool = False

    def numbered(self, model: Any) -> Any:
        """A clone of the model that tells when an evaluation begins and ends; attach a method to it afterwards, so
        that the method's work at both ends counts for the evaluation.
        """
        import comfy.patcher_extension

        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, KEY, self._evaluation)
        return clone

    def _evaluation(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.evaluations.append(0)
        self._inside = True
        try:
            return executor(*args, **kwargs)
        finally:
            self._inside = False

    def note(self, frame: FrameType | None) -> None:
        """Counts the line that called from outside torch, if it is ours."""
        while frame is not None and frame.f_code.co_filename.startswith(PASSED_OVER):
            frame = frame.f_back
        if frame is None or not frame.f_code.co_filename.startswith(OURS):
            return
        self.places[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1
        if self._inside:
            self.evaluations[-1] += 1
        else:
            self.once += 1


def counted(waits: Waits, device: str) -> Any:
    """A context in which waits of our lines are counted."""
    return _told_by_torch(waits) if device == "cuda" else _patched(waits)


@contextmanager
def _told_by_torch(waits: Waits) -> Iterator[None]:
    """torch warns at each call that waits, from the Python line that made it."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if MARK in str(message):
            waits.note(sys._getframe(1))

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _patched(waits: Waits) -> Iterator[None]:
    """Conversions that torch makes in C are not seen."""
    originals = {name: getattr(torch.Tensor, name) for name in READERS}

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            waits.note(sys._getframe(1))
            return original(tensor, *args, **kwargs)

        return read

    try:
        for name, original in originals.items():
            setattr(torch.Tensor, name, counting(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)
