"""The only file that touches ComfyUI's patcher and wrappers. Every hook is installed here, with the reason beside it.

SAMPLER_SAMPLE   the run's bracket: the model is loaded, `extra_args["model_options"]` is a private clone that dies with
                 the run. The session is made here, from the plan on the model and the run's sigmas, and freed in
                 `finally`.
PREDICT_NOISE    one denoiser evaluation, however the host batches conditionings: one tick of the method.
APPLY_MODEL      one model call; its transformer_options are final here, with patches bound to conditionings merged in.
                 The site (`sites`) puts block hooks around whatever holds a slot now, or answers in the model's place.
                 It is also outside any compiled graph.

Nothing is written to the model, the module or the node's output: a plan on the clone is all that outlives a run.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import torch

from ..cache_core import Method, RunBook, Session, architecture_of, summary
from ..cache_core.session import LaneKey, flow_time, plain_time
from ..cache_core.trace import Recorder, State
from ..cache_core.types import MODEL, TRUNK, Architecture
from .live import Live, page
from .sites import KEY, LOG, ModelCall, Options, Site, Trunk, WholeModel, fail_open, warn

RUNS = RunBook()

MIN_STEPS, FEW_STEPS = 5, 9
FREE_RUNNING_SAMPLERS = ("dpm_fast", "dpm_adaptive")
STOCHASTIC_MARKS = ("ancestral", "sde", "lcm", "ddpm", "seeds_", "sa_solver")
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


@dataclass(frozen=True, slots=True)
class Attachment:
    """What an Apply node puts on the model: immutable, shared by every run."""

    method: Method
    node_id: str | None


def attach(model: Any, method: Method, node_id: str | None) -> Any:
    """A clone of a ModelPatcher on which `method` runs; an earlier attachment of ours is replaced, not stacked.

    On a ComfyUI without these hooks the model comes back as it is: a workflow that worked keeps working.
    """
    try:
        return _attach(model, method, node_id)
    except Exception:
        LOG.warning("SpectralCache cannot be attached on this ComfyUI; the model is sampled without it.", exc_info=True)
        return model


def _attach(model: Any, method: Method, node_id: str | None) -> Any:
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
    """One sampling run on the host's side: its session, and its site for each diffusion model it calls."""

    session: Session
    method: Method
    live: Live
    sites: dict[int, Site] = field(default_factory=dict)

    def site(self, model: Any) -> Site:
        """The trunk where a file describes the model, else the whole model call. (A run can call two models.)"""
        if id(model) not in self.sites:
            architecture = _trunk_of(self.method, model)
            self.sites[id(model)] = (
                Trunk(self.session, architecture, model, recording_open, partial(self._fall_back, id(model)))
                if architecture
                else WholeModel(self.session)
            )
        return self.sites[id(model)]

    def _fall_back(self, model: int, why: str) -> None:
        """From the trunk to the whole model call, for the rest of this run."""
        self.sites[model] = WholeModel(self.session)
        self.session.recorder.site = MODEL
        note = f"{why}; whole model calls are skipped instead"
        if self.session.recorder.note(note):
            LOG.warning("SpectralCache: %s.", note)


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
    bare = _bare(model.diffusion_model)
    described, architecture = architecture_of(bare), _trunk_of(method, bare)
    name = described.name if described else type(bare).__name__
    recorder = Recorder(method.name, method.params, name, TRUNK if architecture else MODEL, len(levels) - 1)
    session = Session(method, levels, recorder, keep, _time_of(model.model_sampling), _corrects(sampler))
    run = Run(session, method, Live(recorder, page(attachment.node_id)))
    if method.never:
        return run
    for obstacle in _obstacles(sampler, levels, model_options):
        warn(session, obstacle)
    if session.active:
        for remark in _remarks(sampler, levels):
            recorder.note(remark)
        if described is None and method.site is None:
            recorder.note(f"the blocks of {name} are not described yet, so whole model calls are skipped")
    return run


