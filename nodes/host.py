"""The only file that touches ComfyUI's patcher and wrappers. Every hook is installed here, with the reason beside it.

SAMPLER_SAMPLE   the run's bracket: the model is loaded, `extra_args["model_options"]` is a private clone that dies with
                 the run. The session is made here, from the plan on the model and the run's sigmas, and freed in
                 `finally`.
PREDICT_NOISE    one denoiser evaluation, however the host batches conditionings: one tick of the method. Wraps every
                 guider's own `predict_noise`: the site guided answers here, and a method's output part acts here.
CALC_COND_BATCH  both sides of guidance together, once an evaluation or once a context window. Only where a rule derives
                 one side from the other, at the site branch: then the host is asked for the other side alone.
APPLY_MODEL      one model call; its transformer_options are final here, with patches bound to conditionings merged in.
                 The sites of the method's rules put block hooks around whatever holds a slot now, or answer in the
                 model's place, the first rule outermost.
                 It is also outside any compiled graph.

Nothing is written to the model, the module or the node's output: a plan on the clone is all that outlives a run.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import torch

from ..cache_core import Method, RunBook, Session, architecture_of, summary
from ..cache_core.session import flow_noise, plain_noise
from ..cache_core.trace import Recorder, State
from ..cache_core.track import Observe, Track
from ..cache_core.types import MODEL, Place, Schedule
from .conditioning import control_slots, lane_keys, place_of, sections, takes_turns, weights
from .live import Live, page
from .sites import CALL_SITES, Around, Branch, Forward, Guided, ModelCall, Options, Site, fail_open, warn

LOG = logging.getLogger("SpectralCache")
KEY = "spectralcache"

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
    observe: Observe | None = None


def attach(model: Any, method: Method, node_id: str | None, observe: Observe | None = None) -> Any:
    """A clone of a ModelPatcher on which `method` runs; an earlier attachment of ours is replaced, not stacked.
    `observe` is told of every feature, computed or standing in (the bench and the calibrator look on this way).

    On a ComfyUI without these hooks the model comes back as it is: a workflow that worked keeps working.
    """
    try:
        return _attach(model, Attachment(method, node_id, observe))
    except Exception:
        LOG.warning("SpectralCache cannot be attached on this ComfyUI; the model is sampled without it.", exc_info=True)
        return model


def _attach(model: Any, attachment: Attachment) -> Any:
    wrappers = comfy.patcher_extension.WrappersMP
    clone = model.clone()
    hooks = {
        wrappers.SAMPLER_SAMPLE: partial(sampler_sample, attachment),
        wrappers.PREDICT_NOISE: predict_noise,
        wrappers.APPLY_MODEL: apply_model,
    }
    if any(rule.places[0].kind == Branch.name for rule in attachment.method.rules):
        hooks[wrappers.CALC_COND_BATCH] = calc_cond_batch
    clone.remove_wrappers_with_key(wrappers.CALC_COND_BATCH, KEY)
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


class Run:
    """One sampling run on the host's side: its session, and where each of its rules skips in every model it calls."""

    def __init__(
        self, session: Session, live: Live, guided: Mapping[Track, Guided], branches: Mapping[Track, Branch]
    ) -> None:
        self.session, self.live, self.guided, self.branches = session, live, guided, branches
        self._sites: dict[int, dict[Track, Site | None]] = {}

    def sites(self, model: Any) -> list[Site]:
        """The sites around a call of this model, the first rule's outermost. (A run can call two models.)"""
        if id(model) not in self._sites:
            inner = [track for track in self.session.tracks if track not in (*self.guided, *self.branches)]
            self._sites[id(model)] = {track: self._site(track, model, track.rule.places) for track in inner}
        return [site for site in self._sites[id(model)].values() if site is not None]

    def clear(self) -> None:
        self._sites.clear()

    def _site(self, track: Track, model: Any, places: Sequence[Place]) -> Site | None:
        """The first of these places that the model allows."""
        architecture = architecture_of(model)
        for position, place in enumerate(places):
            site = CALL_SITES.get(place.kind)
            if site is not None and site.fits(architecture):
                rest = places[position + 1 :]
                down = partial(self._fall_back, track, model, rest)
                return site(track, Around(model, architecture, place, recording_open, down, lent))
        return None

    def _fall_back(self, track: Track, model: Any, places: Sequence[Place], why: str) -> None:
        """From one place of a rule to its next one, for the rest of this run."""
        site = self._sites[id(model)][track] = self._site(track, model, places)
        recorder = self.session.recorder
        if site is None:
            warn(self.session, f"{why}; the run goes on uncached")
            return
        recorder.site = site.name
        note = f"{why}; {IN_WORDS[site.name]} are skipped instead"
        if recorder.note(note):
            LOG.warning("SpectralCache: %s.", note)


