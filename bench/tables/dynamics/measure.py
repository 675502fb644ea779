"""What `bench dynamics` measures of a small model: forced reuse, and what its streams do from step to step.

Everything goes through torch's own hooks on the blocks: a run is the host's, with one block's result exchanged.

SpectralCache (arXiv 2603.05315) §3.1: at one step the last block gives what it gave a step before. §3.2: chosen blocks
add, at every step but the first, what they added at the first. §3.3, eq. 3: relative change of a block's image tokens
in eight radial DCT bands. FreqCa (2510.08669): how alike low and high bands are at a distance of k steps, and whether
they go on as they went. TeaCache (2411.19108): change of the first block's modulated input against that of the output.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.lab.pairs import Pair
from bench.lab.studio import Studio
from cache_core.models import flux, qwen_image
from cache_core.spectrum import Rings

STEPS, CFG = 20, 1.0
"""The paper's."""
BANDS = 8
CUTOFF = 0.1
"""FreqCa's."""
LAGS = 5
CHOICES = 4
"""Sets of blocks tried a number of blocks and way."""

Streams = tuple[Tensor, ...]
"""img and txt of a double block; both in one, text first, of a single one."""
Visit = Callable[[int, int, Streams, Streams], Streams | None]
"""(step, block, what entered, what left) -> what is to leave instead."""
Record = dict[str, object]


class FluxTrunk:
    """The host's blocks of FLUX: double ones, then single ones with both streams in one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = [*model.double_blocks, *model.single_blocks]
        self.ending = model.final_layer
        self._doubles = len(model.double_blocks)

    def entered(self, block: int, args: Any, kwargs: Any) -> Streams:
        return (kwargs["img"], kwargs["txt"]) if block < self._doubles else (args[0],)

    def left(self, block: int, output: Any) -> Streams:
        return output if block < self._doubles else (output,)

    def instead(self, block: int, streams: Streams) -> Any:
        return streams if block < self._doubles else streams[0]

    def modulated(self, kwargs: Any) -> Tensor:
        return flux.ARCHITECTURE.modulated(self.model, kwargs["img"], kwargs["vec"])


class QwenTrunk:
    """The host's blocks of Qwen-Image: double ones alone, which return the text first."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = list(model.transformer_blocks)
        self.ending = model.proj_out

    def entered(self, block: int, args: Any, kwargs: Any) -> Streams:
        return kwargs["hidden_states"], kwargs["encoder_hidden_states"]

    def left(self, block: int, output: Any) -> Streams:
        txt, img = output
        return img, txt

    def instead(self, block: int, streams: Streams) -> Any:
        img, txt = streams
        return txt, img

    def modulated(self, kwargs: Any) -> Tensor:
        return qwen_image.ARCHITECTURE.modulated(self.model, kwargs["hidden_states"], kwargs["temb"])


Trunk = FluxTrunk | QwenTrunk


def trunk_of(model: Any) -> Trunk:
    return QwenTrunk(model) if qwen_image.ARCHITECTURE.matches(model) else FluxTrunk(model)


