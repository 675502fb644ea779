"""Makes runs of the small FLUX and measures them against the full run of their pair; finished ones come from the store.

The full run of a pair is made anew in each process that has something to compare with it: that gives the pictures, and
seconds from the same minutes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.lab.lab import Sampled
from bench.lab.pairs import Pair
from bench.lab.presets import EULER, TWICE, Arm, places
from bench.lab.store import Outcome, Store, code_version, digest
from bench.lab.studio import WEIGHTS, Studio
from cache_core import methods, placement
from cache_core.metrics import psnr, ssim
from cache_core.trace import estimated_error
from cache_core.types import Method

VERSION = "2"
"""Of what is measured: raise it when lab.py, `presets.places` or this file changes a figure."""


def named(arm: Arm) -> Method:
    """The method of cache_core that an arm names."""
    return methods()[arm.method](**{name: value for name, value in arm.params.items() if name != "sampler"})


class Runner:
    """One process's share of the bench."""

    def __init__(
        self, studio: Studio, store: Store, method_of: Callable[[Arm], Method] | None = None, code: str = ""
    ) -> None:
        """`method_of` makes the method of an arm whose parts live in the bench; `code` is those parts' version."""
        self.studio, self.store = studio, store
        self._method_of = method_of or named
        self._own_code = code
        self._codes: dict[str, str] = {}
        weights = hashlib.sha256((WEIGHTS / "tiny_flux.safetensors").read_bytes()).hexdigest()[:12]
        self._ground = f"{VERSION} {weights} {studio.lab.about()['versions']}"
        self._reference: tuple[Pair, int, str, Sampled, torch.Tensor] | None = None
        self.made = 0
        self._warm = False

    def outcome(self, arm: Arm, pair: Pair, steps: int) -> Outcome:
        """One arm on one pair, where the full run has `steps`."""
        key = self._key(arm, pair, steps)
        known = self.store.get(key)
        if known is None:
            known = self._measure(arm, pair, steps)
            self.store.put(key, known)
        return known

    def _key(self, arm: Arm, pair: Pair, steps: int) -> str:
        parameters = json.dumps([arm.kind, arm.method, dict(arm.params)], sort_keys=True)
        return digest([self._ground, self._code(arm), parameters, repr(pair), str(steps)])

    def _code(self, arm: Arm) -> str:
        """The version of the code that an arm goes through; nothing for arms without code of ours."""
        if arm.params.get("power") == "auto":
            return digest([Path(placement.__file__).read_text("utf-8")])
        if arm.kind not in ("method", "bench"):
            return ""
        if arm.method not in self._codes:
            self._codes[arm.method] = code_version([arm.method] if arm.method else [])
        return self._codes[arm.method] + (self._own_code if arm.kind == "bench" else "")

    def _measure(self, arm: Arm, pair: Pair, steps: int) -> Outcome:
        sampler = str(arm.params.get("sampler", EULER))
        full, picture = self._full(pair, steps, sampler)
        model, count, sigmas = self._set_up(arm, steps)
        with self.studio.lab.site(arm.params.get("site")):
            run = self.studio.make(model, pair, count, sigmas, sampler)
        if sampler not in TWICE:
            self._check(arm, run)
        self.made += 1
        mine = self.studio.picture(run.latent)
        spread = float(full.latent.max() - full.latent.min())
        computed, evaluations = self._evaluations(run, sampler)
        return Outcome(
            computed=computed,
            evaluations=evaluations,
            seconds=run.total,
            speedup=full.total / run.total,
            cache_bytes=run.trace["cache_bytes"] if run.trace else None,
            psnr=psnr(mine, picture),
            ssim=ssim(mine, picture),
            latent_psnr=psnr(run.latent, full.latent, spread),
            latent_ssim=ssim(run.latent.movedim(1, -1), full.latent.movedim(1, -1), spread),
            estimate=estimated_error(run.trace["evaluations"]) if run.trace else None,
        )

    def _set_up(self, arm: Arm, steps: int) -> tuple[Any, int, torch.Tensor | None]:
        """Model, steps, and noise levels where they are not the scheduler's."""
        model, params = self.studio.model, dict(arm.params)
        if arm.kind == "fewer":
            return model, params["count"], None
        if arm.kind == "dense":
            levels = self.studio.sigmas(steps)
            count, power = params["count"], params["power"]
            chosen = [*(placement.places(steps, count) if power == "auto" else places(steps, count, power)), steps]
            return model, params["count"], levels[chosen]
        if arm.kind in ("EasyCache", "LazyCache"):
            return self._core(arm.kind, model, params), steps, None
        return self.studio.lab.attach(model, self._method_of(arm)), steps, None

    @staticmethod
    def _core(kind: str, model: Any, params: Mapping[str, Any]) -> Any:
        """ComfyUI's own cache with its node's defaults for the rest."""
        node = getattr(importlib.import_module("comfy_extras.nodes_easycache"), f"{kind}Node")
        defaults = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        guarded = model.clone()
        if not params.get("as_shipped"):
            guarded.add_wrapper_with_key("diffusion_model", "bench copies the input", copied_input)
        given = {name: value for name, value in params.items() if name != "as_shipped"}
        return node.execute(guarded, **{**defaults, **given}).args[0]

    @staticmethod
    def _evaluations(run: Sampled, sampler: str) -> tuple[int, int]:
        """Computed and all evaluations. The callback counts steps, of which some samplers evaluate all but the last
        twice; there the trace knows better.
        """
        if sampler not in TWICE:
            return sum(run.computed), len(run.computed)
        if run.trace is None:
            return 2 * len(run.computed) - 1, 2 * len(run.computed) - 1
        return run.trace["computed"] + run.trace["partial"], len(run.trace["evaluations"])

    @staticmethod
    def _check(arm: Arm, run: Sampled) -> None:
        """The pack's own count must be what the hook on the first block saw."""
        if run.trace is None:
            return
        said = run.trace["computed"] + run.trace["partial"]
        if run.trace["state"] != "done" or said != sum(run.computed):
            raise RuntimeError(
                f"{arm.name}: {run.trace['state']}, {said} evaluations computed by its trace, "
                f"{sum(run.computed)} by the blocks ({'; '.join(run.trace['notes'])})"
            )

    def _full(self, pair: Pair, steps: int, sampler: str = EULER) -> tuple[Sampled, torch.Tensor]:
        if self._reference is None or self._reference[:3] != (pair, steps, sampler):
            if not self._warm:
                self.studio.make(self.studio.model, pair, 4)  # loads the model, not timed
                self._warm = True
            runs = [self.studio.make(self.studio.model, pair, steps, None, sampler) for _ in range(2)]
            if not torch.equal(runs[0].latent, runs[1].latent):
                raise RuntimeError("two uncached runs of one pair differ: nothing can be measured on this machine")
            runs[0].total = statistics.fmean(run.total for run in runs)
            self._reference = (pair, steps, sampler, runs[0], self.studio.picture(runs[0].latent))
        return self._reference[3], self._reference[4]


def copied_input(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """EasyCache adds its cached change to the model's input in place. In float32, as here, that input is the tensor
    from which ComfyUI then forms the denoised latent, which ruins the picture; in half precision a cast copies it.
    EasyCache is measured as it works there.
    """
    return executor(x.clone(), *args, **kwargs)
