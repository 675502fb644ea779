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
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import torch

from ..cache_core import Method, RunBook, Session, architecture_of, summary
from ..cache_core.parameters import Published
from ..cache_core.session import flow_noise, plain_noise
from ..cache_core.trace import Recorder, State
from ..cache_core.track import LaneKey, Observe, Track
from ..cache_core.types import ATTENTION, MODEL, Place, Schedule
from .conditioning import (
    Flags,
    control_slots,
    does_more,
    lane_keys,
    moving_windows,
    packed_shapes,
    passes,
    place_of,
    sections,
    takes_turns,
    weights,
)
from .learned import OFF, Learned, gained
from .live import Live, page
from .obstacles import AUTO_REGRESSIVE, obstacles, remarks, too_few
from .pieces import Piece
from .samplers import fresh_noise, is_stochastic, kind_of
from .sites import CALL_SITES, Around, Branch, Forward, Guided, ModelCall, Options, Site, Unfit, fail_open, warn

LOG = logging.getLogger("SpectralCache")
KEY, CALIBRATION = "spectralcache", "spectralcache calibration"

RUNS = RunBook()


@dataclass(frozen=True, slots=True)
class Attachment:
    """What an Apply node puts on the model: immutable, shared by every run."""

    method: Method
    node_id: str | None
    observe: Observe | None = None
    learned: Learned | None = None


def attach(
    model: Any, method: Method, node_id: str | None, observe: Observe | None = None, learned: Learned | None = None
) -> Any:
    """A clone of a ModelPatcher on which `method` runs; an earlier attachment of ours is replaced, not stacked.
    `observe` is told of every feature, computed or standing in (the bench and the calibrator look on this way);
    `learned`: the profile that the method follows.

    On a ComfyUI without these hooks the model comes back as it is: a workflow that worked keeps working.
    """
    try:
        return _attach(model, Attachment(method, node_id, observe, learned))
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


def calibrating(model: Any, method: Method, observe: Observe, around: Callable[..., Any]) -> Any:
    """A clone on which a calibration runs: `around` stands around every evaluation (PREDICT_NOISE) and may ask for it
    more than once; a cache that is on the model is left out.
    """
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    for key in (KEY, CALIBRATION):  # the wrapper that was there first is the outer one
        clone.remove_wrappers_with_key(kind, key)
    clone.add_wrapper_with_key(kind, CALIBRATION, around)
    return _attach(clone, Attachment(method, None, observe))


def fingerprint(model: Any) -> tuple[str, str]:
    """(family, dimensions) of a ModelPatcher's diffusion model, alike for every weight format."""
    bare = _bare(model.get_model_object("diffusion_model"))
    architecture = architecture_of(bare)
    if architecture is None:
        name = type(bare).__name__
        return name, name
    slots = architecture.slots(bare)
    width = max((part.width for part in architecture.parts(bare, slots[0], ATTENTION.kind)), default=0)
    return architecture.name, f"{architecture.name}, {len(slots)} blocks of {width}"


def flow(model: Any) -> bool:
    """Whether a ModelPatcher's model is a flow model."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def shift(model: Any) -> float:
    """By how much a ModelPatcher's noise levels are shifted; 0 where its sampling knows no shift."""
    return float(getattr(model.get_model_object("model_sampling"), "shift", 0.0) or 0.0)


def apply(
    model: Any, published: Published, profile: Any, params: Mapping[str, Any], node_id: str | None, gain: str = OFF
) -> Any:
    """A clone on which a published method runs with these parameters, with what came in as its profile, and with a gain
    of `learned.GAINS`. Raises `CacheError` on values that no run could use.
    """
    method, learned = gained(fingerprint(model)[1], published, profile, params, gain)
    return attach(model, method, node_id, learned=learned)


# the run --------------------------------------------------------------------------------------------------------------


