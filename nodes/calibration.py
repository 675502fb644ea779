"""What Cache Calibrate records while a model is sampled in full: how far modules move from step to step, and what the
predicted noise would have been with one of them reused, or both.

At each step the model is asked again with attention, with the MLP, and with both `lag` steps old, before it is asked in
full: that is FEB-Cache's E_attention, E_mlp, E_both and E_ori (arXiv 2503.07120, Algorithm 1), all of them at the same
latent of the uncached trajectory. The first two run about half of the model each and the third nearly nothing, so that
k lags cost k more pictures a sample. Changes are taken on every `STRIDE`th token; what outlives a step is the engine's
own history of `lags` steps, those tokens, and scalars.

Differs from the original, which decides while it samples: there a step's norms are those of the cached trajectory, with
every module as old as the table made it. A recording serves any share of the work at the price of one; `generators`
walks over it with ages beyond `lags` extrapolated. At the same delta the two agree in 129 of 168 steps (28 steps, two
prompts of the small FLUX at side 12, CFG 1 and 3, work 0.7, 0.5 and 0.35), and leave half of the work each.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cache_core.coefficients import Calibration
from ..cache_core.profile import BOTH
from ..cache_core.track import LaneKey, Seen
from ..cache_core.types import (
    ATTENTION,
    MLP,
    SIGMA_TOLERANCE,
    Feature,
    Figures,
    Gate,
    Grid,
    Method,
    Predictor,
    Rule,
    Signal,
    Step,
    Unit,
    Verdict,
)

STRIDE = 8
KINDS = (ATTENTION.kind, MLP.kind)
TRIALS = {**{kind: frozenset({kind}) for kind in KINDS}, BOTH: frozenset(KINDS)}
"""What is reused in a trial, by the name that the profile has for it."""


@dataclass
class Orders:
    """What the evaluation under way is to reuse: kinds of modules, so many steps old."""

    kinds: frozenset[str] = frozenset()
    lag: int = 1


@dataclass(frozen=True)
class Ordered(Gate):
    """Skip as ordered."""

    orders: Orders
    kind: str

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        return Verdict(self.kind in self.orders.kinds, "trial")


@dataclass(frozen=True)
class Earlier(Predictor):
    """The feature of `lag` steps before this one, whatever was stored at this step already."""

    orders: Orders
    lags: int

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.lags + 1

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        earlier = [entry for entry in history if entry.at.sigma > now.sigma * (1 + SIGMA_TOLERANCE)]
        return earlier[-self.orders.lag].value


@dataclass
class Sums:
    """|F_t - F_(t-lag)| and |F_t| of one module of one layer, summed over its streams and the samples."""

    moved: Tensor | float = 0.0
    size: Tensor | float = 0.0
    count: int = 0


class Calibrator:
    """Records over several runs of one model on the same noise levels. `ticked` is told of every model evaluation."""

    def __init__(self, lags: int, ticked: Callable[[], None]) -> None:
        self.lags, self.ticked, self.orders = lags, ticked, Orders()
        self.sigmas: tuple[float, ...] = ()
        self.noise: list[dict[tuple[str, int, int], Tensor]] = []
        self._sums: dict[tuple[str, int, int, int], Sums] = defaultdict(Sums)
        self._sizes: dict[tuple[str, int, int], Sums] = defaultdict(Sums)
        self._kept: dict[tuple[str, Unit], deque[tuple[int, Tensor]]] = {}
        self._lane: LaneKey | None = None
        self._seen: set[int] = set()

    @property
    def trials(self) -> int:
        """Evaluations that it makes a step."""
        return 1 + len(TRIALS) * self.lags

    @property
    def method(self) -> Method:
        """Nothing is skipped but what is ordered."""
        rules = tuple(
            Rule((place,), Signal(), Ordered(self.orders, place.kind), Earlier(self.orders, self.lags), "absolute")
            for place in (ATTENTION, MLP)
        )
        return Method("Cache Calibrate", rules)

    def begin(self) -> None:
        """Another sample."""
        self.noise.append({})
        self._kept.clear()
        self._seen.clear()
        self._lane = None

    def around(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, *args: Any, **kw: Any
    ) -> Any:
        """PREDICT_NOISE: the trials of a step that is new, then the evaluation itself."""
        levels = (model_options or {}).get("transformer_options", {}).get("sample_sigmas")
        step = -1 if levels is None else self._step(levels, float(timestep.flatten()[0]))
        trials: list[tuple[str, int]] = []
        if 0 < step < len(self.sigmas) - 1 and step not in self._seen:
            trials = [(kind, lag) for lag in range(1, min(self.lags, step) + 1) for kind in TRIALS]
        tried = {}
        try:
            for kind, lag in trials:
                self.orders.kinds, self.orders.lag = TRIALS[kind], lag
                tried[kind, lag, step] = _norm(x, executor(x, timestep, model_options, *args, **kw), timestep)
                self.ticked()
        finally:
            self.orders.kinds = frozenset()
        out = executor(x, timestep, model_options, *args, **kw)
        self._seen.add(step)
        whole = _norm(x, out, timestep)
        self.noise[-1] |= {key: norm / whole for key, norm in tried.items()}
        self.ticked()
        return out

    def observe(self, seen: Seen) -> None:
        """A module's output; only those of full evaluations and of the first conditioning count."""
        if seen.skipped or self.orders.kinds:
            return
        self._lane = self._lane or seen.lane
        if seen.lane != self._lane:
            return
        assert isinstance(seen.unit, tuple)
        kind, step, layer = seen.rule.places[0].kind, seen.feature.at.index, seen.unit[0]
        value = seen.feature.value[:, ::STRIDE].float()
        size = value.abs().mean()
        kept = self._kept.setdefault((kind, seen.unit), deque(maxlen=self.lags))
        for at, earlier in kept:
            if step > at and earlier.shape == value.shape:
                _add(self._sums[kind, step - at, step, layer], (value - earlier).abs().mean(), size)
        _add(self._sizes[kind, step, layer], size, size)
        kept.append((step, value))

    def tables(self) -> dict[str, Tensor]:
        """What was recorded, once every sample is done."""
        total, samples = len(self.sigmas), len(self.noise)
        layers = 1 + max((layer for _, _, layer in self._sizes), default=-1)
        if not layers or not samples:
            return {}
        tables = {"sigmas": torch.tensor(self.sigmas)}
        for kind in KINDS:
            change = torch.full((self.lags, total, layers), torch.nan)
            norm = torch.full((total, layers), torch.nan)
            for (which, lag, step, layer), sums in self._sums.items():
                if which == kind and lag <= self.lags:
                    change[lag - 1, step, layer] = float(sums.moved) / max(float(sums.size), TINY)
            for (which, step, layer), sums in self._sizes.items():
                if which == kind:
                    norm[step, layer] = float(sums.size) / sums.count
            tables |= {f"{kind}.change": change, f"{kind}.norm": norm}
        noise = {kind: torch.full((self.lags, total, samples), torch.nan) for kind in TRIALS}
        for sample, ratios in enumerate(self.noise):
            for (kind, lag, step), ratio in ratios.items():
                noise[kind][lag - 1, step, sample] = float(ratio)
        return tables | {f"{kind}.noise": table for kind, table in noise.items()}

    def _step(self, levels: Tensor, sigma: float) -> int:
        """Which step of the run, found by its noise level."""
        known = levels.tolist()[:-1]
        if not self.sigmas:
            self.sigmas = tuple(known)
        floor = sigma * (1 - SIGMA_TOLERANCE)
        return max((i for i, level in enumerate(known) if level >= floor), default=0)


TINY = 1e-30


def _add(sums: Sums, moved: Tensor, size: Tensor) -> None:
    sums.moved, sums.size, sums.count = sums.moved + moved, sums.size + size, sums.count + 1


def _norm(x: Tensor, denoised: Tensor, timestep: Tensor) -> Tensor:
    """|eps|_2 up to a factor that is the same for all answers at this step: of x - alpha·denoised in a flow model."""
    sigma = timestep.flatten()[0]
    return (x - (1 - sigma).clamp(min=0) * denoised).float().norm()