def _time_of(model_sampling: Any) -> Callable[[float], float]:
    """How noise compares with signal at a sigma: a flow model mixes the two, others add noise to the signal."""
    return flow_time if isinstance(model_sampling, comfy.model_sampling.CONST) else plain_time


def _trunk_of(method: Method, model: Any) -> Architecture | None:
    """What describes the model's trunk, unless the method skips whole model calls on every model."""
    return None if method.site == MODEL else architecture_of(model)


def _finish(run: Run, state: State) -> None:
    session, trace = run.session, None
    try:
        session.close()
        trace = session.recorder.finish(state, _place())
        RUNS.publish(trace)
        LOG.info(summary(trace))
    except Exception:  # a device that failed cannot be timed; the sampler's own error must stay the one that is seen
        LOG.warning("SpectralCache could not write the trace of this run.", exc_info=True)
    run.live.end(state, trace)
    run.sites.clear()


def _place() -> dict[str, Any]:
    """Which prompt and node is sampling; None outside the executor."""
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
    except ImportError:
        context = None
    return {"prompt": context.prompt_id if context else None, "node": context.node_id if context else None, "index": 0}


def _obstacles(sampler: Any, sigmas: Sequence[float], model_options: Mapping[str, Any]) -> Iterator[str]:
    """Why this run is sampled uncached, a sentence each."""
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
    if _stochastic(sampler):
        name = _sampler_name(sampler)
        yield f"{name} adds fresh noise at every step, which no cache foresees: skipped steps show more"


def _stochastic(sampler: Any) -> bool:
    return any(mark in _sampler_name(sampler) for mark in STOCHASTIC_MARKS)


def _corrects(sampler: Any) -> bool:
    """Whether the sampler adds the derivative times a difference of sigmas, and nothing else. CFG++ takes the denoised
    latent whole.
    """
    return not _stochastic(sampler) and "cfg_pp" not in _sampler_name(sampler)


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
    with fail_open(run.session):
        run.session.begin(timestep)
    out = executor(x, timestep, options, *args, **kwargs)
    with fail_open(run.session):
        run.session.end()
    run.live.step()
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

    def forward(ours: Options) -> Any:
        if positional:
            return executor(*args[:OPTIONS_POSITION], ours, *args[OPTIONS_POSITION + 1 :], **kwargs)
        return executor(*args, **{**kwargs, "transformer_options": ours})

    site, call = None, None
    with fail_open(run.session):
        call = _open_call(run, executor.class_obj, args, kwargs, options)
        site = run.site(_bare(executor.class_obj.diffusion_model)) if call is not None else None
    return forward(options) if site is None or call is None else site.run(call, forward)


def _open_call(
    run: Run, base_model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options
) -> ModelCall | None:
    """The model call as a site sees it, or None where it is to be computed as if we were not there."""
    x, sigma = args[0], args[1]
    keys = _lane_keys(base_model, options, x.device)
    rows = x.shape[0] // len(keys)
    call = run.session.open(keys, [slice(i * rows, (i + 1) * rows) for i in range(len(keys))])
    call.bypass |= rows * len(keys) != x.shape[0]
    if call.bypass or not run.session.active:
        return None
    control = args[4] if len(args) > 4 else kwargs.get("control")
    return ModelCall(call, x, sigma, options, base_model.model_sampling, _control_slots(control), _weights(base_model))


def _lane_keys(base_model: Any, options: Mapping[str, Any], device: torch.device) -> list[LaneKey]:
    """One key a chunk: which conditioning it is, and which patches of others run on it (the functions themselves)."""
    positions = options.get("cond_or_uncond") or [0]
    uuids = options.get("uuids") or [None] * len(positions)
    window = options.get("context_window")
    frames = tuple(window.index_list) if window is not None else None
    foreign, lists = options.get("patches_replace", {}).get("dit", {}), options.get("patches", {})
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
