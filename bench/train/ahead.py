"""Batches made ahead of their step by other processes. A batch comes from its step alone, so nothing else is shared."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """make(step), computed in `workers` processes for the steps that come next; with none, when asked for."""

    def __init__(self, make: Callable[[int], T], workers: int) -> None:
        self.make, self.workers = make, workers
        self._coming: dict[int, Future[bytes]] = {}
        # spawned: a forked process would inherit the state of the GPU's driver
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, _alone, (make,)) if workers else None

    def __call__(self, step: int) -> T:
        if self._pool is None:
            return self.make(step)
        for later in range(step, step + 2 * self.workers + 1):
            if later not in self._coming:
                self._coming[later] = self._pool.submit(_made, later)
        self._coming = {later: future for later, future in self._coming.items() if later >= step}
        return pickle.loads(self._coming.pop(step).result())

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


_make: Callable[[int], object] | None = None


def _alone(make: Callable[[int], object]) -> None:
    """A worker's start: one thread, deaf to Ctrl-C, which is for the process that trains."""
    import signal

    import torch

    global _make  # noqa: PLW0603 -- the only state of a worker process, set once
    _make = make
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _made(step: int) -> bytes:
    """As bytes: torch would send its tensors through shared memory, one file handle each."""
    assert _make is not None
    return pickle.dumps(_make(step))