class Run:
    """One sampling run on the host's side: its session, and where each of its rules skips in every model it calls."""

    def __init__(
        self, session: Session, live: Live, branches: Mapping[Track, Branch], one_graph: bool, piece: Piece
    ) -> None:
        self.session, self.live, self.branches, self.one_graph, self.piece = session, live, branches, one_graph, piece
        self.guided: dict[Track, Guided] = {}
        self.guidance, self.windows, self.flags, self.settings = 0, "", Flags(), Flags()
        self.tiled = False
        self.later: list[tuple[Track, Any]] = []
        self.sampler, self.noisy = "", False
        self._sites: dict[int, dict[Track, Site | None]] = {}

    def sites(self, model: Any) -> list[Site]:
        """The sites around a call of this model, the first rule's outermost. (A run can call two models.)"""
        made = self._sites.setdefault(id(model), {})
        for track in self.session.tracks:
            if track not in made and track not in self.guided and track not in self.branches:
                made[track] = self._site(track, model, track.rule.places)
        return [site for track in self.session.tracks if (site := made.get(track)) is not None]

    @property
    def sites_in_calls(self) -> bool:
        """Whether a rule skips within the evaluation, call by call."""
        return len(self.guided) + len(self.branches) < len(self.session.tracks)

    def clear(self) -> None:
        self._sites.clear()
        self.guided.clear()
        self.later.clear()

    def skip_evaluations(self, track: Track, guider: Any) -> Guided:
        """Let this rule answer in the place of whole evaluations, from the one at hand on."""
        for made in self._sites.values():
            made.pop(track, None)
        track.section = sections(guider.conds)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        lane = partial(self._lane, guider)
        down = partial(self._leave_evaluations, track)
        site = Guided(track, sampling, lane, passes, down, packed_shapes(guider.conds))
        self.guided[track], self.session.recorder.site = site, site.name
        return site

    def _lane(self, guider: Any) -> LaneKey:
        return LaneKey(Guided.name, flags=self.settings.of(vars(guider)))

    def look_back(self, x: torch.Tensor, sigma: torch.Tensor, out: torch.Tensor) -> None:
        """Behind the first evaluation: where it took further passes of a conditioning, rules that want to skip these
        with it do so from here on.
        """
        evaluation = self.session.evaluation
        if not self.session.active or evaluation is None or evaluation.step is None or evaluation.apart:
            return
        later, self.later = self.later, []
        if any(count > 1 for count in evaluation.seen.values()):
            for track, guider in later:
                track.reset()
                self.skip_evaluations(track, guider).run(x, sigma, lambda: out)

    def look_out(self, options: Mapping[str, Any]) -> None:
        """Some samplers (CFG++) hang a function of their own into the guidance and read its parts from it after every
        evaluation: a whole one left out would leave them an older step's.
        """
        if len(options.get("sampler_post_cfg_function", ())) > self.guidance:
            if self.session.motion is not None:  # it does not move along what it is told as a whole
                self.session.motion.look_away()
            for site in list(self.guided.values()):
                site.leave(Unfit("guidance read", "the sampler reads the guidance's parts from every evaluation"))

    def heed(self) -> None:
        """Say what the run has shown of itself so far."""
        session = self.session
        if not session.active:
            return
        if session.alarm:
            warn(session, session.alarm)
        elif session.in_doubt:
            return
        elif session.motion is not None and (session.motion.stochastic or (self.noisy and not session.motion.moves)):
            session.recorder.note(fresh_noise(self.sampler))

    def _leave_evaluations(self, track: Track, why: str) -> None:
        self.guided.pop(track, None)
        track.section = None
        if self.tiled:
            self.session.in_parts()
        inner = [place for place in track.rule.places if place.kind in CALL_SITES]
        self._told(why, CALL_SITES[inner[0].kind].name if inner else "")

    def _site(self, track: Track, model: Any, places: Sequence[Place]) -> Site | None:
        """The first of these places that the model allows."""
        architecture = architecture_of(model)
        for position, place in enumerate(places):
            site = CALL_SITES.get(place.kind)
            if site is not None and site.fits(architecture) and site.suits(model):
                rest = places[position + 1 :]
                down = partial(self._fall_back, track, model, rest)
                return site(track, Around(model, architecture, place, recording_open, down, lent, self.one_graph))
        return None

    def _fall_back(self, track: Track, model: Any, places: Sequence[Place], why: str) -> Site | None:
        """From one place of a rule to its next one, for the rest of this run."""
        site = self._sites[id(model)][track] = self._site(track, model, places)
        self._told(why, site.name if site else "")
        return site

    def _told(self, why: str, name: str) -> None:
        """Say once that a place cannot be used, and what is skipped instead."""
        recorder = self.session.recorder
        if not name:
            warn(self.session, f"{why}; the run goes on uncached")
            return
        recorder.site = name
        note = f"{why}; {IN_WORDS[name]} are skipped instead"
        if recorder.note(note) and recorder.unheard(note):
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
        given = _Given(*(args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(_Given._fields)))
        run = _start(attachment, executor.class_obj, guider, sigmas, extra_args["model_options"], given)
    except Exception:
        LOG.warning("SpectralCache could not start on this ComfyUI; sampling without it.", exc_info=True)
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    extra_args["model_options"].setdefault("transformer_options", {})[KEY] = run
    state: State = "error"
    samples = None
    if run.session.active:
        args, kwargs = _told(run.session, args, kwargs)
    try:
        samples = executor(guider, sigmas, extra_args, *args, **kwargs)
        state = "done"
        return samples
    except comfy.model_management.InterruptProcessingException:
        state = "interrupted"
        raise
    finally:
        extra_args["model_options"]["transformer_options"].pop(KEY, None)
        _finish(run, state, samples)


