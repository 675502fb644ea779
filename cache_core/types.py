"""The vocabulary of a caching method: immutable parts, and what passes between them.

A method is a composition. Each `Rule` names the places where it can skip, in order of preference, and says what is
looked at (signal), whether to skip (gate), what stands in (predictor) and how a computed feature is repaired
(correction); an `Output` part may act on what every evaluation ends with. The engine (`session`) runs any such
composition, several rules in one run, so every trap of the host is solved once. tests/core/test_walk.py composes the
systems of the papers from these parts and runs them on toys.

A gate has three moments. `advance` is arithmetic on figures that are still on the device, so that accumulators live
there; `decide` compares what the one device-to-host read brought back; `settle` writes back what the decision means
for the accumulators. Fixed schedules use only `decide`, and only its `Step`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .coefficients import Calibration
from .placement import begun, ending, even, ragged

Figures = dict[str, Tensor]
"""Named scalars, 0-dim, on the device: raw figures of a signal in float32, accumulators in float64."""

Past = dict[str, Tensor]
"""What a signal keeps of an evaluation to compare the next one with."""


MISFIT, CHANGE, ESTIMATE, BUDGET = "misfit", "change", "estimate", "budget"
"""Names that parts and reports share. Figures, against the feature: what of its newest change no back-test could
explain; the change between a lane's first two computed steps. Score of a skipped evaluation: the method's own
estimate of the relative error of what stood in. Limit of every evaluation where a method has one: the steps of the run
that it means to compute.
"""


class CacheError(ValueError):
    """The pack's one exception: a bad parameter or an impossible request, with the way out in its message."""


