"""Makes runs of one model and measures them against the full run of their pair; finished ones come from the store.

The full run of a pair is made anew in each process that has something to compare with it: that gives the pictures, and
seconds from the same minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from bench.lab.arms import EULER, TWICE, Arm, Cached
from bench.lab.lab import Sampled
from bench.lab.looks import Eye
from bench.lab.painter import Painter
from bench.lab.pairs import Pair
from bench.lab.store import Outcome, Store, digest
from bench.lab.studio import SIDE, Studio
from cache_core.metrics import psnr, ssim
from cache_core.trace import estimated_error
from cache_core.types import ATTENTION, MLP

VERSION = "3"
"""Of what is measured: raise it when lab.py, arms.py or this file changes a figure."""


def ground(studio: Painter) -> str:
    """What every figure rests on, beside the code: the model, versions, the size."""
    size = f" {studio.side}" if isinstance(studio, Studio) and studio.side != SIDE else ""
    return f"{VERSION} {studio.identity} {studio.lab.about()['versions']}{size}"


class Runner:
    """One process's share of the bench. eye: looks at every picture, also of runs that are known without."""

    def __init__(self, studio: Painter, store: Store, eye: Eye | None = None) -> None:
        self.studio, self.store, self.eye, self._ground = studio, store, eye, ground(studio)
        self._reference: tuple[Pair, int, str, Sampled, torch.Tensor] | None = None
        self.made = 0
        self._warm = False

    def outcome(self, arm: Arm, pair: Pair, steps: int) -> Outcome:
        """One arm on one pair, where the full run has `steps`."""
        key = self.key(arm, pair, steps)
        known = self.store.get(key)
        if known is None or (self.eye and known.feature is None):
            known = self._measure(arm, pair, steps)
            self.store.put(key, known)
        return known

    def key(self, arm: Arm, pair: Pair, steps: int) -> str:
        return digest([self._ground, arm.version(), arm.key(), repr(pair), str(steps)])

    def _measure(self, arm: Arm, pair: Pair, steps: int) -> Outcome:
        full, picture = self._full(pair, steps, arm.sampler)
        model, count, sigmas = arm.set_up(self.studio, steps)
        run = self.studio.make(model, pair, count, sigmas, arm.solver)
        if arm.sampler not in TWICE:
            self._check(arm, run)
        self.made += 1
        mine = self.studio.picture(run.latent)
        theirs = self._seen(arm, pair, steps, mine)
        looks = self.eye.looks(mine, picture) if self.eye else None
        computed, evaluations = self._evaluations(run, arm.sampler)
        return Outcome(
            computed=computed,
            evaluations=evaluations,
            seconds=run.total,
            speedup=full.total / run.total,
            cache_bytes=run.trace["cache_bytes"] if run.trace else None,
            **closeness(mine, run.latent, picture, full.latent),
            estimate=estimated_error(run.trace["evaluations"]) if run.trace else None,
            exact=theirs,
            feature=looks and looks.feature,
            flip=looks and looks.flip,
        )

    def _seen(self, arm: Arm, pair: Pair, steps: int, picture: torch.Tensor) -> float | None:
        """Told of every picture that was made; may say its PSNR to a better one than the full run's."""
        return None

    @staticmethod
    def _evaluations(run: Sampled, sampler: str) -> tuple[float, int]:
        """Computed and all evaluations; of one that ran in part, the share that did. The callback counts steps, of
        which some samplers evaluate all but the last twice; there the trace knows better.
        """
        if run.trace is not None:
            return round(sum(e["work"] for e in run.trace["evaluations"]), 6), len(run.trace["evaluations"])
        if sampler not in TWICE:
            return sum(run.computed), len(run.computed)
        return 2 * len(run.computed) - 1, 2 * len(run.computed) - 1

    @staticmethod
    def _check(arm: Arm, run: Sampled) -> None:
        """The pack's own count must be what the hook on the first block saw, which may run where others do not, and
        always runs where it is a head.
        """
        if run.trace is None or (isinstance(arm, Cached) and _has_head(arm)):
            return
        least, most = (
            run.trace["computed"],
            run.trace["computed"] + run.trace["partial"] + _in_parts(run.trace) * run.trace["skipped"],
        )
        if run.trace["state"] != "done" or not least <= sum(run.computed) <= most:
            raise RuntimeError(
                f"{arm.name}: {run.trace['state']}, {least} to {most} evaluations computed by its trace, "
                f"{sum(run.computed)} by the blocks ({'; '.join(run.trace['notes'])})"
            )

    def _full(self, pair: Pair, steps: int, sampler: str = EULER) -> tuple[Sampled, torch.Tensor]:
        if self._reference is None or self._reference[:3] != (pair, steps, sampler):
            if not self._warm:
                self.studio.make(self.studio.model, pair, 4)  # loads the model, not timed
                self._warm = True
            run = self._uncached(pair, steps, sampler)
            self._reference = (pair, steps, sampler, run, self.studio.picture(run.latent))
        return self._reference[3], self._reference[4]

    def _uncached(self, pair: Pair, steps: int, sampler: str) -> Sampled:
        """The full run, twice: the seconds are the mean."""
        runs = [self.studio.make(self.studio.model, pair, steps, None, sampler) for _ in range(2)]
        if not torch.equal(runs[0].latent, runs[1].latent):
            raise RuntimeError("two uncached runs of one pair differ: nothing can be measured on this machine")
        runs[0].total = statistics.fmean(run.total for run in runs)
        return runs[0]


def closeness(
    picture: torch.Tensor, latent: torch.Tensor, wanted: torch.Tensor, full: torch.Tensor
) -> dict[str, float]:
    """An `Outcome`'s figures of quality: a picture and its latent against those of the full run."""
    spread = float(full.max() - full.min())
    return {
        "psnr": psnr(picture, wanted), "ssim": ssim(picture, wanted), "latent_psnr": psnr(latent, full, spread),
        "latent_ssim": ssim(_pictures(latent), _pictures(full), spread),
    }  # fmt: skip


def _pictures(latent: torch.Tensor) -> torch.Tensor:
    """b c h w, or a video's with t before h, to pictures b h w c."""
    return latent.movedim(1, -1).flatten(0, -4)


def _in_parts(trace: Mapping[str, Any]) -> bool:
    """Whether modules are skipped apart, so that every block runs on every step."""
    return trace["site"] in (ATTENTION.kind, MLP.kind)


def _has_head(arm: Cached) -> bool:
    return any(place.head for rule in arm.made().rules for place in rule.places)
