"""Runs of a table that walks no grid, kept: outcomes by their key, latents of plain runs in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.lab.pairs import Pair
from bench.lab.runner import ground
from bench.lab.store import Store, digest
from bench.lab.studio import Studio
from cache_core.metrics import psnr

STOOD_DOWN = "stood down"
"""The state of a run that was sampled uncached, in its trace."""
CONVERGED = "heun"
"""The sampler whose run on many steps stands for the exact picture."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One run. psnr: of the picture, to the one that it is compared with; note: why it stood down, or nothing."""

    computed: float
    evaluations: int
    psnr: float
    note: str = ""


class Easel:
    """Makes runs of one small model. table: whose they are; version: of what it measures."""

    def __init__(self, studio: Studio, table: str, version: str = "", kind: type[Any] = Seen) -> None:
        self.studio, self.store = studio, Store(kind=kind)
        self._table, self._ground = [table, version], ground(studio)
        self._pictures: dict[str, Tensor] = {}

    def key(self, parts: Iterable[str]) -> str:
        """What a run is kept by."""
        return digest([*self._table, self._ground, *parts])

    def kept(self, parts: Iterable[str], make: Callable[[], Any]) -> Any:
        """The outcome of a run, from the store or made."""
        key = self.key(parts)
        known = self.store.get(key)
        if known is None:
            known = make()
            self.store.put(key, known)
        return known

    def begin(self) -> None:
        """Told before a run is made; may raise where none is to begin any more."""

    def latents(self, pairs: Sequence[Pair], sampler: str, sigmas: Tensor) -> list[Tensor]:
        """1 c h w of plain runs, shared by all tables; several pairs of one guidance at once.

        The noise levels say all: a flow model's shift only makes such a list.
        """
        files = [self._file(pair, sampler, sigmas) for pair in pairs]
        missing = [(pair, file) for pair, file in zip(pairs, files, strict=True) if not file.exists()]
        if missing:
            self.begin()
            made, _ = self.draw([pair for pair, _ in missing], sampler, sigmas)
            for (_, file), latent in zip(missing, made, strict=True):
                part = file.with_suffix(f".{os.getpid()}.part")
                save_file({"latent": latent[None].contiguous()}, part)
                part.replace(file)
        return [load_file(file)["latent"] for file in files]

    def plain(self, pair: Pair, sampler: str, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Latent and picture of one such run."""
        (latent,) = self.latents([pair], sampler, sigmas)
        name = str(self._file(pair, sampler, sigmas))
        if name not in self._pictures:
            self._pictures[name] = self.studio.picture(latent)
        return latent, self._pictures[name]

    def draw(self, pairs: Sequence[Pair], sampler: str, sigmas: Tensor) -> tuple[Tensor, float]:
        """Plain runs of several pairs at once, b c h w; how many evaluations each had."""
        studio, cfg = self.studio, pairs[0].cfg
        empty = torch.zeros(studio.shape)
        noise = torch.cat([studio.lab.comfy.sample.prepare_noise(empty, pair.seed) for pair in pairs])
        told = [studio.conditioning(pair.prompt)[0] for pair in pairs]
        pooled = torch.cat([options["pooled_output"] for _, options in told])
        positive = [[torch.cat([tokens for tokens, _ in told]), {**told[0][1], "pooled_output": pooled}]]
        rows: list[int] = []
        handle = studio.model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        try:
            run = studio.lab.sample(
                studio.model, noise, positive, studio.conditioning(""), cfg, len(sigmas) - 1, sigmas.clone(),
                pairs[0].seed, sampler,
            )  # fmt: skip
        finally:
            handle.remove()
        return run.latent, sum(rows) / (len(pairs) * (1 if cfg == 1 else 2))

    def seen(self, latent: Tensor, wanted: Tensor, trace: Any, ran: float) -> Seen:
        """An outcome: a run's latent against a picture. trace: of a cached run; ran: evaluations of a plain one."""
        found = psnr(self.studio.picture(latent), wanted)
        if trace is None:
            return Seen(ran, round(ran), found)
        computed = round(sum(each["work"] for each in trace["evaluations"]), 6)
        note = "; ".join(trace["notes"]) if trace["state"] == STOOD_DOWN else ""
        return Seen(computed, len(trace["evaluations"]), found, note)

    def _file(self, pair: Pair, sampler: str, sigmas: Tensor) -> Path:
        parts = ["plain", self._ground, sampler, str(sigmas.tolist()), repr(pair)]
        return self.store.folder / f"{digest(parts)}.safetensors"
