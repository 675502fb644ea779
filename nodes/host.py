"""The only file that touches ComfyUI's patcher and wrappers. Every hook is installed here, once, for the reason beside
it.

SAMPLER_SAMPLE   the run's bracket: the model is loaded, `extra_args["model_options"]` is a private clone that dies with
                 the run. The session is made here, from the plan on the model and the run's sigmas, and freed in
                 `finally`.
PREDICT_NOISE    one denoiser evaluation, however the host batches conditionings: one tick of the method.
APPLY_MODEL      one model call; its transformer_options are final here, with patches bound to conditionings merged in.
                 Our block hooks go around whatever holds a slot now. It is also outside any compiled graph.

Nothing is written to the model, the module or the node's output: a plan on the clone is all that outlives a run.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch

from ..cache_core import Method, RunBook, Session, architecture_of, summary
from ..cache_core.session import Call, Facts, LaneKey
from ..cache_core.trace import Recorder, State
from ..cache_core.types import TRUNK, Architecture, Probe, Slot, Streams

LOG = logging.getLogger("SpectralCache")
KEY = "spectralcache"
RUNS = RunBook()

MIN_STEPS, FEW_STEPS = 5, 8
FREE_RUNNING_SAMPLERS = ("dpm_fast", "dpm_adaptive")
STOCHASTIC_MARKS = ("ancestral", "sde", "lcm", "ddpm", "er_", "seeds_")
OTHER_CACHES = (
    "easycache",
    "lazycache",
    "teacache",
    "magcache",
    "fbcache",
    "first_block",
    "wavespeed",
    "cache_dit",
    "cachedit",
    "taylorseer",
)
COMPILE_KEY = "torch.compile"


@dataclass(frozen=True, slots=True)
class Attachment:
    """What an Apply node puts on the model: immutable, shared by every run."""

    method: Method
    node_id: str | None


def attach(model: Any, method: Method, node_id: str | None) -> Any:
    """A clone of a ModelPatcher on which `method` runs; an earlier attachment of ours is replaced, not stacked."""
    wrappers = comfy.patcher_extension.WrappersMP
    clone = model.clone()
    attachment = Attachment(method, node_id)
    hooks = {
        wrappers.SAMPLER_SAMPLE: partial(sampler_sample, attachment),
        wrappers.PREDICT_NOISE: predict_noise,
        wrappers.APPLY_MODEL: apply_model,
    }
    for kind, hook in hooks.items():
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, hook)
    clone.set_attachments(KEY, attachment)
    return clone


def attachment_of(model: Any) -> Attachment | None:
    """What an Apply node put on this ModelPatcher, or None."""
    found = model.get_attachment(KEY)
    return found if isinstance(found, Attachment) else None


# the run --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """One sampling run on the host's side: the session, and the block hooks made once for it, per diffusion model."""

    session: Session
    trunks: dict[int, Trunk | None] = field(default_factory=dict)

    def trunk(self, model: Any) -> Trunk | None:
        """The trunk site of a diffusion model, or None where no file describes it. (A run can call two models.)"""
        if id(model) not in self.trunks:
            architecture = architecture_of(model)
            self.trunks[id(model)] = Trunk(self.session, architecture, model) if architecture else None
        return self.trunks[id(model)]