# where ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule can skip. `kind` is the name of a site.

    head, tail: layers at either end that always run, so that the decision falls behind the first `head` and the last
    `tail` run on what stands in; only: the numbers of the layers that count, None for all; budget: bytes that may be
    held there, of which the last layers get what there is, 0 for no limit.
    """

    kind: str
    head: int = 0
    tail: int = 0
    only: tuple[int, ...] | None = None
    budget: float = 0.0


Store = Literal["device", "ram", "fp8"]
"""Where and how a feature is held until it is used; see `storage`."""

GUIDED = Place("guided")
"""The guided result of an evaluation, whatever calls it takes to make it."""
MODEL = Place("model")
"""The whole model call."""
BRANCH = Place("branch")
"""The unconditional result of an evaluation, derived from the conditional one. The feature is the difference of their
ODE derivatives, unconditional minus conditional.
"""
TRUNK = Place("trunk")
"""All transformer blocks, between the input embeddings and the final layer."""
BLOCKS = Place("blocks")
"""Every transformer block by itself: each decides on what enters it, which costs one read a block."""
ATTENTION = Place("attention")
"""The attention of every block, each stream of it by itself, before its gate."""
MLP = Place("mlp")
"""The MLP of every block, the same way."""
UNET = Place("unet", head=1, tail=1)
"""The blocks of a U-Net between the outermost `head` on its way down and `tail` on its way up; what stands in enters
the first of these.
"""

Unit = Hashable
"""What a site stores apart: `WHOLE` where it has but one, else a layer, or one stream of it."""
WHOLE: Unit = "whole"


# when -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """The run's T + 1 noise levels, and the logarithm of noise over signal at one of them; flow: whether the signal's
    scale is 1 - sigma, as in a flow model, or 1. open: more steps will follow (a sampler that cuts one run into
    several), how many is not known.
    """

    sigmas: tuple[float, ...]
    log_noise: Callable[[float], float]
    flow: bool = True
    open: bool = False

    @property
    def total(self) -> int:
        """T, the number of steps."""
        return len(self.sigmas) - 1

    def index(self, sigma: float) -> int:
        """The largest i <= T - 1 with sigmas[i] >= sigma·(1 - 1e-4), else 0."""
        floor = sigma * (1 - SIGMA_TOLERANCE)
        return max((i for i in range(self.total) if self.sigmas[i] >= floor), default=0)

    def at(self, sigma: float, stage: int = 0) -> Step:
        """The step of an evaluation at this noise level."""
        index = self.index(sigma)
        above, below = self.sigmas[index : index + 2]
        offset = min(max((above - sigma) / (above - below), 0.0), 1.0) if above > below else 0.0
        return Step(index, self.total, sigma, stage, offset, above - below, self.log_noise(sigma), self)


MOST_EXPECTED = 200
"""Steps that are expected behind a piece of a run, at most."""
SIGMA_TOLERANCE = 1e-4
"""Two noise levels closer than this (relative) are the same: sigmas pass through the samplers in float32."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where one evaluation stands in its run.

    `index` is the position in the run's sigmas (found by sigma, never counted), `total` is T = len(sigmas) - 1, `stage`
    counts earlier evaluations at the same index (0 but for multi-call samplers), `sigma` is the noise level, `offset`
    the share of the way to the next step in sigma (0 but for evaluations off the schedule), `width` what this step
    takes off sigma, `log_noise` the logarithm of noise over signal there (minus half the log-SNR), which falls with
    sigma; from `schedule` masks and curves over the whole run resolve.
    """

    index: int
    total: int
    sigma: float
    stage: int = 0
    offset: float = 0.0
    width: float = 0.0
    log_noise: float = 0.0
    schedule: Schedule | None = field(default=None, compare=False, repr=False)

    @property
    def progress(self) -> float:
        """0 at the first step, (T - 1) / T at the last."""
        return self.index / self.total

    @property
    def signal(self) -> float:
        """The signal's scale at this noise level."""
        return max(1.0 - self.sigma, 0.0) if self.schedule is None or self.schedule.flow else 1.0

    @property
    def open(self) -> bool:
        """Whether more steps follow than `total` knows of."""
        return self.schedule is not None and self.schedule.open

    @property
    def expected(self) -> int:
        """How many steps there will be: `total`, or where more follow as many as if they were as wide as the last."""
        if self.schedule is None or not self.open:
            return self.total
        before, end = self.schedule.sigmas[-2:]
        return self.total + min(round(end / (before - end)) if before > end else 0, MOST_EXPECTED)

    @property
    def stands(self) -> tuple[float, ...] | None:
        """Where each step of the run counts when steps are placed (`placement.even`); None: at its own number."""
        whole = self.schedule is not None and self.schedule.flow and not self.schedule.open
        return even(self.schedule.sigmas) if self.schedule is not None and whole else None

    @property
    def begun(self) -> float:
        """The share of the way from noise to picture before the run's first step (`placement.begun`)."""
        if self.schedule is None or self.open:
            return 0.0
        return begun(self.schedule.sigmas[0], self.schedule.flow)

    @property
    def ragged(self) -> bool:
        """Whether the run has wide steps between narrow ones (`placement.ragged`)."""
        return self.schedule is not None and ragged(self.schedule.sigmas)

    def ending(self, left: int) -> int:
        """How many steps are the end of a run that computes `left` behind its first ones (`placement.ending`)."""
        if self.schedule is None or self.open or self.total < 2:
            return 1
        sigmas = self.schedule.sigmas
        return ending(sigmas, self.schedule.log_noise(sigmas[-3]), left)

    @property
    def position(self) -> float:
        """The abscissa of methods that count in steps: it grows strictly as sigma falls."""
        return self.index + self.offset


# what -----------------------------------------------------------------------------------------------------------------

