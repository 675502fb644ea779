"""The vocabulary of a caching method: immutable parts, and what passes between them.

A method is a composition. For each *site* (a place where computation can be skipped) one `Rule` says what is looked at
(signal), whether to skip (gate) and what stands in (predictor); a correction may repair the result. The engine
(`session.Session`) runs any such composition, so every trap of the host is solved once.

The algebra was walked through these systems on paper before the first line of the engine:

SpectralCache (2603.05315)  site trunk · modulated-input L1 in two channel bands · all_of(at most C_max, accumulated
    polynomial below tau·s(t), each band below tau·s(t)·gamma) · hold · residual.
FreqCa (2510.08669)         site trunk · no signal · every N steps after a warm-up (a gate that reads only `Step`) ·
    bands(low=hold, high=hermite over `Feature.step`) · residual; K = 3 features of history.
FEB-Cache (2503.07120)      two rules, sites attention and mlp · no signal · mask per step, one per site: the four
    states of its table are the four combinations · hold · absolute; plus a correction (exposure bias b(t)) on all
    evaluations.
MagCache (2506.09045)       site trunk · no signal: its curve over sigma is known before the run, so its accumulated
    error, K and retention resolve to a mask when the run starts · hold, or hold times the curve's product · residual.
FasterCache (2410.19355)    two rules: site attention, every 2nd step, linear(damping w(t)), K = 2; site branch (the
    unconditional output derived from the conditional one), every 5th step, bands(low gain, high gain) over stored
    deltas.
DeepCache (2312.00858)      site unet(branch): the feature entering the last up layer · no signal · every N or a
    quadratic mask · hold · absolute.
First-Block Cache           the sixth, walked afterwards: site trunk with the decision behind the first block; signal:
    that block's residual against the last *computed* one (`Signal.reference = "computed"`) · below · hold · residual.

SpectralCache Auto          the seventh: site trunk or model · no signal, but what the forecast learned about itself
    (`Predictor.learn`) · a budget of computed steps, placed by a density · back-tested slope · a correction on computed
    evaluations, which repays what the skipped ones before them got wrong.

What the walk taught: a gate has three moments. `advance` is arithmetic on figures that are still on the device, so that
accumulators live there; `decide` compares what the one device-to-host read brought back; `settle` writes back what
the decision means for the accumulators. Fixed schedules use only `decide`, and only its `Step`. A predictor may learn
at a computed evaluation; what it learns stays beside the feature and its figures reach the gate with the next read. A
span of blocks that always run (First-Block Cache) becomes a field of `Method` together with the first method that uses
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .coefficients import Calibration

Figures = dict[str, Tensor]
"""Named scalars, 0-dim, on the device: raw figures of a signal in float32, accumulators in float64."""

Past = dict[str, Tensor]
"""What a signal keeps of an evaluation to compare the next one with."""

TRUNK = "trunk"
"""Site: all transformer blocks, between the input embeddings and the final layer."""

MODEL = "model"
"""Site: the whole model call, for models that no architecture file describes. It runs the trunk's rule."""


class CacheError(ValueError):
    """The pack's one exception: a bad parameter or an impossible request, with the way out in its message."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where one evaluation stands in its run.

    `index` is the position in the run's sigmas (found by sigma, never counted), `total` is T = len(sigmas) - 1, `stage`
    counts earlier evaluations at the same index (0 but for multi-call samplers), `sigma` is the noise level, `offset`
    the share of the way to the next step in sigma (0 but for evaluations off the schedule), `width` what this step
    takes off sigma, `time` the logarithm of noise over signal there (minus half the log-SNR), which falls with sigma.
    """

    index: int
    total: int
    sigma: float
    stage: int = 0
    offset: float = 0.0
    width: float = 0.0
    time: float = 0.0

    @property
    def progress(self) -> float:
        """0 at the first step, (T - 1) / T at the last."""
        return self.index / self.total

    @property
    def position(self) -> float:
        """The abscissa of methods that count in steps: it grows strictly as sigma falls."""
        return self.index + self.offset


@dataclass(frozen=True, slots=True)
class Probe:
    """What a signal may look at: the rows of one lane. Fields that no rule needs stay None.

    modulated: b n d, the first block's input after its adaLN (image tokens, references behind the target); at the site
    model the model's scaled input, channels last (b ... c).
    targets: how many of its n tokens belong to the picture that is being made; None for all.
    """

    modulated: Tensor | None = None
    targets: int | None = None


Grid = tuple[int, ...]
"""The token grid of the picture that is being made: (h, w), or (t, h, w) for video; n is their product."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One computed feature of a lane with its coordinates (`step`: its position; `value`: b n d, target tokens).

    `learned` is what the predictor keeps beside the newest one; `time` as in `Step`.
    """

    step: float
    sigma: float
    value: Tensor
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's answer for one evaluation. `limits` carries the name and value of each limit it applied; `scores` what
    it compared with them, where that is not what was read.
    """

    skip: bool
    reason: str
    limits: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to each site in one evaluation; a site without a verdict is computed."""

    verdicts: Mapping[str, Verdict]

    def skips(self, site: str) -> bool:
        verdict = self.verdicts.get(site)
        return verdict is not None and verdict.skip


class Signal:
    """What changed. `look` captures one lane's evaluation, `score` compares it with an earlier capture."""

    needs: frozenset[str] = frozenset()
    """Fields of `Probe` to fill; empty for a fixed schedule, which then costs one read of sigma and nothing else."""
    reference: Literal["previous", "computed"] = "previous"
    """Compare with the lane's previous evaluation, or with its last computed one."""

    def look(self, probe: Probe) -> Past:
        """Capture what later evaluations compare with. The engine copies these tensors before it keeps them."""
        return {}

    def score(self, now: Past, before: Past) -> Figures:
        """Compare two captures: named 0-dim float32 scalars on the device; no host read."""
        return {}

    def observe(self, step: Step, feature: Tensor, past: Past) -> Past:
        """See the feature of a computed evaluation; returns the past to keep."""
        return past


