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


def lane_keys(base_model: Any, options: Mapping[str, Any], device: torch.device) -> list[LaneKey]:
    """One key a chunk: which conditioning it is, and which patches of others run on it (the functions themselves)."""
    positions = options.get("cond_or_uncond") or [0]
    uuids = options.get("uuids") or [None] * len(positions)
    model, frames = place_of(base_model, options)
    foreign, lists = options.get("patches_replace", {}).get("dit", {}), options.get("patches", {})
    patches = tuple((slot, Same(patch)) for slot, patch in foreign.items())
    patches += tuple((name, Same(patch)) for name, group in lists.items() for patch in group)
    return [LaneKey((model, device, p, u, frames), patches) for p, u in zip(positions, uuids, strict=True)]


def place_of(base_model: Any, options: Mapping[str, Any]) -> tuple[Same, tuple[int, ...] | None]:
    """The model, and the frames of the context window that is being made."""
    window = options.get("context_window")
    return Same(base_model), tuple(window.index_list) if window is not None else None


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
