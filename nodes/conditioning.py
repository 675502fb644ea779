"""What the host's conditionings say of a model call and of a run: which lane it is, and where lanes come and go."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..cache_core.track import LaneKey


class Same:
    """A hashable stand-in for one object: equal only to itself, and keeping it alive, so that no id is ever reused."""

    __slots__ = ("object",)

    def __init__(self, wrapped: Any) -> None:
        self.object = wrapped

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.object is self.object

    def __hash__(self) -> int:
        return id(self.object)


# one model call -------------------------------------------------------------------------------------------------------


HOST_OPTIONS = frozenset(
    "cond_or_uncond uuids sigmas sample_sigmas patches patches_replace wrappers callbacks context_window total_blocks "
    "block block_type block_index transformer_index img_slice activations_shape original_shape original_size "
    "reference_image_num_tokens prefetch_dynamic_vbars".split()
)
"""Options that the host sets itself and that say nothing which the rest of a lane's key does not."""
COUNTING = 3
"""A value that has been another one in so many evaluations is a counter, and tells no lanes apart."""


class Flags:
    """Simple values that other packs put into transformer_options: a call with other ones is another function."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Any]] = {}
        self._counters: set[str] = set()

    def of(self, options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Those of this call that do not count something."""
        found = ((name, value) for name, value in options.items() if name not in HOST_OPTIONS and _simple(value))
        return tuple((name, value) for name, value in sorted(found) if not self._counts(name, value))

    def _counts(self, name: str, value: Any) -> bool:
        seen = self._seen.setdefault(name, [])
        if name not in self._counters and value not in seen:
            seen.append(value)
            if len(seen) > COUNTING:
                self._counters.add(name)
        return name in self._counters