class _Given(NamedTuple):
    """What the host hands a sampler behind extra_args, in this order."""

    callback: Any
    noise: Any
    latent_image: Any
    denoise_mask: Any


def _told(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments behind extra_args, with the sampler's callback (the first) told to the run as well."""
    callback = args[0] if args else kwargs.get("callback")

    def told(step: Any, *rest: Any, **more: Any) -> Any:
        with fail_open(session):
            session.course.report(int(step))
        return callback(step, *rest, **more) if callback is not None else None

    if args:
        return (told, *args[1:]), kwargs
    return args, {**kwargs, "callback": told} if "callback" in kwargs else kwargs


def _start(
    attachment: Attachment,
    sampler: Any,
    guider: Any,
    sigmas: torch.Tensor,
    model_options: Mapping[str, Any],
    given: _Given,
) -> Run:
    levels = sigmas.tolist()  # copied once: uni_pc writes into the tensor
    method, model, learned = attachment.method, guider.model_patcher.model, attachment.learned
    sides = tuple(getattr(given.noise, "shape", ()))[2:]
    refusal = learned.refusal(*kind_of(sampler), getattr(guider, "cfg", None), is_stochastic, sides) if learned else ""
    if learned is not None and refusal:
        method = learned.plain or method
    bare = _bare(model.diffusion_model)
    architecture = architecture_of(bare)
    name = architecture.name if architecture else type(bare).__name__
    recorder = Recorder(method.name, method.params, name, "", len(levels) - 1, counted=method.counted)
    recorder.unheard = partial(RUNS.unheard, _place())
    if learned is not None and learned.profile is not None and not refusal:
        recorder.profile = learned.profile.title
    flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
    schedule = Schedule(tuple(levels), flow_noise if flow else plain_noise, flow)
    seen = given.denoise_mask is None
    piece = Piece(_executing(), attachment, guider)
    session = piece.follow(levels, given, recorder) or Session(
        method, schedule, recorder, keep, attachment.observe, has_float64, measures=seen
    )
    branches = _branches(session, guider, levels, model_options)
    run = Run(session, Live(recorder, page(attachment.node_id)), branches, _one_graph(model_options), piece)
    run.windows = moving_windows(model_options.get("context_handler"))
    run.guidance = len(model_options.get("sampler_post_cfg_function", ()))
    run.sampler, run.noisy = kind_of(sampler)
    _guided(run, guider, levels, model_options)
    run.tiled = "model_function_wrapper" in model_options
    if run.tiled and run.sites_in_calls and session.parts is None:
        session.in_parts()
    kinds = [site.name for site in run.guided.values()]
    kinds += [*(site.name for site in run.sites(bare)), *(site.name for site in run.branches.values())]
    recorder.site = kinds[0] if kinds else MODEL.kind
    if method.never:
        return run
    if learned is not None and refusal:
        if learned.plain is None and learned.profile is not None:
            warn(session, f"{refusal}; {method.name} cannot do without, so the run goes on uncached")
        elif recorder.note(refusal) and recorder.unheard(refusal):
            LOG.warning("SpectralCache: %s.", refusal)
    for obstacle in obstacles(sampler, levels, model_options, bare, KEY):
        warn(session, obstacle)
    if session.active and not piece.goes_on and (few := too_few(len(levels) - 1)):
        if levels[-1] > 0 and piece.place is not None:  # the next run of this node may go on with it
            session.too_short = True
            recorder.note(few)
        else:
            warn(session, few)
    for site in run.sites(bare):
        if site.obstacle:
            warn(session, site.obstacle)
    if session.active and not kinds:
        warn(session, f"{method.name} has no place to skip at in {name}")
    if session.active:
        for remark in remarks(session.schedule.sigmas):
            recorder.note(remark)
        if method.remark is not None and (said := method.remark(session.schedule)):
            recorder.note(said)
        wanted = next((CALL_SITES[p.kind] for p in method.rules[0].places if p.kind in CALL_SITES), None)
        if recorder.site == MODEL.kind and wanted is not None and not wanted.fits(architecture):
            recorder.note(f"the blocks of {name} are not described yet, so whole model calls are skipped")
    return run


def _guided(run: Run, guider: Any, sigmas: Sequence[float], model_options: Mapping[str, Any]) -> None:
    """Rules that skip whole evaluations: at once, or where the first evaluation turns out to be worth it."""
    if takes_turns(guider.conds, sigmas):
        return
    more, alone = does_more(guider.conds, model_options), _alone(model_options)
    for track in run.session.tracks:
        if track.rule.places[0].kind == Branch.name:  # it has sections of its own
            continue
        where_more = track.rule.around is not None and track.rule.around.kind == Guided.name and alone
        if track.rule.places[0].kind == Guided.name or (where_more and more) or track.section is not None:
            run.skip_evaluations(track, guider)
        elif where_more and not run.piece.goes_on:
            run.later.append((track, guider))


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


def _alone(model_options: Mapping[str, Any]) -> bool:
    """Whether nobody else stands around whole evaluations, who could change the guidance unseen."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return not any(found for key, found in wrappers.get("predict_noise", {}).items() if key != KEY)


def _one_graph(model_options: Mapping[str, Any]) -> bool:
    """Whether the whole model is compiled with fullgraph=True by the host's own wrapper. A pack that compiles by itself
    is found out when its first graph fails.
    """
    if not model_options.get("torch_compile_kwargs", {}).get("fullgraph"):
        return False
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {}).get("apply_model", {})
    modules = [dict(inspect.getclosurevars(w).nonlocals) for w in wrappers.get("torch.compile", ())]
    names = [name for found in modules for name in found.get("compiled_module_dict", {"diffusion_model": None})]
    return "diffusion_model" in names  # single blocks compiled leave room for hooks between them


def _finish(run: Run, state: State, samples: Any) -> None:
    session, trace = run.session, None
    try:
        _say_idle(run, state)
        if state != "done" or not run.piece.leave(session, samples):
            session.close()
        session.recorder.expected = session.expected() if state == "done" else None
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


def _executing() -> Any:
    """The node execution that is under way: an object of its own each; None outside the executor."""
    try:
        from comfy_execution.utils import get_executing_context

        return get_executing_context()
    except ImportError:
        return None


def _place() -> dict[str, Any]:
    """Which prompt and node is sampling; None outside the executor."""
    context = _executing()
    return {
        "prompt": context.prompt_id if context else None,
        "node": context.node_id if context else None,
        "index": 0,
        "item": (context.list_index if context else None) or 0,
    }


def item() -> int:
    """Which item of a list the executor runs the present node for."""
    return int(_place()["item"])


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
        run.session.look(x)
        run.look_out(options)
    out = _evaluated(run, x, timestep, lambda: executor(x, timestep, options, *args, **kwargs))
    with fail_open(run.session):
        if run.later:
            run.look_back(x, timestep, out)
        run.session.answer(x, out)
        run.heed()
        out = run.session.adjusted(x, out)
    with fail_open(run.session):
        run.session.end()
    run.live.step()
    return out


def _evaluated(run: Run, x: Any, timestep: torch.Tensor, forward: Callable[[], Any]) -> Any:
    """The guided result, through the sites that can leave an evaluation out as a whole."""
    for site in list(run.guided.values()):
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
    call = None
    with fail_open(run.session):
        call = _open_call(run, executor.class_obj, args, kwargs, options)
        if call is not None:
            run.session.look_at_part(call.x)
            for site in reversed(run.sites(_bare(executor.class_obj.diffusion_model))):
                around = partial(_inside, site, call, around)
    out = around(options)
    if call is not None:
        with fail_open(run.session):
            run.session.answer_part(call.x, out)
    return out


def _inside(site: Site, call: ModelCall, forward: Forward, options: Options) -> torch.Tensor:
    return site.run(call, options, forward)


def _open_call(
    run: Run, base_model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options
) -> ModelCall | None:
    """The model call as a site sees it, or None where it is to be computed as if we were not there."""
    x, sigma = args[0], args[1]
    if "ar_state" in options and run.session.active:
        warn(run.session, AUTO_REGRESSIVE)
    if run.windows and options.get("context_window") is not None and run.sites_in_calls:
        run.session.recorder.note(
            f"context_schedule {run.windows} moves its windows at every step, so nothing can be skipped: "
            "choose standard_static"
        )
    keys = lane_keys(base_model, options, x.device, run.flags.of(options), run.piece.uuids)
    rows = x.shape[0] // len(keys)
    call = run.session.open(keys, [slice(i * rows, (i + 1) * rows) for i in range(len(keys))])
    call.bypass |= rows * len(keys) != x.shape[0]
    if call.bypass or not run.session.active:
        return None
    control = args[4] if len(args) > 4 else kwargs.get("control")
    slots, shapes = control_slots(control), kwargs.get("latent_shapes") or ()
    return ModelCall(call, x, sigma, base_model.model_sampling, slots, weights(base_model), shapes)


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


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; the host knows (Apple's, Intel's and others do not)."""
    ask = getattr(comfy.model_management, "supports_fp64", None)
    if device.type == "cpu" or ask is None:
        return device.type != "mps"
    return bool(ask(device))


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