class Gate:
    """Whether to skip. Stateless: its accumulators are the engine's ledger, a mapping of float64 scalars."""

    never: bool = False
    """True where no evaluation can be skipped; the engine then installs nothing."""

    def start(self) -> dict[str, float]:
        """The ledger at the start of a run and after a change of the leading lane."""
        return {}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        """Tentative ledger after this evaluation's figures, on the device; all that `decide` wants to read."""
        return {}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        """Compare what was read with the limits of this step. Pure host arithmetic in float64."""
        raise NotImplementedError

    def settle(self, advanced: Figures, skipped: bool, step: Step) -> Figures:
        """The ledger to carry on with once the evaluation was skipped or computed."""
        return {}


class Predictor:
    """What stands in for a skipped evaluation. No state of its own."""

    depth: int = 1
    """How many computed features the engine keeps per lane."""
    ready: int = 1
    """How many it needs before it may be asked."""
    needs_grid: bool = False
    """Whether it looks at tokens in their places."""

    def predict(self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None) -> Tensor:
        """The feature at `now` from computed ones, oldest first. May return a stored tensor: the engine never lets it
        out.
        """
        raise NotImplementedError

    def learn(self, history: tuple[Feature, ...], new: Feature, grid: Grid | None = None) -> tuple[Past, Figures]:
        """What a computed feature teaches, given those before it: tensors to keep beside it (`Feature.learned`), and
        0-dim float32 figures, on the device, for the gate of the evaluations to come (the leading lane's).
        """
        return {}, {}


class Correction:
    """What repairs a computed feature for what was skipped before it. No state of its own."""

    def repair(
        self,
        history: tuple[Feature, ...],
        new: Feature,
        gap: tuple[Step, ...],
        forecast: Callable[[Step], Tensor],
        now: Step,
    ) -> Tensor:
        """What to add to the feature `new`, computed at `now`: b n d, float32. `history` is from before it, `gap` are
        the steps skipped since (at least one), `forecast` gives what stood in for one of them.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Rule:
    """One site's signal, gate and predictor."""

    site: str
    signal: Signal
    gate: Gate
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Method:
    """A whole published method: immutable, shared by every run that uses it."""

    name: str
    rules: tuple[Rule, ...]
    feature: Literal["residual", "absolute"] = "residual"
    params: Mapping[str, object] = field(default_factory=dict)
    correction: Correction | None = None
    site: str | None = None
    """MODEL: skip whole model calls on every model; None: the trunk where a file describes the model."""

    def rule(self, site: str) -> Rule | None:
        """The rule for a site, or None if the method leaves it alone."""
        return next((rule for rule in self.rules if rule.site == site), None)

    @property
    def never(self) -> bool:
        """True where no rule can ever skip anything."""
        return all(rule.gate.never for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Streams:
    """The token streams that enter the trunk.

    img: b n d, image tokens, the target first and references behind it; txt: b m d; vec: b d, the modulation vector of
    the target's tokens; targets: how many of the n image tokens belong to the picture that is being made.
    """

    img: Tensor
    txt: Tensor
    vec: Tensor
    targets: int

    @property
    def references(self) -> bool:
        """Whether reference tokens (FLUX Kontext, Qwen-Image-Edit) follow the target."""
        return self.img.shape[1] > self.targets


Slot = tuple[str, int]
"""ComfyUI's name of a block in `patches_replace["dit"]`, e.g. ("double_block", 0)."""


class Architecture:
    """One model family: everything the trunk site must know of it, and nothing of any method. Stateless.

    `model` is the diffusion model (`nn.Module`), `args` the mapping with which ComfyUI calls a block replacement.
    """

    name: str = ""
    signal_over_references: bool = False
    """Whether the signal sees reference tokens too, because the model's polynomial was fitted so."""

    def matches(self, model: object) -> bool:
        """Whether this file describes `model`. Must be false where any of the other methods could fail."""
        raise NotImplementedError

    def slots(self, model: object) -> tuple[Slot, ...]:
        """Every block of the trunk in the order in which it runs."""
        raise NotImplementedError

    def enter(self, args: Mapping[str, Any]) -> Streams:
        """The streams that enter the first block."""
        raise NotImplementedError

    def modulated(self, model: object, img: Tensor, vec: Tensor) -> Tensor:
        """The first block's input after its adaLN: (b n d, b d) -> b n d, a new tensor."""
        raise NotImplementedError

    def grid(self, latent: tuple[int, ...]) -> Grid:
        """The target's token grid for a latent of this shape (b c h w or b c t h w)."""
        raise NotImplementedError

    def image(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        """The image tokens (b n d, a view) in what a block returned; `text` tokens precede them where streams are
        joined.
        """
        raise NotImplementedError

    def unchanged(self, args: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
        """What a block returns that does nothing."""
        raise NotImplementedError

    def replaced(self, args: Mapping[str, Any], slot: Slot, text: int, target: Tensor) -> dict[str, Tensor]:
        """What a block returns whose target tokens are `target` (b t d) and whose other tokens pass through."""
        raise NotImplementedError

    def calibration(self, references: bool) -> Calibration:
        """The row of `coefficients` for this model, with or without reference tokens in the call."""
        raise NotImplementedError
