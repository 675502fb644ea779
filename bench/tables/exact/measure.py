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

import torch
from torch import Tensor

from bench.host.provision import say
from bench.lab import Lab, Pair, Studio, fill
from bench.lab.easel import CONVERGED, Easel
from bench.lab.intervals import paired
from bench.lab.looks import Eye
from bench.lab.models import COLUMN
from bench.lab.pairs import cases
from bench.lab.studio import SIDE
from bench.lab.table import write_csv
from bench.tables.exact.grid import GUIDANCE, PLACES, Auto, Plain, Size, Way, others
from cache_core.metrics import psnr
from cache_core.placement import places

VERSION = "3"
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


class Canvas(Easel):
    """Makes runs and scores them; finished ones come from the store."""

    def __init__(self, studio: Studio, size: Size, eye: Eye | None, minutes: float | None) -> None:
        super().__init__(studio, "exact", VERSION, Score)
        self.size, self.eye = size, eye
        self.until = time.monotonic() + 60 * minutes if minutes else None
        self.guidance = studio.guided(GUIDANCE)
        self.made = 0

    def score(self, way: Way, budget: int, pairs: Sequence[Pair], look: bool = True) -> list[Score]:
        """One way on these pairs, all of one guidance; without `look` only the latent is scored."""
        keys = [self._way(way, budget, pair, look) for pair in pairs]
        known = [self.store.get(key) for key in keys]
        missing = [pair for pair, score in zip(pairs, known, strict=True) if score is None]
        for at in range(0, len(missing), ROWS if isinstance(way, Plain) else 1):
            self.begin()
            chunk = missing[at : at + (ROWS if isinstance(way, Plain) else 1)]
            for pair, (latent, computed) in zip(chunk, self._run(way, budget, chunk), strict=True):
                self.store.put(self._way(way, budget, pair, look), self._scored(way, pair, latent, computed, look))
                self.made += 1
        return [self.store.get(key) for key in keys]

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """The exact latents of these pairs, and the full runs that Auto is compared with as well."""
        for cfg in dict.fromkeys(pair.cfg for pair in pairs):
            own = [pair for pair in pairs if pair.cfg == cfg]
            for at in range(0, len(own), ROWS):
                self.latents(own[at : at + ROWS], CONVERGED, self.studio.sigmas(self.size.reference))
                for sampler in self._own_samplers():
                    self.latents(own[at : at + ROWS], sampler, self.studio.sigmas(self.size.own))

    def converged(self, pairs: Sequence[Pair]) -> list[float]:
        """PSNR between the exact pictures and those of twice as many steps."""
        finer = self.studio.sigmas(2 * self.size.reference - 1)
        self.latents(pairs, CONVERGED, finer)
        return [psnr(self.plain(pair, CONVERGED, finer)[1], self._exact(pair)[1]) for pair in pairs]

    def _exact(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Latent and picture of the converged ODE; `prepare` makes many at once."""
        return self.plain(pair, CONVERGED, self.studio.sigmas(self.size.reference))

    def _own_samplers(self) -> list[str]:
        return sorted({sampler for sampler, steps in self.size.auto if steps == self.size.own})

    def _way(self, way: Way, budget: int, pair: Pair, look: bool) -> str:
        arm = "" if isinstance(way, Plain) else way.arm(budget).key() + way.arm(budget).version()
        return self.key([way.name, str(budget), str(way.steps), arm, repr(pair), str(look and self._seen())])

    def _seen(self) -> str:
        return f"{self.size.reference} {self.size.own} {self.eye is not None}"

    def begin(self) -> None:
        """Raises `OutOfTime` once the minutes are over."""
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

    def _scored(self, way: Way, pair: Pair, latent: Tensor, computed: float, look: bool) -> Score:
        exact, true = self._exact(pair)
        close = psnr(latent, exact, float(exact.max() - exact.min()))
        if not look:
            return Score(computed, close)
        mine = self.studio.picture(latent)
        known = way.steps == self.size.own and way.sampler in self._own_samplers()
        own = psnr(mine, self.plain(pair, way.sampler, self.studio.sigmas(self.size.own))[1]) if known else None
        seen = self.eye.looks(mine, true) if self.eye else None
        return Score(computed, close, psnr(mine, true), own, seen and seen.feature, seen and seen.flip)


Record = dict[str, object]


def finalists(easel: Canvas, size: Size, records: list[Record]) -> dict[float, list[Plain]]:
    """The best plain combinations of each guidance, screened on a few pairs at one budget, by their latents."""
    chosen: dict[float, list[Plain]] = {}
    waiting = size.combinations()
    for cfg in easel.guidance:
        pairs = cases(size.screened, cfg)
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
    size: Size, table: Path, minutes: float | None, features: bool, side: int | None, share: str | None, model: str
) -> str:  # fmt: skip
    """Every run that the time allows, and the CSV of it; returns the line on where the figures are from, or nothing
    where the time was too short for a table, and after a share (K/N: every N-th pair, from K).
    """
    part, parts = (int(number) for number in share.split("/")) if share else (0, 1)
    with torch.inference_mode():
        studio = Studio(Lab(), side or SIDE, model)
        easel = Canvas(studio, size, Eye.opened() if features else None, minutes)
        try:
            records = _records(easel, size, slice(part, None, parts))
        except OutOfTime:
            say(f"bench exact: stopped by --minutes in the screening, {easel.made} runs made; the same command goes on")
            return ""
        if share:
            return ""
    write_csv(table, [{COLUMN: model, **each} for each in records])
    return fill.origin(studio.lab.about(), ["auto"])


def _records(easel: Canvas, size: Size, own: slice) -> list[Record]:
    """`own`: which of the pairs this process measures; what is beside them belongs to the one that has all."""
    records: list[Record] = []
    plain, done = finalists(easel, size, records), dict.fromkeys(easel.guidance, 0)
    auto = [Auto(*each) for each in size.auto]
    say(f"{easel.made} runs made for the screening")
    try:
        for count in _sizes(size):
            both: tuple[Mapping[float, Sequence[Way]], ...] = (plain, dict.fromkeys(easel.guidance, auto))
            for ways in both:
                for cfg in easel.guidance:
                    _walk(easel, ways[cfg], size.budgets, cases(count, cfg)[own])
                    say(f"CFG {cfg:g}: {count} of {size.pairs} pairs, {easel.made} runs made")
            done = dict.fromkeys(easel.guidance, count)
        if own.step > 1:
            return []
        for cfg in easel.guidance:
            for found in _beside(easel, size, cfg):
                records.append(found)  # one by one: what is there counts when the time is over
    except OutOfTime:
        say(f"bench exact: stopped by --minutes, {min(done.values())} pairs are complete; the same command goes on")
    easel.until = None  # what follows is in the store
    for cfg in easel.guidance:
        if done[cfg]:
            records += summary(easel, cfg, [*plain[cfg], *auto], size.budgets, cases(done[cfg], cfg))
    return records


def _beside(easel: Canvas, size: Size, cfg: float) -> Iterator[Record]:
    """On fewer pairs: whether the reference is converged, Auto on other samplers and steps, the other caches."""
    pairs = cases(size.screened, cfg)
    yield _reference(easel, cfg, pairs)
    for way in (Auto(*each) for each in size.auto_screened):
        yield from (record("screened", cfg, way, n, easel.score(way, n, pairs, look=False)) for n in size.screen_auto)
    if size.cached:
        pairs = cases(size.cached, cfg)
        yield from (record("cache", cfg, way, 0, easel.score(way, 0, pairs)) for way in others())


def _sizes(size: Size) -> Iterator[int]:
    """A batch more of pairs each time."""
    yield from range(min(ROWS, size.pairs), size.pairs, ROWS)
    yield size.pairs


def _walk(easel: Canvas, ways: Sequence[Way], budgets: Sequence[int], pairs: Sequence[Pair]) -> None:
    easel.prepare(pairs)
    for way in ways:
        for budget in budgets:
            easel.score(way, budget, pairs)


def summary(
    easel: Canvas, cfg: float, ways: Sequence[Way], budgets: Sequence[int], pairs: Sequence[Pair]
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


def _reference(easel: Canvas, cfg: float, pairs: Sequence[Pair]) -> Record:
    """How far the exact pictures are from those with twice as many evaluations."""
    steps = easel.size.reference
    scores = [Score(2 * steps - 1, value, value) for value in easel.converged(pairs)]
    return record("reference", cfg, Plain("heun", "simple"), 2 * steps - 1, scores)
