"""The runs of `bench exact`, and its CSV.

Plain samplers treat the rows of a batch apart, so several pairs are sampled at once (equal to one by one to rounding:
`tests/host/test_bench.py`). Auto and the other caches decide by the mean over a batch, so there each pair has its run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.host.provision import say
from bench.lab import Lab, Pair, Studio, fill
from bench.lab.intervals import paired
from bench.lab.looks import Eye
from bench.lab.store import Store, digest
from bench.lab.studio import FIRST, SIDE
from bench.lab.table import write_csv
from bench.tables.exact.grid import GUIDANCE, PLACES, Auto, Plain, Size, Way, others
from cache_core.metrics import psnr
from cache_core.placement import places

VERSION = "2"
"""Of what is measured: raise it when this file changes a figure."""
ROWS = 4
"""Pairs in one batch."""


@dataclass(frozen=True, slots=True)
class Score:
    """One run. latent, psnr: to the exact latent and picture; own: of the picture to the full run of the same sampler;
    feature, flip: EfficientNet-Lite0's distance and FLIP's error to the exact picture. None where it was not looked at.
    """

    computed: float
    latent: float
    psnr: float | None = None
    own: float | None = None
    feature: float | None = None
    flip: float | None = None


class OutOfTime(Exception):
    """The minutes are over; everything finished is in the store."""


class Easel:
    """Makes runs and scores them; finished ones come from the store."""

    def __init__(self, studio: Studio, size: Size, eye: Eye | None, minutes: float | None) -> None:
        self.studio, self.size, self.eye = studio, size, eye
        self.store = Store(kind=Score)
        self.until = time.monotonic() + 60 * minutes if minutes else None
        self._ground = f"exact {VERSION} {studio.identity} {studio.lab.about()['versions']} {studio.side}"
        self._pictures: dict[str, Tensor] = {}
        self.made = 0

    def score(self, way: Way, budget: int, pairs: Sequence[Pair], look: bool = True) -> list[Score]:
        """One way on these pairs, all of one guidance; without `look` only the latent is scored."""
        keys = [self._key(way, budget, pair, look) for pair in pairs]
        known = [self.store.get(key) for key in keys]
        missing = [pair for pair, score in zip(pairs, known, strict=True) if score is None]
        for at in range(0, len(missing), ROWS if isinstance(way, Plain) else 1):
            self._in_time()
            chunk = missing[at : at + (ROWS if isinstance(way, Plain) else 1)]
            for pair, (latent, computed) in zip(chunk, self._run(way, budget, chunk), strict=True):
                self.store.put(self._key(way, budget, pair, look), self._scored(way, pair, latent, computed, look))
                self.made += 1
        return [self.store.get(key) for key in keys]

    def exact(self, pair: Pair, steps: int | None = None) -> Tensor:
        """The latent of the converged ODE; `prepare` makes many at once."""
        return self._full([pair], "heun", steps or self.size.reference)[0]

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """The exact latents of these pairs, and the full runs that Auto is compared with as well."""
        for cfg in dict.fromkeys(pair.cfg for pair in pairs):
            own = [pair for pair in pairs if pair.cfg == cfg]
            for at in range(0, len(own), ROWS):
                self._full(own[at : at + ROWS], "heun", self.size.reference)
                for sampler in self._own_samplers():
                    self._full(own[at : at + ROWS], sampler, self.size.own)

    def converged(self, pairs: Sequence[Pair]) -> list[float]:
        """PSNR between the exact pictures and those of twice as many steps."""
        self._full(pairs, "heun", 2 * self.size.reference - 1)
        finer = [self.exact(pair, 2 * self.size.reference - 1) for pair in pairs]
        return [psnr(self.studio.picture(fine), self._picture(pair)) for fine, pair in zip(finer, pairs, strict=True)]

    def _own_samplers(self) -> list[str]:
        return sorted({sampler for sampler, steps in self.size.auto if steps == self.size.own})

    def _key(self, way: Way, budget: int, pair: Pair, look: bool) -> str:
        arm = "" if isinstance(way, Plain) else way.arm(budget).key() + way.arm(budget).version()
        return digest(
            [self._ground, way.name, str(budget), str(way.steps), arm, repr(pair), str(look and self._seen())]
        )

    def _seen(self) -> str:
        return f"{self.size.reference} {self.size.own} {self.eye is not None}"

    def _in_time(self) -> None:
        if self.until is not None and time.monotonic() > self.until:
            raise OutOfTime

    def _run(self, way: Way, budget: int, pairs: Sequence[Pair]) -> list[tuple[Tensor, float]]:
        """Latents, and how many evaluations were computed."""
        if isinstance(way, Plain):
            latents, computed = self.draw(pairs, way.sampler, self._levels(way, budget))
            return [(latent[None], computed) for latent in latents]
        (pair,) = pairs
        model, steps, _ = way.arm(budget).set_up(self.studio, way.steps)
        run = self.studio.make(model, pair, steps, None, way.sampler)
        if run.trace is None or run.trace["state"] != "done":
            raise RuntimeError(f"{way.name}: {run.trace and run.trace['state']}, {run.trace and run.trace['notes']}")
        return [(run.latent, round(sum(each["work"] for each in run.trace["evaluations"]), 6))]

    def _levels(self, way: Plain, budget: int) -> Tensor:
        """As the host's KSampler makes them, or as Auto's plan places them."""
        count, steps = way.count(budget), 28
        if way.schedule == PLACES:
            return self.studio.sigmas(steps)[[*places(steps, count), steps]]
        host = self.studio.lab.comfy.samplers.KSampler
        return host(self.studio.model, count, torch.device("cpu"), way.sampler, way.schedule, None, {}).sigmas

    def draw(self, pairs: Sequence[Pair], sampler: str, levels: Tensor) -> tuple[Tensor, float]:
        """Plain runs of several pairs at once; how many evaluations each had."""
        studio, cfg = self.studio, pairs[0].cfg
        empty = torch.zeros(1, 16, studio.side, studio.side)
        noise = torch.cat([studio.lab.comfy.sample.prepare_noise(empty, pair.seed) for pair in pairs])
        told = [studio.conditioning(pair.prompt)[0] for pair in pairs]
        pooled = torch.cat([options["pooled_output"] for _, options in told])
        positive = [[torch.cat([tokens for tokens, _ in told]), {"pooled_output": pooled}]]
        rows: list[int] = []

        def seen(module: Any, args: Any, kwargs: Any) -> None:
            rows.append(len(kwargs["img"]))

        block = studio.model.model.diffusion_model.double_blocks[0]
        handle = block.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            run = studio.lab.sample(
                studio.model, noise, positive, studio.conditioning(""), cfg, len(levels) - 1, levels.clone(),
                pairs[0].seed, sampler,
            )  # fmt: skip
        finally:
            handle.remove()
        return run.latent, sum(rows) / (len(pairs) * (1 if cfg == 1 else 2))

    def _full(self, pairs: Sequence[Pair], sampler: str, steps: int) -> list[Tensor]:
        """Latents of full runs, kept in files."""
        files = [
            self.store.folder / f"{digest([self._ground, sampler, str(steps), repr(pair)])}.safetensors"
            for pair in pairs
        ]
        missing = [(pair, file) for pair, file in zip(pairs, files, strict=True) if not file.exists()]
        if missing:
            self._in_time()
            latents, _ = self.draw([pair for pair, _ in missing], sampler, self.studio.sigmas(steps))
            for (_, file), latent in zip(missing, latents, strict=True):
                save_file({"latent": latent[None].contiguous()}, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
        return [load_file(file)["latent"] for file in files]

    def _picture(self, pair: Pair, sampler: str = "heun") -> Tensor:
        name = f"{pair} {sampler}"
        if name not in self._pictures:
            steps = self.size.reference if sampler == "heun" else self.size.own
            self._pictures[name] = self.studio.picture(self._full([pair], sampler, steps)[0])
        return self._pictures[name]

    def _scored(self, way: Way, pair: Pair, latent: Tensor, computed: float, look: bool) -> Score:
        exact = self.exact(pair)
        close = psnr(latent, exact, float(exact.max() - exact.min()))
        if not look:
            return Score(computed, close)
        mine, true = self.studio.picture(latent), self._picture(pair)
        known = way.steps == self.size.own and way.sampler in self._own_samplers()
        own = psnr(mine, self._picture(pair, way.sampler)) if known else None
        seen = self.eye.looks(mine, true) if self.eye else None
        return Score(computed, close, psnr(mine, true), own, seen and seen.feature, seen and seen.flip)


Record = dict[str, object]


def finalists(easel: Easel, size: Size, records: list[Record]) -> dict[float, list[Plain]]:
    """The best plain combinations of each guidance, screened on a few pairs at one budget, by their latents."""
    chosen: dict[float, list[Plain]] = {}
    waiting = size.combinations()
    for cfg in GUIDANCE:
        pairs = easel.studio.cases(size.screened, cfg)
        easel.prepare(pairs)
        told = {}
        for way in waiting:
            told[way] = _mean(scores := easel.score(way, size.screen, pairs, look=False))
            records.append(record("screened", cfg, way, size.screen, scores))
        waiting = sorted(told, key=lambda way: -told[way])[: size.wide]
        always = [Plain(*each) for each in size.always]
        chosen[cfg] = list(dict.fromkeys([*waiting[: size.best], *always]))
    return chosen


def _mean(scores: Sequence[Score]) -> float:
    return statistics.fmean(score.latent for score in scores)


def measure(
    size: Size, table: Path, minutes: float | None, features: bool, side: int | None, share: str | None = None,
    model: str = FIRST,
) -> str:  # fmt: skip
    """Every run that the time allows, and the CSV of it; returns the line on where the figures are from, or nothing
    where the time was too short for a table, and after a share (K/N: every N-th pair, from K).
    """
    part, parts = (int(number) for number in share.split("/")) if share else (0, 1)
    with torch.inference_mode():
        studio = Studio(Lab(), side or SIDE, model)
        easel = Easel(studio, size, Eye.opened() if features else None, minutes)
        try:
            records = _records(easel, size, slice(part, None, parts))
        except OutOfTime:
            say(f"bench exact: stopped by --minutes in the screening, {easel.made} runs made; the same command goes on")
            return ""
        if share:
            return ""
    write_csv(table, [{"model": model, **each} for each in records])
    return fill.origin(studio.lab.about(), ["auto"])


def _records(easel: Easel, size: Size, own: slice) -> list[Record]:
    """`own`: which of the pairs this process measures; what is beside them belongs to the one that has all."""
    records: list[Record] = []
    plain, done = finalists(easel, size, records), dict.fromkeys(GUIDANCE, 0)
    auto = [Auto(*each) for each in size.auto]
    say(f"{easel.made} runs made for the screening")
    try:
        for count in _sizes(size):
            both: tuple[Mapping[float, Sequence[Way]], ...] = (plain, dict.fromkeys(GUIDANCE, auto))
            for ways in both:
                for cfg in GUIDANCE:
                    _walk(easel, ways[cfg], size.budgets, easel.studio.cases(count, cfg)[own])
                    say(f"CFG {cfg:g}: {count} of {size.pairs} pairs, {easel.made} runs made")
            done = dict.fromkeys(GUIDANCE, count)
        if own.step > 1:
            return []
        for cfg in GUIDANCE:
            for found in _beside(easel, size, cfg):
                records.append(found)  # one by one: what is there counts when the time is over
    except OutOfTime:
        say(f"bench exact: stopped by --minutes, {done[1.0]} pairs are complete; the same command goes on")
    easel.until = None  # what follows is in the store
    for cfg in GUIDANCE:
        if done[cfg]:
            records += summary(easel, cfg, [*plain[cfg], *auto], size.budgets, easel.studio.cases(done[cfg], cfg))
    return records


def _beside(easel: Easel, size: Size, cfg: float) -> Iterator[Record]:
    """On fewer pairs: whether the reference is converged, Auto on other samplers and steps, the other caches."""
    pairs = easel.studio.cases(size.screened, cfg)
    yield _reference(easel, cfg, pairs)
    for way in (Auto(*each) for each in size.auto_screened):
        yield from (record("screened", cfg, way, n, easel.score(way, n, pairs, look=False)) for n in size.screen_auto)
    if size.cached:
        pairs = easel.studio.cases(size.cached, cfg)
        yield from (record("cache", cfg, way, 0, easel.score(way, 0, pairs)) for way in others())


def _sizes(size: Size) -> Iterator[int]:
    """A batch more of pairs each time."""
    yield from range(min(ROWS, size.pairs), size.pairs, ROWS)
    yield size.pairs


def _walk(easel: Easel, ways: Sequence[Way], budgets: Sequence[int], pairs: Sequence[Pair]) -> None:
    easel.prepare(pairs)
    for way in ways:
        for budget in budgets:
            easel.score(way, budget, pairs)


def summary(
    easel: Easel, cfg: float, ways: Sequence[Way], budgets: Sequence[int], pairs: Sequence[Pair]
) -> Iterator[Record]:
    """A record a way and budget, with its margin over the plain combination that is best there on these very pairs."""
    for budget in budgets:
        scores = {way: easel.score(way, budget, pairs) for way in ways}
        rival = max((way for way in ways if way.kind == "plain"), key=lambda way: statistics.fmean(_psnr(scores[way])))
        for way, own in scores.items():
            margin = paired(_psnr(own), _psnr(scores[rival])) if way is not rival else None
            found = record("main", cfg, way, budget, own)
            found |= {"rival": rival.name, "margin": margin and margin.mean, "margin_low": margin and margin.low,
                      "margin_high": margin and margin.high}  # fmt: skip
            yield found


def _psnr(scores: Sequence[Score]) -> list[float]:
    return [score.psnr for score in scores if score.psnr is not None]


def record(stage: str, cfg: float, way: Way, budget: int, scores: Sequence[Score]) -> Record:
    """A line of the CSV: means over pairs, and of the worst tenth of them."""
    pictures = sorted(_psnr(scores))
    worst = pictures[: max(round(len(pictures) / 10), 1)]
    return {
        "stage": stage, "cfg": cfg, "kind": way.kind, "family": getattr(way, "family", way.name), "name": way.name,
        "sampler": way.sampler, "schedule": way.schedule, "steps": way.steps, "budget": budget, "pairs": len(scores),
        "computed": statistics.fmean(score.computed for score in scores), "latent_psnr": _mean(scores),
        "psnr": _over(scores, lambda score: score.psnr), "psnr_worst_tenth": statistics.fmean(worst) if worst else None,
        "own_psnr": _over(scores, lambda score: score.own), "feature": _over(scores, lambda score: score.feature),
        "flip": _over(scores, lambda score: score.flip),
        "rival": "", "margin": None, "margin_low": None, "margin_high": None,
    }  # fmt: skip


def _over(scores: Sequence[Score], what: Callable[[Score], float | None]) -> float | None:
    """The mean; None where it was not looked at in each."""
    values = [value for score in scores if (value := what(score)) is not None]
    return statistics.fmean(values) if len(values) == len(scores) else None


def _reference(easel: Easel, cfg: float, pairs: Sequence[Pair]) -> Record:
    """How far the exact pictures are from those with twice as many evaluations."""
    steps = easel.size.reference
    scores = [Score(2 * steps - 1, value, value) for value in easel.converged(pairs)]
    return record("reference", cfg, Plain("heun", "simple"), 2 * steps - 1, scores)
