"""A real ComfyUI in this process, with the pack loaded by path, and runs through `comfy.sample` that are timed.

ComfyUI and the pack both have a `nodes`, ComfyUI and bench/host a `server`: neither the repository's root nor one
of bench's rooms may stay on `sys.path`. `cache_core` is imported once and shared with the pack, so that a method made
here is the one that runs there.

Time is processor time on the CPU (one thread, so it is what the run costs, whatever else the machine does). On a GPU a
run is the wall clock between two moments at which the device had nothing left to do, and its evaluations are parted by
the device's own events, so that measuring makes nobody wait who would not wait without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import ROOT
from bench.host.machine import processor

PACK = "spectralcache_bench"


def load_package(name: str, folder: Path) -> ModuleType:
    """A package by path, under this name."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_pack() -> Any:
    """The pack's host module, on the `cache_core` of this process."""
    core = load_package("cache_core", ROOT / "cache_core")
    names = ["cache_core", *(module.name for module in pkgutil.walk_packages(core.__path__, "cache_core."))]
    for name in names:
        sys.modules[f"{PACK}.{name}"] = importlib.import_module(name)
    load_package(PACK, ROOT)
    return importlib.import_module(f"{PACK}.nodes.host")


def load_host(device: str) -> None:
    """ComfyUI's modules, without its command line."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    sys.argv = arguments


def module_at(path: Path) -> ModuleType:
    """A plain file by path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(slots=True)
class Sampled:
    """One finished run.

    seconds: one an evaluation, on the lab's clock; total: of the whole call; wall: the same on the wall clock;
    computed: whether the first block ran, one an evaluation; trace: the pack's, where it ran.
    """

    latent: torch.Tensor
    seconds: list[float]
    total: float
    wall: float
    computed: list[bool]
    trace: Mapping[str, Any] | None


@dataclass(slots=True)
class Ticker:
    """The sampler's callback: when each evaluation ended, and whether a block had run in it. Begins when it is made."""

    device: str
    ran: bool = False
    marks: list[Any] = field(default_factory=list)
    computed: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._mark()

    def block(self, *_: Any) -> None:
        self.ran = True

    def tick(self, *_: Any) -> None:
        self._mark()
        self.computed.append(self.ran)
        self.ran = False

    def _mark(self) -> None:
        if self.device == "cpu":
            self.marks.append(time.process_time())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """One an evaluation; of a run that the device has finished."""
        pairs = itertools.pairwise(self.marks)
        if self.device == "cpu":
            return [after - before for before, after in pairs]
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class Lab:
    """ComfyUI, the pack, and a clock."""

    def __init__(self, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device, self.threads = device, threads
        load_host(device)
        self.pack = load_pack()
        for name in ("sample", "samplers", "sd", "utils"):
            importlib.import_module(f"comfy.{name}")
        self.comfy: Any = sys.modules["comfy"]

    def clock(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def attach(self, model: Any, method: Any, observe: Any = None) -> Any:
        """A clone of `model` with a method of `cache_core` on it; `observe` is told of every feature."""
        return self.pack.attach(model, method, None, observe)

    def sample(
        self,
        model: Any,
        noise: torch.Tensor,
        positive: Any,
        negative: Any,
        cfg: float,
        steps: int,
        sigmas: torch.Tensor | None = None,
        seed: int = 0,
        sampler: str = "euler",
        latent: torch.Tensor | None = None,
    ) -> Sampled:
        """One run with the scheduler simple, or on `sigmas`, through the host's `comfy.sample.sample`; latent: what
        the noise is laid over, empty unless given.
        """
        first_block = _first_block(model)
        before = self.pack.RUNS.newest(lambda _: True)
        wall, started = time.perf_counter(), self.clock()
        ticker = Ticker(self.device)
        handle = first_block.register_forward_hook(ticker.block)
        try:
            made = self.comfy.sample.sample(
                model, noise, steps, cfg, sampler, "simple", positive, negative,
                torch.zeros_like(noise) if latent is None else latent,
                sigmas=sigmas, callback=ticker.tick, disable_pbar=True, seed=seed,
            )  # fmt: skip
        finally:
            handle.remove()
        total = self.clock() - started
        trace = self.pack.RUNS.newest(lambda _: True)
        own = trace if trace is not before else None
        return Sampled(made, ticker.seconds(), total, time.perf_counter() - wall, ticker.computed, own)

    def about(self) -> dict[str, str]:
        """Machine and versions, for the foot of a table."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} of {os.cpu_count()} processors"
        version = module_at(Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py").__version__
        return {
            "machine": f"{processor() if self.device == 'cpu' else torch.cuda.get_device_name()}, {threads}",
            "versions": f"ComfyUI {version}, torch {torch.__version__}, Python {platform.python_version()}",
        }


def _first_block(model: Any) -> Any:
    """The first block of the first list of blocks: what runs whenever the trunk does."""
    lists = (each for each in model.model.diffusion_model.modules() if isinstance(each, torch.nn.ModuleList))
    first = next(blocks for blocks in lists if len(blocks))[0]
    return first[0] if isinstance(first, torch.nn.Sequential) else first  # a U-Net's are run layer by layer
