"""What sites share: the model call as they see it, and the guard that keeps their faults from the picture."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...cache_core.session import Session
from ...cache_core.track import Call, Facts, Track
from ...cache_core.types import Architecture, Grid, Place, Probe, Streams

LOG = logging.getLogger("SpectralCache")

Options = dict[str, Any]
Forward = Callable[[Options], torch.Tensor]
"""The model call itself, with these transformer_options."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call as a site sees it. x: b c ..., sigma: b; shapes: of the latents that are packed into x."""

    call: Call
    x: torch.Tensor
    sigma: torch.Tensor
    model_sampling: Any
    control: frozenset[tuple[str, int]] = frozenset()
    weights: frozenset[tuple[object, float]] = frozenset()
    shapes: Sequence[Sequence[int]] = ()

    def facts(self, *shape: int, of: torch.Tensor) -> Facts:
        """What must not change: the shape of a row of what is stored, the rows a lane, and what the call carries."""
        rows = of.shape[0] // len(self.call.rows)
        return Facts((*shape, rows), of.dtype, of.device, self.control, self.weights)


Weights = Callable[[Any, torch.Tensor], contextlib.AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]]
"""(linear layer, its input) -> weight and bias as the layer would use them, on loan."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a site is made for: a diffusion model, the file that describes it (or None), and its place. `fall_back` says
    that the place cannot be used, why in half a sentence, and returns the site that goes on for the rest of the run, or
    None. one_graph: whether the model is compiled whole, without breaks.
    """

    model: Any
    architecture: Architecture | None
    place: Place
    recording_open: Callable[[], bool]
    fall_back: Callable[[str], Site | None]
    weights: Weights
    one_graph: bool = False


class Unfit(Exception):
    """A call that a place cannot be used in: the record's reason, and the user's in half a sentence."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


def failure(error: Exception, why: str) -> tuple[str, str]:
    """What to say of an error of ours: the record's reason, and the user's in half a sentence."""
    if isinstance(error, Unfit):
        return error.reason, error.why
    return "fault", f"{why} ({type(error).__name__}: {error})"


class Site:
    """Something that can stand around a model call. Its own work cannot break the call."""

    name: str = ""
    obstacle: str = ""
    """Why nothing can be skipped here, found when the site is made; the run then stands down and says so."""

    def __init__(self, track: Track, around: Around) -> None:
        self.track, self.around = track, around

    @staticmethod
    def fits(architecture: Architecture | None) -> bool:
        """Whether this site can be used on a model that this file describes."""
        return True

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether this site can be used on this diffusion model, whatever describes it."""
        return True

    def run(self, call: ModelCall, options: Options, forward: Forward) -> torch.Tensor:
        """Compute or skip: returns what the model call returns, the denoised latent (b c ...)."""
        raise NotImplementedError

    def go_on(
        self, call: ModelCall, options: Options, forward: Forward, reason: str, why: str, again: bool = True
    ) -> torch.Tensor:
        """This call, and the rest of the run, at the rule's next place; again: all of the call is still to be run."""
        self.track.reset(call.call if again else None)
        site = self.around.fall_back(why)
        if site is None:
            self.track.compute(call.call, reason)
            return forward(options)
        out = site.run(call, options, forward)
        self.track.explain(reason)
        return out

    @property
    def session(self) -> Session:
        return self.track.session


def warn(session: Session, why: str) -> None:
    """Stand down for the rest of the run: once in the trace, and once in the log however many runs a node makes."""
    if session.stand_down(why) and session.recorder.unheard(why):
        LOG.warning("SpectralCache: %s.", why)


@contextlib.contextmanager
def fail_open(session: Session) -> Iterator[None]:
    """Our own work may fail; the picture may not. On any error the run goes on uncached and says so once."""
    try:
        yield
    except Exception as error:
        LOG.debug("SpectralCache", exc_info=True)
        what = f"({type(error).__name__}: {error})"
        if any(what in note for note in session.recorder.notes):  # the place before this one has failed by it, too
            what = "there in the same way"
        warn(session, f"caching failed {what}; the run goes on uncached")


def probe(
    needs: frozenset[str],
    architecture: Architecture,
    model: Any,
    streams: Streams,
    rows: slice,
    head: torch.Tensor | None = None,
) -> Probe:
    """What a signal may look at of one lane, where blocks are described."""
    if not needs:
        return Probe()
    modulated = None
    if "modulated" in needs:
        tokens = streams.img.shape[1] if architecture.signal_over_references else streams.targets
        modulated = architecture.modulated(model, streams.img[rows, :tokens], streams.vec[rows])
    embedding = streams.vec[rows] if "embedding" in needs else None
    text = streams.txt[rows] if "text" in needs else None
    return Probe(modulated, streams.targets, head, embedding=embedding, text=text)


def eager(function: Callable[..., Any], *, recursive: bool = True) -> Callable[..., Any]:
    """Keep a function out of compiled graphs: traced under TorchCompileModel, its first decision would be frozen.

    `recursive=False` leaves what it calls (the blocks) to the compiler. Where nothing has loaded the compiler, nothing
    is done: loading it takes most of a second.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    wrapped: Callable[..., Any] = torch.compiler.disable(function, recursive=recursive)
    return wrapped


# what is stored where whole calls are skipped: the ODE derivative, unless a rule says otherwise -----------------------


def stored(kind: str, x: torch.Tensor, out: torch.Tensor, sigma: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    """What a rule stores of a call that returned the denoised latent `out`, as tokens; scaled: the model's input."""
    if kind == "denoised":
        return as_tokens(out - scaled)
    tokens = derivative(x, out, sigma)
    return tokens - as_tokens(scaled) if kind == "output" else tokens


def restored(
    kind: str, x: torch.Tensor, tokens: torch.Tensor, sigma: torch.Tensor, scaled: torch.Tensor
) -> torch.Tensor:
    """The denoised latent that a stored feature stands for."""
    if kind == "denoised":
        return scaled + _latent(x, tokens)
    return denoised(x, tokens + as_tokens(scaled) if kind == "output" else tokens, sigma)


def derivative(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """d = (x - denoised) / sigma as tokens, b c ... -> b (...) c: for a flow model the velocity, for an epsilon model
    the noise.
    """
    return as_tokens((x - denoised) / _levels(x, sigma))


def denoised(x: torch.Tensor, tokens: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x - sigma·d: b (...) c -> b c ..."""
    return x - _levels(x, sigma) * _latent(x, tokens)


def latent_grid(x: torch.Tensor) -> Grid | None:
    """Latent pixels are the tokens here; several latents packed into one (b 1 n: audio with video) have no grid."""
    size = tuple(x.shape[2:])
    return size if len(size) > 1 else None


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    """b c ... -> b (...) c"""
    return x.movedim(1, -1).flatten(1, -2)


def _latent(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """b (...) c -> b c ... of the shape of x"""
    return tokens.unflatten(1, x.shape[2:]).movedim(-1, 1)


def _levels(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """sigma as b 1 ..., to multiply x with."""
    return sigma.view(-1, *(1 for _ in x.shape[1:]))