@contextmanager
def visited(trunk: Trunk, visit: Visit) -> Iterator[None]:
    """`visit` is called behind every block; the model is called once a step. What entered is copied before: the host's
    blocks add to it in place.
    """
    step = itertools.count(-1)
    now = [next(step)]
    entered: list[Streams] = [()]

    def begin(*_: Any) -> None:
        now[0] = next(step)

    def before(block: int, module: Any, args: Any, kwargs: Any) -> None:
        entered[0] = tuple(stream.clone() for stream in trunk.entered(block, args, kwargs))

    def behind(block: int, module: Any, args: Any, output: Any) -> Any:
        instead = visit(now[0], block, entered[0], trunk.left(block, output))
        return None if instead is None else trunk.instead(block, instead)

    handles = [trunk.model.register_forward_pre_hook(begin)]
    for i, each in enumerate(trunk.blocks):
        handles.append(each.register_forward_pre_hook(partial(before, i), with_kwargs=True))
        handles.append(each.register_forward_hook(partial(behind, i)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def joined(streams: Streams) -> Tensor:
    """Text and image in one, as single blocks have it."""
    return streams[0] if len(streams) == 1 else torch.cat((streams[1], streams[0]), dim=1)


def parted(whole: Tensor, like: Streams) -> Streams:
    """What was joined, in the streams of `like`."""
    if len(like) == 1:
        return (whole,)
    text = like[1].shape[1]
    return whole[:, text:], whole[:, :text]


class Reuse:
    """§3.1: at step `at` the last block's output of the step before, or what the trunk then added (`residual`)."""

    def __init__(self, at: int, last: int, residual: bool) -> None:
        self.at, self.last, self.residual = at, last, residual
        self.entry: Tensor | None = None
        self.kept: Tensor | None = None

    def __call__(self, step: int, block: int, entered: Streams, left: Streams) -> Streams | None:
        if block == 0:
            self.entry = joined(entered)
        if block != self.last:
            return None
        assert self.entry is not None
        base = self.entry if self.residual else torch.zeros_like(self.entry)
        before, self.kept = self.kept, joined(left) - base
        return None if step != self.at or before is None else parted(base + before, left)


class Stale:
    """§3.2: these blocks add at every step what they added at the first one."""

    def __init__(self, chosen: frozenset[int]) -> None:
        self.chosen = chosen
        self.kept: dict[int, Streams] = {}

    def __call__(self, step: int, block: int, entered: Streams, left: Streams) -> Streams | None:
        if block not in self.chosen:
            return None
        if step == 0:
            self.kept[block] = tuple(after - before for before, after in zip(entered, left, strict=True))
            return None
        return tuple(before + added for before, added in zip(entered, self.kept[block], strict=True))


class Look:
    """A full run, step by step: the modulated input, and the image tokens where a cache would take them."""

    def __init__(self, trunk: Trunk, tokens: int) -> None:
        self.trunk, self.tokens = trunk, tokens
        self.modulated: list[Tensor] = []
        self.entry: list[Tensor] = []
        self.middle: list[Tensor] = []
        self.last: list[Tensor] = []
        self.output: list[Tensor] = []

    def __call__(self, step: int, block: int, entered: Streams, left: Streams) -> None:
        count = len(self.trunk.blocks)
        if block == 0:
            self.entry.append(entered[0])
        for where, kept in ((count // 2, self.middle), (count - 1, self.last)):
            if block == where:
                kept.append(joined(left)[:, -self.tokens :].clone())

    @contextmanager
    def looking(self) -> Iterator[None]:
        def before(_module: Any, _args: Any, kwargs: Any) -> None:
            self.modulated.append(self.trunk.modulated(kwargs))

        handles = [
            self.trunk.blocks[0].register_forward_pre_hook(before, with_kwargs=True),
            self.trunk.ending.register_forward_hook(lambda _m, _a, out: self.output.append(out.clone())),
        ]
        try:
            with visited(self.trunk, self):
                yield
        finally:
            for handle in handles:
                handle.remove()


def measure(studio: Studio, text: str, seed: int, quick: bool = False) -> Iterator[Record]:
    """Every figure of one prompt and seed, a record each."""
    pair = Pair(text, seed, CFG)
    trunk = trunk_of(studio.model.model.diffusion_model)
    look = Look(trunk, (studio.side // 2) ** 2)
    with look.looking():
        full = sampled(studio, pair)

    def record(part: str, series: str, x: float, value: float) -> Record:
        return {"part": part, "series": series, "x": float(x), "value": float(value), "seed": seed}

    def error(visit: Visit) -> float:
        with visited(trunk, visit):
            return float((sampled(studio, pair) - full).norm())

    total = len(trunk.blocks)
    for series, x, reuse in sensitivity(total, quick):
        yield record("sensitivity", series, x, error(reuse))
    for series, x, chosen in depth(total, random.Random(seed), quick):
        yield record("depth", series, x, error(Stale(chosen)))
    for part, series, x, value in watched(look, (studio.side // 2,) * 2):
        yield record(part, series, x, value)


def sampled(studio: Studio, pair: Pair) -> Tensor:
    return studio.make(studio.model, pair, STEPS).latent


def sensitivity(total: int, quick: bool) -> Iterator[tuple[str, int, Reuse]]:
    for at in (1, STEPS // 2, STEPS - 1) if quick else range(1, STEPS):
        for series, residual in (("outputs", False), ("residual", True)):
            yield series, at, Reuse(at, total - 1, residual)


def depth(total: int, rng: random.Random, quick: bool) -> Iterator[tuple[str, int, frozenset[int]]]:
    """Neighbours, those from the first block on, and as many anywhere."""
    for k in (1, total // 2) if quick else range(1, total):
        starts = list(range(1, total - k + 1))
        yield "from the start", k, frozenset(range(k))
        for start in rng.sample(starts, min(1 if quick else CHOICES, len(starts))):
            yield "neighbours", k, frozenset(range(start, start + k))
        for _ in range(1 if quick else CHOICES):
            yield "spread", k, frozenset(rng.sample(range(total), k))


def watched(look: Look, grid: tuple[int, int]) -> Iterator[tuple[str, str, float, float]]:
    """(part, series, x, value) of the full run alone."""
    residual = [after - before for before, after in zip(look.entry, look.last, strict=True)]
    objects = {"middle block": look.middle, "last block": look.last, "residual": residual}
    device = look.entry[0].device
    eighths = Rings(grid, tuple(b / BANDS for b in range(1, BANDS)), device)
    halves = Rings(grid, (CUTOFF,), device)
    for name, values in objects.items():
        spectra = [eighths.forward(value) for value in values]
        for band in range(BANDS):
            inside = [spectrum[:, eighths.masks[band] > 0] for spectrum in spectra]
            changes = [change(after, before) for before, after in itertools.pairwise(inside)]
            yield "bands", name, band + 1, sum(changes) / len(changes)
        for half, side in enumerate(("low", "high")):
            inside = [halves.forward(value)[:, halves.masks[half] > 0] for value in values]
            for lag in range(1, LAGS + 1):
                alike = [cosine(inside[i], inside[i - lag]) for i in range(lag, len(inside))]
                yield "similarity", f"{side}, {name}", lag, sum(alike) / len(alike)
            moves = [after - before for before, after in itertools.pairwise(inside)]
            onward = [cosine(after, before) for before, after in itertools.pairwise(moves)]
            yield "continuity", f"{side}, {name}", 1, sum(onward) / len(onward)
            left = [float((after - before).norm() / after.norm()) for before, after in itertools.pairwise(moves)]
            yield "forecast", f"{side}, {name}", 1, sum(left) / len(left)
    for i in range(1, len(look.output)):
        x = relative(look.modulated[i], look.modulated[i - 1])
        yield "relation", "output", x, relative(look.output[i], look.output[i - 1])
        yield "relation", "residual", x, relative(residual[i], residual[i - 1])


def change(after: Tensor, before: Tensor) -> float:
    """Eq. 3, one pair of steps."""
    return float((after - before).norm() / before.norm())


def relative(after: Tensor, before: Tensor) -> float:
    """TeaCache's relative L1 distance."""
    return float((after - before).abs().mean() / before.abs().mean())


def cosine(one: Tensor, other: Tensor) -> float:
    product = float((one * other).sum())
    return product / math.sqrt(float(one.square().sum()) * float(other.square().sum()))
