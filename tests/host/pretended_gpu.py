"""A GPU that is not there: tensors that say they are on cuda:0 while their values are computed on the CPU.

What a CPU cannot show by itself shows on it: an operation on tensors of two devices fails as it would on a GPU, and
copies between host and GPU and the operations in DATA_DEPENDENT, which make the host wait for the GPU, are counted with
the line of Python that asked for them. The values are the CPU's to the bit. It says nothing about speed, nor about what
real kernels compute.

Works by torch's dispatch: a `OnGpu` wraps a CPU tensor, and a mode sees every operation, factories included.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
COPIES = ("aten::_to_copy", "aten::copy_")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
"""Their indices may lie on the CPU while the tensor is on the GPU, and are copied there; not the other way round."""
DATA_DEPENDENT = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::equal", "aten::repeat_interleave", "aten::bincount", "aten::_linalg_solve_ex", "aten::_linalg_check_errors",
)  # fmt: skip
"""Operations whose result the host has to know."""
TORCH = str(Path(torch.__file__).parent)
Place = tuple[Path, int]
"""File and line."""


class OnGpu(torch.Tensor):
    """Says that it is on the GPU; `inner` holds the values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        with torch.inference_mode(False):  # as a parameter has to be
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), dtype=inner.dtype, device="meta", dispatch_device=True, **layout
            )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Gpu.current().run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """torch refuses it for subclasses."""
        Gpu.current().wait()
        return self.inner.tolist()


class Gpu(TorchDispatchMode):
    """The device: runs every operation on the CPU, refuses what a GPU would refuse, and counts.

    waits, queued: how often the host would have waited for the GPU, and operations queued on it (views are none), by
    the file and line that asked.
    """

    _current: Gpu | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[Place] = Counter()
        self.queued: Counter[Place] = Counter()

    @classmethod
    def current(cls) -> Gpu:
        assert cls._current is not None, "the pretended GPU has been switched off"
        return cls._current

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def wait(self) -> None:
        self.waits[place()] += 1

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation."""
        if func is torch.ops.prim.device.default:
            return args[0].device
        if func is torch.ops.aten._fused_sdp_choice.default:
            return 0  # the attention that is written in plain operations
        with self:  # an inference tensor's operations come whole: `item` hides the read that it makes
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name, leaves = func._schema.name, tree_leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
        others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnGpu)]
        named = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        to_gpu = named.type == "cuda" if named is not None else bool(ours)
        if name == "aten::copy_":
            to_gpu = isinstance(args[0], OnGpu)
        on_gpu = args and isinstance(args[0], OnGpu)
        strange = [other for other in others if other.dim() > 0]
        if ours and strange and name not in COPIES and not (name in INDEXING and on_gpu):
            raise RuntimeError(f"{func}: a tensor on cuda:0 meets {tuple(strange[0].shape)} on the CPU")
        copied_there = name in INDEXING and on_gpu and strange
        crosses = bool(copied_there or (name in COPIES and (others if to_gpu else ours)))
        by_mask = name in INDEXING and any(leaf.dtype == torch.bool for leaf in ours)
        if crosses or by_mask or (ours and name in DATA_DEPENDENT):
            self.wait()
        if to_gpu and not func.is_view:
            self.queued[place()] += 1
        return self._on_cpu(func, args, kwargs, ours, to_gpu)

    @staticmethod
    def _on_cpu(func: Any, args: Any, kwargs: Any, ours: list[OnGpu], to_gpu: bool) -> Any:
        def inner(leaf: Any) -> Any:
            if isinstance(leaf, OnGpu):
                return leaf.inner
            return CPU if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf

        known = {id(tensor.inner): tensor for tensor in ours}  # written in place, or given back as it is
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))

        def outer(leaf: Any) -> Any:
            if not to_gpu or not isinstance(leaf, torch.Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else OnGpu(leaf)

        return tree_map(outer, out)


def place() -> Place:
    """The innermost Python line that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename.startswith(TORCH) or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return Path(frame.f_code.co_filename), frame.f_lineno


class Event:
    """torch.cuda.Event."""

    made = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        Event.made += 1
        self.at: float | None = None

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at is not None, "an event is waited for that was never recorded"
        Gpu.current().wait()

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None
        return 1000 * (other.at - self.at)


@contextmanager
def moved(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """The ModelPatcher's model on the pretended GPU, and the host made to believe in it, while this is open."""
    import comfy.model_management as management

    torch._C._ensureCUDADeviceGuardSet()
    gpu, module = Gpu(), model.model
    before: list[tuple[Any, str, Any]] = []
    with monkeypatch.context() as patch:
        nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
        for name in ("_lazy_init", "synchronize", "set_device"):
            patch.setattr(torch.cuda, name, nothing)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(management, "get_torch_device", lambda: GPU)
        patch.setattr(management, "get_free_memory", lambda _=None, pair=False: (1 << 36, 1 << 36) if pair else 1 << 36)
        patch.setattr(management, "load_models_gpu", nothing)  # it is where it should be
        patch.setattr(model, "load_device", GPU)
        patch.setattr(Gpu, "_current", gpu)
        lifted = torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is a copy here too
        try:
            with gpu:
                for part in module.modules():
                    for name, weight in part._parameters.items():
                        if weight is not None:
                            before.append((part, name, weight))
                            part._parameters[name] = torch.nn.Parameter(OnGpu(weight.data), requires_grad=False)
                gpu.waits.clear()
                gpu.queued.clear()
                yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            for part, name, weight in before:
                part._parameters[name] = weight