def sampler_sample(
    attachment: Attachment,
    executor: Any,
    guider: Any,
    sigmas: torch.Tensor,
    extra_args: dict,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """SAMPLER_SAMPLE: one run. Errors and interrupts pass through; the trace is published, everything freed."""
    try:
        run = _start(attachment, executor.class_obj, guider, sigmas, extra_args["model_options"])
    except Exception:
        LOG.warning("SpectralCache could not start on this ComfyUI; sampling without it.", exc_info=True)
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    extra_args["model_options"].setdefault("transformer_options", {})[KEY] = run
    state: State = "error"
    try:
        samples = executor(guider, sigmas, extra_args, *args, **kwargs)
        state = "done"
        return samples
    except comfy.model_management.InterruptProcessingException:
        state = "interrupted"
        raise
    finally:
        extra_args["model_options"]["transformer_options"].pop(KEY, None)
        _finish(run, state)


def _start(
    attachment: Attachment, sampler: Any, guider: Any, sigmas: torch.Tensor, model_options: Mapping[str, Any]
) -> Run:
    levels = sigmas.tolist()  # copied once: uni_pc writes into the tensor
    method, model = attachment.method, guider.model_patcher.model
    architecture = architecture_of(_bare(model.diffusion_model))
    name = architecture.name if architecture else type(model.diffusion_model).__name__
    recorder = Recorder(method.name, method.params, name, TRUNK, len(levels) - 1)
    session = Session(method, TRUNK, levels, recorder, keep)
    run = Run(session)
    if method.never:
        return run
    for obstacle in _obstacles(architecture, name, sampler, levels, model_options):
        warn(session, obstacle)
    if session.active:
        for remark in _remarks(sampler, levels):
            recorder.note(remark)
    return run


def _finish(run: Run, state: State) -> None:
    session = run.session
    try:
        session.close()
        trace = session.recorder.finish(state, _place())
        RUNS.publish(trace)
        LOG.info(summary(trace))
    except Exception:  # a device that failed cannot be timed; the sampler's own error must stay the one that is seen
        LOG.warning("SpectralCache could not write the trace of this run.", exc_info=True)
    run.trunks.clear()


def _place() -> dict[str, Any]:
    """Which prompt and node is sampling; None outside the executor."""
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
    except ImportError:
        context = None
    return {"prompt": context.prompt_id if context else None, "node": context.node_id if context else None, "index": 0}


def _obstacles(
    architecture: Architecture | None,
    name: str,
    sampler: Any,
    sigmas: Sequence[float],
    model_options: Mapping[str, Any],
) -> Iterator[str]:
    """Why this run is sampled uncached, a sentence each."""
    if architecture is None:
        yield f"{name} has no architecture file yet, so every step is computed; FLUX.1 models are supported"
    if any(mark in _sampler_name(sampler) for mark in FREE_RUNNING_SAMPLERS):
        yield "dpm_fast and dpm_adaptive choose their own noise levels, so steps cannot be told apart: use another"
    if any(after > before for before, after in itertools.pairwise(sigmas)):
        yield "the sigmas do not fall from step to step; use a falling schedule to skip"
    if len(sigmas) - 1 < MIN_STEPS:
        yield f"{len(sigmas) - 1} steps leave nothing safe to skip; caching starts at {MIN_STEPS} steps"
    if "multigpu_clones" in model_options:
        yield "multi-GPU runs are computed in full"
    others = _other_caches(model_options)
    if others:
        yield f"another cache is on this model ({', '.join(others)}); remove one of the two"


def _remarks(sampler: Any, sigmas: Sequence[float]) -> Iterator[str]:
    """What a user should know of a run that is cached."""
    if len(sigmas) - 1 < FEW_STEPS:
        yield f"only {len(sigmas) - 1} steps: few can be skipped, and each one shows"
    if any(mark in _sampler_name(sampler) for mark in STOCHASTIC_MARKS):
        yield f"{_sampler_name(sampler)} adds fresh noise at every step, so changes are large and few steps are skipped"


def _sampler_name(sampler: Any) -> str:
    return str(getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)).removeprefix(
        "sample_"
    )


def _other_caches(model_options: Mapping[str, Any]) -> list[str]:
    """Names of other caching packs that have left a mark on the model."""
    options = model_options.get("transformer_options", {})
    marks = [str(key) for key in options if key != KEY]
    marks += [str(key) for by_key in options.get("wrappers", {}).values() for key in by_key]
    marks.append(getattr(model_options.get("model_function_wrapper"), "__module__", "") or "")
    return sorted({cache for cache in OTHER_CACHES for mark in marks if cache in mark.lower()})


def warn(session: Session, why: str) -> None:
    """Stand down for the rest of the run: once in the log, once in the trace."""
    if session.stand_down(why):
        LOG.warning("SpectralCache: %s.", why)


# one evaluation, one model call ---------------------------------------------------------------------------------------