IN_WORDS = {MODEL.kind: "whole model calls"}


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
    architecture = architecture_of(bare)
    name = architecture.name if architecture else type(bare).__name__
    recorder = Recorder(method.name, method.params, name, "", len(levels) - 1, counted=method.counted)
    flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
    schedule = Schedule(tuple(levels), flow_noise if flow else plain_noise, flow)
    session = Session(method, schedule, recorder, keep, _corrects(sampler), attachment.observe)
    branches = _branches(session, guider, levels, model_options)
    run = Run(session, Live(recorder, page(attachment.node_id)), _guided(session, guider, levels), branches)
    kinds = [site.name for site in run.guided.values()]
    kinds += [*(site.name for site in run.sites(bare)), *(site.name for site in run.branches.values())]
    recorder.site = kinds[0] if kinds else MODEL.kind
    if method.never:
        return run
    for obstacle in _obstacles(sampler, levels, model_options):
        warn(session, obstacle)
    for site in run.sites(bare):
        if site.obstacle:
            warn(session, site.obstacle)
    if session.active and not kinds:
        warn(session, f"{method.name} has no place to skip at in {name}")
    if session.active:
        for remark in _remarks(sampler, levels):
            recorder.note(remark)
        if architecture is None and method.rules[0].places[0].kind != recorder.site:
            recorder.note(f"the blocks of {name} are not described yet, so whole model calls are skipped")
    return run


def _guided(session: Session, guider: Any, sigmas: Sequence[float]) -> dict[Track, Guided]:
    """The rules that skip whole evaluations, with where the run's conditionings come and go."""
    found: dict[Track, Guided] = {}
    for track in session.tracks:
        if track.rule.places[0].kind == Guided.name and not takes_turns(guider.conds, sigmas):
            track.section = sections(guider.conds)
            found[track] = Guided(track, guider.model_patcher.get_model_object("model_sampling"))
    return found


def _branches(
    session: Session, guider: Any, sigmas: Sequence[float], model_options: Mapping[str, Any]
) -> dict[Track, Branch]:
    """The rule that derives one side of guidance from the other, unless something forbids that for the whole run."""
    for track in session.tracks:
        if track.rule.places[0].kind == Branch.name and not session.method.never:
            why = _both_needed(guider, sigmas, model_options)
            if not why:
                track.section = sections(guider.conds)
                return {track: Branch(track)}
            session.recorder.note(f"both sides of guidance are evaluated: {why}")
    return {}


def _both_needed(guider: Any, sigmas: Sequence[float], model_options: Mapping[str, Any]) -> str:
    """Why the unconditional side cannot be left out, or an empty string."""
    if takes_turns(guider.conds, sigmas):
        return "hook keyframes are counted in evaluations here"
    if "sampler_cfg_function" in model_options:
        return "a guidance function of another node reads the unconditional result itself"
    if "sampler_calc_cond_batch_function" in model_options:
        return "another node calculates the sides of guidance by itself"
    patched = model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn1")
    if patched and model_options.get("sampler_post_cfg_function"):
        return "an attention patch with a guidance function (such as Self-Attention Guidance) reads the negative's pass"
    return ""