Grid = tuple[int, ...]
"""The token grid of the picture that is being made: (h, w), or (t, h, w) for video; n is their product."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a signal may look at: the rows of one lane. A site fills what `Signal.needs` names, the rest is None.

    modulated: b n d, the first block's input after its adaLN (image tokens, references behind the target); where whole
    calls are skipped the model's scaled input, channels last (b ... c).
    head: b n d, what the head layers of the rule's place have added to the target's tokens.
    targets: how many of its n tokens belong to the picture that is being made; None for all.
    entered: b n d, the target's tokens as they enter the block, or the first block behind the head.
    sigma, grid: the noise level (0-dim, on the device) and the token grid of the target, None where nothing is known
    of it (places within a described trunk).
    embedding: b d, the vector that modulates the target's tokens in every block; text: b m d, the text tokens that
    enter the first one.
    """

    modulated: Tensor | None = None
    targets: int | None = None
    head: Tensor | None = None
    entered: Tensor | None = None
    sigma: Tensor | None = None
    grid: Grid | None = None
    embedding: Tensor | None = None
    text: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """One computed feature of a lane (b n d) and the step it is from; `learned` is what the predictor keeps beside the
    newest one.
    """

    at: Step
    value: Tensor
    learned: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's answer for one evaluation. `limits` carries the name and value of each limit it applied; `scores` what
    it compared with them, where that is not what was read; `only` the layers that a skip is for (from 0, or backwards
    from -1), None for all; `gain` says what to multiply what stands in with, for a feature computed at that step.
    """

    skip: bool
    reason: str
    limits: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scores: Mapping[str, float] | None = None
    only: frozenset[int] | None = None
    gain: Callable[[Step], float] | None = None


# the parts ------------------------------------------------------------------------------------------------------------


class Signal:
    """What changed. `look` captures one lane's evaluation, `score` compares it with an earlier capture."""

    needs: frozenset[str] = frozenset()
    """Fields of `Probe` to fill; empty for a fixed schedule, which then costs one read of sigma and nothing else."""
    reference: Literal["previous", "computed"] = "previous"
    """Compare with the lane's previous evaluation, or with its last computed one."""
    tap: float | None = None
    """Where in the trunk, 0 to 1, a computed evaluation's stream is handed to `observe`; None: nowhere. At the branch:
    the conditional derivative.
    """

    def look(self, probe: Probe) -> Past:
        """Capture what later evaluations compare with. The engine copies these tensors before it keeps them."""
        return {}

    def score(self, now: Past, before: Past) -> Figures:
        """Compare two captures: named 0-dim float32 scalars on the device; no host read."""
        return {}

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        """See the feature of a computed evaluation and the stream at the tap, on its token grid; returns the past to
        keep. What it adds stays in the past, through skipped evaluations, until it is replaced.
        """
        return past


class Gate:
    """Whether to skip. Stateless: its accumulators are the engine's ledger, a mapping of float64 scalars."""

    never: bool = False
    """True where no evaluation can be skipped; the engine then installs nothing."""

    def start(self) -> dict[str, float]:
        """The ledger at the start of a run. Another leading lane carries on with it."""
        return {}

    def advance(self, figures: Figures, ledger: Figures, calibration: Calibration) -> Figures:
        """Tentative ledger after this evaluation's figures, on the device; all that `decide` wants to read."""
        return {}

    def decide(self, reading: Mapping[str, float], step: Step, calibration: Calibration) -> Verdict:
        """Compare what was read with the limits of this step. Pure host arithmetic in float64."""
        raise NotImplementedError

    def settle(self, advanced: Figures, reading: Mapping[str, float], skipped: bool, step: Step) -> Figures:
        """The ledger to carry on with once the evaluation was skipped or computed; `reading` is empty where nothing
        could be compared. Reads nothing more.
        """
        return {}


class Predictor:
    """What stands in for a skipped evaluation. No state of its own."""

    depth: int = 1
    """How many computed features the engine keeps per lane and unit."""
    ready: int = 1
    """How many it needs before it may be asked."""
    needs_grid: bool = False
    """Whether it looks at tokens in their places."""
    apart: bool = False
    """Whether latents that are packed into one are each forecast by themselves."""

    def predict(
        self, history: tuple[Feature, ...], now: Step, grid: Grid | None = None, figures: Figures | None = None
    ) -> Tensor:
        """The feature at `now` from computed ones, oldest first. May return a stored tensor: the engine never lets it
        out. `figures` are this evaluation's, of the leading lane, still on the device.
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

    def trusted(self, history: tuple[Feature, ...], new: Feature) -> Tensor | None:
        """The share of a repair that what was computed supports: b 1 1 in 0 .. 1, None for all of it. The leading
        lane's counts for all.
        """
        return None

    def bounded(
        self, repair: Tensor | None, debt: Any, new: Feature, gap: tuple[Step, ...], now: Step
    ) -> tuple[Tensor | None, Any]:
        """What `now` pays of its repair and of an older debt, and the debt that is left (None: no debt)."""
        return repair, None


class Output:
    """What acts on the guided result of every evaluation, skipped or not, once a run has skipped anything."""

    def adjust(self, now: Step, x: Tensor, denoised: Tensor) -> Tensor:
        """The denoised latent to go on with, from the noisy one and the denoised one (b c ...): a new tensor."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Rule:
    """What is skipped together: its places in order of preference (the first that the model and the run allow), signal,
    gate, predictor, and what is stored: what a place adds to its input, or its result itself. At a place that skips
    whole calls the feature is the ODE derivative, unless `feature` is "output" (it, which for a flow model is the
    model's output, minus the model's scaled input) or "denoised" (the denoised latent minus that input). "affine", at a
    place of single blocks: how each channel goes through the block, as two vectors. around: the place that comes first
    where an evaluation is more than the model's calls (windows, tiles, ControlNets, LoRA hooks, further passes).
    store: how features are held. drawn: the share of the noise a sampler draws that is kept out of the derivative where
    it is stored, and goes with x (`drawn`).
    """

    places: tuple[Place, ...]
    signal: Signal
    gate: Gate
    predictor: Predictor
    feature: Literal["residual", "absolute", "output", "denoised", "affine"] = "residual"
    correction: Correction | None = None
    around: Place | None = None
    store: Store = "device"
    drawn: float = 0.0