def predict_noise(
    executor: Any,
    x: Any,
    timestep: torch.Tensor,
    model_options: Mapping[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """PREDICT_NOISE: one evaluation."""
    options = {} if model_options is None else model_options
    run = options.get("transformer_options", {}).get(KEY)
    if not isinstance(run, Run):
        return executor(x, timestep, options, *args, **kwargs)
    run.session.begin(timestep)
    out = executor(x, timestep, options, *args, **kwargs)
    run.session.end()
    return out


OPTIONS_POSITION = 5
"""Of transformer_options among apply_model's arguments (x, t, c_concat, c_crossattn, control, transformer_options)."""


def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """APPLY_MODEL: one model call, with our hooks around the block slots as they are at this moment."""
    positional = len(args) > OPTIONS_POSITION
    options = args[OPTIONS_POSITION] if positional else kwargs.get("transformer_options", {})
    run = options.get(KEY) if isinstance(options, dict) else None
    if not isinstance(run, Run):
        return executor(*args, **kwargs)
    try:
        ours = _open_call(run, executor.class_obj, args, kwargs, options)
    except Exception as error:
        LOG.debug("SpectralCache", exc_info=True)
        warn(run.session, f"this model call could not be followed ({type(error).__name__}: {error}); sampling uncached")
        ours = options
    if positional:
        args = (*args[:OPTIONS_POSITION], ours, *args[OPTIONS_POSITION + 1 :])
    else:
        kwargs = {**kwargs, "transformer_options": ours}
    return executor(*args, **kwargs)


def _open_call(
    run: Run, base_model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """The call's options with our block hooks, or `options` itself where nothing is to be done."""
    foreign = options.get("patches_replace", {}).get("dit", {})
    keys = _lane_keys(base_model, options, foreign, args[0].device)
    rows = args[0].shape[0] // len(keys)
    call = run.session.open(keys, [slice(i * rows, (i + 1) * rows) for i in range(len(keys))])
    call.bypass |= rows * len(keys) != args[0].shape[0]
    trunk = run.trunk(_bare(base_model.diffusion_model)) if run.session.active and not call.bypass else None
    if trunk is None:
        return options
    control = args[4] if len(args) > 4 else kwargs.get("control")
    context = CallContext(call, dict(foreign), _control_slots(control), _weights(base_model))
    replace = {**options.get("patches_replace", {}), "dit": {**foreign, **trunk.hooks}}
    return {**options, "patches_replace": replace, KEY: context}


def _lane_keys(
    base_model: Any, options: Mapping[str, Any], foreign: Mapping[Slot, Any], device: torch.device
) -> list[LaneKey]:
    """One key a chunk: which conditioning it is, and which patches of others run on it (the functions themselves)."""
    positions = options.get("cond_or_uncond") or [0]
    uuids = options.get("uuids") or [None] * len(positions)
    window = options.get("context_window")
    frames = tuple(window.index_list) if window is not None else None
    lists = options.get("patches", {})
    patches = tuple((slot, Same(patch)) for slot, patch in foreign.items())
    patches += tuple((name, Same(patch)) for name, group in lists.items() for patch in group)
    return [LaneKey((Same(base_model), device, p, u, frames), patches) for p, u in zip(positions, uuids, strict=True)]


class Same:
    """A hashable stand-in for one object: equal only to itself, and keeping it alive, so that no id is ever reused."""

    __slots__ = ("object",)

    def __init__(self, wrapped: Any) -> None:
        self.object = wrapped

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.object is self.object

    def __hash__(self) -> int:
        return id(self.object)


def _control_slots(control: Any) -> frozenset[tuple[str, int]]:
    """Which ControlNet slots carry something; its values change from step to step, its slots only when a net starts or
    ends.
    """
    lists = control if isinstance(control, dict) else {}
    return frozenset((name, i) for name, group in lists.items() for i, add in enumerate(group) if add is not None)


def _weights(base_model: Any) -> frozenset[tuple[Same, float]]:
    """The (hook, strength) set of the weights in place: LoRA hooks with keyframes change it mid-run."""
    hooks = getattr(getattr(base_model, "current_patcher", None), "current_hooks", None)
    return frozenset((Same(hook), float(hook.strength)) for hook in hooks.hooks) if hooks is not None else frozenset()


def _bare(model: Any) -> Any:
    """The diffusion model behind torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


# the trunk ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CallContext:
    """What links the hooks of one model call; travels in the call's own transformer_options."""

    call: Call
    foreign: dict[Slot, Callable]
    control: frozenset[tuple[str, int]]
    weights: frozenset[tuple[Same, float]]
    text: int = 0
    targets: int = 0
    entry: torch.Tensor | None = None
    target: torch.Tensor | None = None


class Trunk:
    """The block hooks of one diffusion model, made once per run.

    First block: decide; on a skip make the target, else remember what entered. Blocks between: pass through on a skip,
    so that nothing of the trunk runs. Last block: return the target, or take the feature. The target is returned at the
    *last* block because the host adds ControlNet outputs after every block, and those are already inside the feature.
    """

    def __init__(self, session: Session, architecture: Architecture, model: Any) -> None:
        self.session = session
        self.architecture = architecture
        self.model = model
        slots = architecture.slots(model)
        self.first, self.last = slots[0], slots[-1]
        self.decide, self.take = eager(self._decide), eager(self._take)
        self.hooks = {slot: eager(self._hook(slot), recursive=False) for slot in slots}

    def _hook(self, slot: Slot) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        def hook(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            context: CallContext = args["transformer_options"][KEY]
            if slot == self.first:
                self.decide(context, args)
            if context.call.skip:
                return self._skipped(context, slot, args)
            inner = context.foreign.get(slot)
            out = extra["original_block"](args) if inner is None else inner(args, extra)
            if slot == self.last:
                self.take(context, slot, out)
            return out

        return hook

    def _decide(self, context: CallContext, args: dict[str, Any]) -> None:
        with self._guard(context):
            self._enter(context, args)

    def _take(self, context: CallContext, slot: Slot, out: Mapping[str, torch.Tensor]) -> None:
        with self._guard(context):
            self._leave(context, slot, out)

    @contextlib.contextmanager
    def _guard(self, context: CallContext) -> Iterator[None]:
        """Our own work may fail; the picture may not. On any error the run goes on uncached and says so once."""
        try:
            yield
        except Exception as error:
            context.call.skip = False
            context.entry = context.target = None
            LOG.debug("SpectralCache", exc_info=True)
            warn(self.session, f"caching failed ({type(error).__name__}: {error}); the run goes on uncached")

    def _enter(self, context: CallContext, args: dict[str, Any]) -> None:
        if not self.session.active:
            return
        if recording_open():
            warn(
                self.session, "ComfyUI records this model's allocations, so blocks cannot be skipped; sampling uncached"
            )
            return
        streams = self.architecture.enter(args)
        img = streams.img
        context.text, context.targets = streams.txt.shape[1], streams.targets
        shape = (*img.shape[1:], *streams.txt.shape[1:], streams.targets, img.shape[0] // len(context.call.rows))
        facts = Facts(shape, img.dtype, img.device, context.control, context.weights)
        calibration = self.architecture.calibration(streams.references)
        self.session.enter(context.call, facts, partial(self._probe, streams), calibration)
        entry = img[:, : streams.targets]
        if not context.call.skip:
            # FLUX's blocks add into this tensor in place. The clone dies with the forward, so it needs no `keep`.
            context.entry = entry.clone()
            return
        feature = self.session.predict(context.call)
        context.target = feature if self.session.absolute else entry + feature

    def _probe(self, streams: Streams, rows: slice) -> Probe:
        needs = self.session.rule.signal.needs
        modulated = (
            self.architecture.modulated(self.model, streams.img[rows], streams.vec[rows])
            if "modulated" in needs
            else None
        )
        return Probe(modulated)

    def _leave(self, context: CallContext, slot: Slot, out: Mapping[str, torch.Tensor]) -> None:
        if context.entry is None:
            return
        exit_ = self.architecture.image(out, slot, context.text)[:, : context.targets]
        self.session.keep(context.call, exit_ if self.session.absolute else exit_ - context.entry)
        context.entry = None

    def _skipped(self, context: CallContext, slot: Slot, args: dict[str, Any]) -> dict[str, torch.Tensor]:
        if slot != self.last:
            return self.architecture.unchanged(args, slot)
        target, context.target = context.target, None
        assert target is not None
        return self.architecture.replaced(args, slot, context.text, target)


def eager(function: Callable, *, recursive: bool = True) -> Callable:
    """Keep a function out of compiled graphs: traced under TorchCompileModel, its first decision would be frozen for
    ever.

    `recursive=False` leaves what it calls (the blocks) to the compiler. Where nothing has loaded the compiler, nothing
    is done: loading it takes most of a second.
    """
    return torch.compiler.disable(function, recursive=recursive) if "torch._dynamo" in sys.modules else function


# memory ---------------------------------------------------------------------------------------------------------------


def keep(tensor: torch.Tensor) -> torch.Tensor:
    """The only way to make a tensor that outlives a forward: a copy outside any recording of allocations.

    Newer ComfyUI records a forward's allocations on NVIDIA and aborts the process when recorded memory outlives the
    run.
    """
    with _paused_recording():
        return tensor.clone()


def _paused_recording() -> contextlib.AbstractContextManager[Any]:
    pause = getattr(_prefetch_module(), "pause_malloc_graph", None)
    return pause() if pause is not None else contextlib.nullcontext()


def recording_open() -> bool:
    """Whether the host is recording allocations on this thread right now (a feature test, not a version number)."""
    module = _prefetch_module()
    graph = getattr(module, "MALLOC_GRAPHS", {}).get(threading.get_ident())
    earlier = getattr(module, "ACTIVE_MALLOC_GRAPHS", {}).get(threading.get_ident())
    return bool(getattr(graph, "_comfy_active", False)) or earlier is not None


def _prefetch_module() -> Any:
    import comfy

    return getattr(comfy, "model_prefetch", None)