def _finish(run: Run, state: State) -> None:
    session, trace = run.session, None
    try:
        _say_idle(run, state)
        session.close()
        trace = session.recorder.finish(state, _place())
        RUNS.publish(trace)
        LOG.info(summary(trace))
    except Exception:  # a device that failed cannot be timed; the sampler's own error must stay the one that is seen
        LOG.warning("SpectralCache could not write the trace of this run.", exc_info=True)
    run.live.end(state, trace)
    run.clear()


def _say_idle(run: Run, state: State) -> None:
    """A run without two sides of guidance: say that nothing could be derived."""
    session = run.session
    for branch in run.branches.values():
        if session.active and state == "done" and branch.idle:
            session.recorder.note(branch.idle)
            session.recorder.stood_down |= len(session.tracks) == len(run.branches)


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
    out = _evaluated(run, x, timestep, lambda: executor(x, timestep, options, *args, **kwargs))
    with fail_open(run.session):
        out = run.session.adjusted(x, out)
    with fail_open(run.session):
        run.session.end()
    run.live.step()
    return out


def _evaluated(run: Run, x: Any, timestep: torch.Tensor, forward: Callable[[], Any]) -> Any:
    """The guided result, through the sites that can leave an evaluation out as a whole."""
    for site in run.guided.values():
        forward = partial(site.run, x, timestep, forward)
    return forward()


def calc_cond_batch(
    executor: Any, model: Any, conds: Sequence[Any], x: torch.Tensor, timestep: torch.Tensor, model_options: Any
) -> list[torch.Tensor]:
    """CALC_COND_BATCH: all sides of guidance at once."""
    options = model_options.get("transformer_options", {})
    run = options.get(KEY)
    forward = partial(_sides, executor, model, x, timestep, model_options)
    for branch in run.branches.values() if isinstance(run, Run) else ():
        if run.session.active:
            return branch.run(place_of(model, options), conds, x, timestep, forward)
    return forward(conds)


def _sides(
    executor: Any, model: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: Any, conds: Sequence[Any]
) -> list[torch.Tensor]:
    out: list[torch.Tensor] = executor(model, conds, x, timestep, model_options)
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

    def forward(ours: Options) -> torch.Tensor:
        if positional:
            return executor(*args[:OPTIONS_POSITION], ours, *args[OPTIONS_POSITION + 1 :], **kwargs)
        return executor(*args, **{**kwargs, "transformer_options": ours})

    around: Forward = forward
    with fail_open(run.session):
        call = _open_call(run, executor.class_obj, args, kwargs, options)
        if call is not None:
            for site in reversed(run.sites(_bare(executor.class_obj.diffusion_model))):
                around = partial(_inside, site, call, around)
    return around(options)


def _inside(site: Site, call: ModelCall, forward: Forward, options: Options) -> torch.Tensor:
    return site.run(call, options, forward)


def _open_call(
    run: Run, base_model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options
) -> ModelCall | None:
    """The model call as a site sees it, or None where it is to be computed as if we were not there."""
    x, sigma = args[0], args[1]
    keys = lane_keys(base_model, options, x.device)
    rows = x.shape[0] // len(keys)
    call = run.session.open(keys, [slice(i * rows, (i + 1) * rows) for i in range(len(keys))])
    call.bypass |= rows * len(keys) != x.shape[0]
    if call.bypass or not run.session.active:
        return None
    control = args[4] if len(args) > 4 else kwargs.get("control")
    return ModelCall(call, x, sigma, base_model.model_sampling, control_slots(control), weights(base_model))


def _bare(model: Any) -> Any:
    """The diffusion model behind torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


@contextlib.contextmanager
def lent(layer: Any, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """A linear layer's weight and bias as the host would use them on x: cast, patched, brought to x's device."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


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
