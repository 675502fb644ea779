"""Cache Method: every published method of `cache_core/methods` from one node. Each file there is one option, with its
own inputs below it; a new file appears here without any other edit.
"""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..cache_core import methods
from ..cache_core.parameters import Published
from ..cache_core.types import CacheError
from . import host
from .apply import widget
from .learned import GAINS, OFF
from .schema import ADVANCED, ALIASES, PROFILE, schema

NAME = "Cache Method"
DYNAMIC = hasattr(io, "DynamicCombo")
"""Older ComfyUI has no inputs that depend on another one."""
FIRST = ("teacache", "first_block_cache")
"""Heads of the list, which start the node; the others follow by name."""
DESCRIPTION = (
    "Speeds up sampling with one of the published caching methods, each as published, with its own settings: to "
    "compare them fairly, or to use the one you know. SpectralCache Auto is the simpler choice. Put it anywhere "
    "between the model loader and the sampler. Remove or bypass it and the picture is exactly the original again. "
    "Connect Cache Stats to see what was skipped."
)
PARAMETERS_TOOLTIP = (
    'The method\'s settings as JSON, such as {"threshold": 0.4}; what is not named keeps its default. (This ComfyUI '
    "shows no inputs that depend on the method; newer ones do.)"
)
GAIN_TOOLTIP = (
    "Takes back what this method, at these settings, was learned to do to a run: noise scales the predicted noise "
    "(FEB-Cache's gain), channels draws each channel of the latent to or from its mean (Q&C's). It costs no time, but "
    "needs a profile that Cache Calibrate made with record gain from a model with the same method on it. off (typical) "
    "changes nothing."
)


class SpectralCacheMethodApply(io.ComfyNode):
    """MODEL in, MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheMethodApply",
            display_name=NAME,
            description=DESCRIPTION,
            search_aliases=_aliases(),
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up: any diffusion model; some methods need blocks "
                               "that are described (FLUX, Chroma, Qwen-Image, Wan, HunyuanVideo) and say so in Cache "
                               "Stats."),
                *(_dynamic() if DYNAMIC else _plain()),
                io.Custom(PROFILE).Input("profile", optional=True, tooltip=_profile_tooltip()),
                io.Combo.Input("gain", options=list(GAINS), default=OFF, optional=True, extra_dict=dict(ADVANCED),
                               tooltip=GAIN_TOOLTIP),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the method on it. The model that came in is not changed.")
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, **given: Any) -> bool | str:
        """Before anything runs, in our words; linked inputs are None and are checked when the node runs."""
        try:
            published, params = _chosen(given.get("method"), given.get("parameters"))
            published.check(params)
            _check_gain(given.get("gain"), "profile" in given)
        except CacheError as error:
            return f"{NAME}: {error}"
        return True

    @classmethod
    def execute(
        cls, model: Any, method: Any = None, parameters: str = "", profile: Any = None, gain: str | None = None
    ) -> io.NodeOutput:
        """Checks everything again, since linked values are only known now."""
        try:
            published, params = _chosen(method, parameters)
            _check_gain(gain, profile is not None)
            return io.NodeOutput(host.apply(model, published, profile, params, cls.hidden.unique_id, gain or OFF))
        except CacheError as error:
            raise CacheError(f"{NAME}: {error}") from None


def _chosen(method: Any, parameters: str | None) -> tuple[Published, dict[str, Any]]:
    """The method and its settings, from a dynamic input (a mapping) or from a name and JSON."""
    known = methods()
    if isinstance(method, dict):
        # The host gives None for an optional input that a graph lacks, and for a linked one before it runs.
        params = {name: value for name, value in method.items() if name != "method" and value is not None}
        name = method.get("method")
    else:
        name, params = method, _from_json(parameters)
    if name not in known:
        raise CacheError(f"method is {name!r}; use {' or '.join(_names())}")
    return known[name], params


def _check_gain(gain: object, profile: bool) -> None:
    """None: not known yet, or not there."""
    if gain not in (None, *GAINS):
        raise CacheError(f"gain is {gain!r}; use {' or '.join(GAINS)}")
    if gain not in (None, OFF) and not profile:
        raise CacheError(f"gain is {gain}, but no profile is connected; connect Cache Calibrate with record gain, or "
                         f"set gain to {OFF}")  # fmt: skip


def _from_json(text: str | None) -> dict[str, Any]:
    try:
        params = json.loads(text or "{}")
    except ValueError as error:
        raise CacheError(f'parameters is no JSON ({error}); write it like {{"threshold": 0.4}}') from None
    if not isinstance(params, dict):
        raise CacheError('parameters is no JSON object; write it like {"threshold": 0.4}')
    return params


def _names() -> list[str]:
    return [*FIRST, *(name for name in methods() if name not in FIRST)]


def _dynamic() -> list[Any]:
    """One option a method, its parameters as inputs below it."""
    options = [
        io.DynamicCombo.Option(name, [widget(parameter) for parameter in methods()[name].parameters])
        for name in _names()
    ]
    return [io.DynamicCombo.Input("method", options=options, tooltip=_tooltip())]


def _plain() -> list[Any]:
    """For a ComfyUI without dynamic inputs."""
    return [
        io.Combo.Input("method", options=_names(), default=FIRST[0], tooltip=_tooltip()),
        io.String.Input("parameters", default="{}", multiline=True, tooltip=PARAMETERS_TOOLTIP),
    ]


def _tooltip() -> str:
    lines = [f"{name}: {methods()[name].advice}" for name in _names()]
    return "\n".join(["Which published method; its settings appear below.", *lines])


def _profile_tooltip() -> str:
    users = [name for name in _names() if methods()[name].profiled]
    return (
        f"What Cache Calibrate learned of this model: used by {', '.join(users)}. Off: they follow a stated default. "
        "Other methods ignore it."
    )


def _aliases() -> list[str]:
    """The words that every Apply node answers to, and each method's own."""
    own = [word for name, method in methods().items() for word in (name, method.title.lower(), *method.aliases)]
    return list(dict.fromkeys([*ALIASES, *own]))