def _simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_simple(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def lane_keys(
    base_model: Any,
    options: Mapping[str, Any],
    device: torch.device,
    flags: tuple[tuple[str, Any], ...] = (),
    before: Mapping[Any, Any] | None = None,
) -> list[LaneKey]:
    """One key a chunk: which conditioning it is, and which patches of others run on it (the functions themselves).
    before: the uuids that conditionings had in the run that this one goes on with.
    """
    positions = options.get("cond_or_uncond") or [0]
    uuids = [(before or {}).get(uuid, uuid) for uuid in options.get("uuids") or [None] * len(positions)]
    model, frames = place_of(base_model, options)
    foreign, lists = options.get("patches_replace", {}).get("dit", {}), options.get("patches", {})
    patches = tuple((slot, Same(patch)) for slot, patch in foreign.items())
    patches += tuple((name, Same(patch)) for name, group in lists.items() for patch in group)
    places = zip(positions, uuids, strict=True)
    return [LaneKey((model, device, p, u, frames), patches, flags) for p, u in places]


def place_of(base_model: Any, options: Mapping[str, Any]) -> tuple[Same, tuple[int, ...] | None]:
    """The model, and the frames of the context window that is being made."""
    window = options.get("context_window")
    return Same(base_model), tuple(window.index_list) if window is not None else None


def passes(key: LaneKey) -> Hashable:
    """What a chunk is, wherever in the picture: its conditioning, how many patches are on it, and its flags."""
    chunk: Any = key
    return (*chunk.conditioning[:-1], len(chunk.patches), key.flags)  # all but the window's frames


def side(key: LaneKey) -> int:
    """Which side of guidance a chunk of a model call is of: 0 the positive, 1 the negative prompt."""
    chunk: Any = key
    return int(chunk.conditioning[2])


def moving_windows(handler: Any) -> str:
    """The name of a context handler's schedule whose windows are others at every step, or an empty string."""
    name = str(getattr(getattr(handler, "context_schedule", None), "name", ""))
    return name if "uniform" in name else ""


def control_slots(control: Any) -> frozenset[tuple[str, int]]:
    """Which ControlNet slots carry something; its values change from step to step, its slots only when a net starts or
    ends.
    """
    lists = control if isinstance(control, dict) else {}
    return frozenset((name, i) for name, group in lists.items() for i, add in enumerate(group) if add is not None)


def weights(base_model: Any) -> frozenset[tuple[Same, float]]:
    """The (hook, strength) set of the weights in place: LoRA hooks with keyframes change it mid-run."""
    hooks = getattr(getattr(base_model, "current_patcher", None), "current_hooks", None)
    return frozenset((Same(hook), float(hook.strength)) for hook in hooks.hooks) if hooks is not None else frozenset()


# the whole run --------------------------------------------------------------------------------------------------------


def sections(conds: Mapping[str, Any]) -> Callable[[float], Hashable]:
    """Which part of the run a noise level lies in: which timed conditionings, ControlNets and hook keyframes are in
    force there. `conds` are a guider's, processed for the run (sigmas instead of percents).
    """
    edges = tuple(_edges(conds))
    return lambda sigma: tuple(sigma <= level if included else sigma < level for level, included in edges)


def _edges(conds: Mapping[str, Any]) -> Iterator[tuple[float, bool]]:
    """Noise levels at which something begins (at the level itself) or ends (just below it), as the host compares."""
    for cond in itertools.chain.from_iterable(group or () for group in conds.values()):
        yield from _range(cond.get("timestep_start"), cond.get("timestep_end"))
        for net in _nets(cond.get("control")):
            yield from _range(*(getattr(net, "timestep_range", None) or (None, None)))
        for frames in keyframes(cond):
            yield from ((float(frame.start_t), True) for frame in frames[1:])


def _range(start: Any, end: Any) -> Iterator[tuple[float, bool]]:
    if start is not None:
        yield float(start), True
    if end is not None:
        yield float(end), False


def _nets(control: Any) -> Iterator[Any]:
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def keyframes(cond: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The keyframes of every hook on a conditioning."""
    hooks = getattr(cond.get("hooks"), "hooks", ())
    yield from (getattr(getattr(hook, "hook_keyframe", None), "keyframes", ()) for hook in hooks)


def called(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[Any, Any] | None:
    """What a guider's conditionings were called in an earlier run: uuid by uuid; None where they are other ones."""
    names: dict[Any, Any] = {}
    if before.keys() != now.keys():
        return None
    for name, group in now.items():
        earlier = before[name] or ()
        if len(earlier) != len(group or ()):
            return None
        for old, new in zip(earlier, group or (), strict=True):
            if not _equal(old.get("cross_attn"), new.get("cross_attn")):
                return None
            names[new.get("uuid")] = old.get("uuid")
    return names


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    tensors = torch.is_tensor(one) and torch.is_tensor(other)
    return tensors and one.shape == other.shape and one.device == other.device and torch.equal(one, other)


def packed_shapes(conds: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of the latents that a run's latent is packed from, as the model is told them; none for a plain one."""
    for cond in itertools.chain.from_iterable(group or () for group in conds.values()):
        shapes = getattr(cond.get("model_conds", {}).get("latent_shapes"), "cond", None)
        if shapes is not None:
            return [tuple(shape) for shape in shapes]
    return []


def does_more(conds: Mapping[str, Any], model_options: Mapping[str, Any]) -> bool:
    """Whether an evaluation is more than calls of the model, as far as can be seen before the first: windows, tiles,
    ControlNets, LoRA hooks.
    """
    groups = itertools.chain.from_iterable(group or () for group in conds.values())
    bound = any(cond.get("control") is not None or cond.get("hooks") is not None for cond in groups)
    return bound or any(model_options.get(name) for name in ("context_handler", "model_function_wrapper"))


def takes_turns(conds: Mapping[str, Any], sigmas: Sequence[float]) -> bool:
    """Whether hook keyframes are counted in evaluations (guaranteed steps, or two within one step): only evaluations
    that run move these on, so none may be left out as a whole.
    """
    for cond in itertools.chain.from_iterable(group or () for group in conds.values()):
        for frames in keyframes(cond):
            steps = [sum(sigma > float(frame.start_t) for sigma in sigmas) for frame in frames[1:]]
            if len(set(steps)) < len(steps) or any(frame.guarantee_steps > 1 for frame in frames):
                return True
    return False