@dataclass(frozen=True, slots=True)
class Method:
    """A whole published method: immutable, shared by every run that uses it. An outer rule's skip freezes the inner
    ones. expected: the relative error of the last latent that a run on this schedule is to be expected with if it
    computes these steps; None where that is not known. remark: what a user should know of a run on this schedule.
    """

    name: str
    rules: tuple[Rule, ...]
    params: Mapping[str, object] = field(default_factory=dict)
    output: Output | None = None
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Checks of which the report says how often they alone refused a skip: their reasons, by name."""
    expected: Callable[[Schedule, Sequence[int]], float | None] | None = None
    remark: Callable[[Schedule], str] | None = None

    @property
    def never(self) -> bool:
        """True where no rule can ever skip anything."""
        return all(rule.gate.never for rule in self.rules)


# a model family -------------------------------------------------------------------------------------------------------


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


JOINT, CROSS = "joint", "cross"
"""Names of streams beside img and txt: text and image in one sequence; what the image takes from the text in a cross
attention of its own, as many tokens as the image.
"""

Slot = tuple[str, int]
"""ComfyUI's name of a block in `patches_replace["dit"]`, e.g. ("double_block", 0)."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A part of a block that one submodule computes: it returns the outputs of `streams` before their gates, one tensor
    or a tuple in this order. width: channels that attention runs over in it, 0 where there is none; over: the stream
    that attention looks at; keyed: the linear layers in it that run over that stream instead of their own, its keys
    and values (further pairs: each over a part of its tokens).
    """

    module: Any
    streams: tuple[str, ...]
    width: int = 0
    over: str = JOINT
    keyed: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """Attention that a block computes itself, between linear layers into it and out of it, one of each a stream."""

    enters: tuple[Any, ...]
    leaves: tuple[Any, ...]
    streams: tuple[str, ...]
    width: int


@dataclass(frozen=True, slots=True)
class Fused:
    """Attention and MLP side by side in two linear layers: `enter` gives queries, keys and values (3·width rows), then
    the MLP's hidden channels; `leave` takes attention's result (width columns), then the activated hidden channels.
    act: the module that alone turns the ones into the others, if there is one.
    """

    enter: Any
    leave: Any
    width: int
    act: Any = None
    streams: tuple[str, ...] = (JOINT,)


Part = Whole | Split | Fused


class Architecture:
    """One model family: everything the trunk site must know of it, and nothing of any method. Stateless.

    `model` is the diffusion model (`nn.Module`), `args` the mapping with which ComfyUI calls a block replacement; what
    a block returns is read like its arguments.
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
        """The image tokens (b n d, a view) at a block; `text` tokens precede them where streams are joined."""
        raise NotImplementedError

    def text(self, out: Mapping[str, Tensor], slot: Slot, text: int) -> Tensor:
        """The text tokens (b m d, a view) at a block."""
        raise NotImplementedError

    def unchanged(self, args: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
        """What a block returns that does nothing."""
        raise NotImplementedError

    def replaced(
        self, args: Mapping[str, Any], slot: Slot, text: int, target: Tensor, txt: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What a block returns whose first image tokens are `target` (b t d), whose text tokens are `txt` (b m d, where
        given) and whose other tokens pass through.
        """
        raise NotImplementedError

    def parts(self, model: object, slot: Slot, kind: str) -> tuple[Part, ...]:
        """What computes the attention or the MLP (`ATTENTION.kind`, `MLP.kind`) of a block; none where they cannot be
        told apart.
        """
        return ()

    def calibration(self, references: bool) -> Calibration:
        """The row of `coefficients` for this model, with or without reference tokens in the call."""
        raise NotImplementedError
