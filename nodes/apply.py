"""What all Apply nodes are: a method's parameters as widgets, checked before anything runs, and the method on a model.

A node states its id and its words; names, defaults, ranges and tooltips come from the method's file.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from ..cache_core import methods
from ..cache_core.parameters import Parameter, Published
from ..cache_core.types import CacheError
from . import host
from .schema import ADVANCED, PROFILE, schema


class ApplyNode(io.ComfyNode):
    """MODEL in, MODEL out. A node is a subclass with these words."""

    ID: ClassVar[str]
    NAME: ClassVar[str]
    METHOD: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    ALIASES: ClassVar[Sequence[str]]
    MODELS: ClassVar[str] = "any diffusion model; FLUX.1 gains most."

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=cls.ID,
            display_name=cls.NAME,
            description=cls.DESCRIPTION,
            search_aliases=list(cls.ALIASES),
            inputs=[
                io.Model.Input("model", tooltip=f"The model to speed up: {cls.MODELS}"),
                *(widget(parameter) for parameter in methods()[cls.METHOD].parameters),
                *_profile(methods()[cls.METHOD]),
            ],
            outputs=[
                io.Model.Output(
                    tooltip=f"The model with {cls.NAME.removesuffix(' Apply')} on it. The model that came in is not "
                    "changed."
                )
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, profile: Any = None, **params: Any) -> io.NodeOutput:
        """Checks everything again, since linked values are only known now."""
        try:
            return io.NodeOutput(host.apply(model, methods()[cls.METHOD], profile, params, cls.hidden.unique_id))
        except CacheError as error:
            raise CacheError(f"{cls.NAME}: {error}") from None


def _profile(method: Published) -> list[Any]:
    """The input of what a calibration learned, for a method that uses it."""
    tooltip = "What Cache Calibrate learned of this model. Off: the method follows a stated default."
    return [io.Custom(PROFILE).Input("profile", optional=True, tooltip=tooltip)] if method.profiled else []


def compared(name: str, method: Published, *others: str) -> Any:
    """A node's `validate_inputs`: before anything runs, it holds parameters against each other, and checks those in
    `others`, in our words. ComfyUI checks the rest. It must name what it looks at; linked inputs are None.
    """
    names = (*method.compared, *others)

    def validate_inputs(cls: type, **given: Any) -> bool | str:
        try:
            method.check(given)
        except CacheError as error:
            return f"{name}: {error}"
        return True

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter("cls", kind), *(inspect.Parameter(n, kind, default=None) for n in names)]
    validate_inputs.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return classmethod(validate_inputs)


def widget(parameter: Parameter) -> io.Input:
    """The input of one parameter."""
    options: dict[str, Any] = {"default": parameter.default, "tooltip": parameter.tooltip}
    if parameter.folded:
        options["extra_dict"] = dict(ADVANCED)
    if parameter.late:
        options["optional"] = True
    if parameter.choices:
        return io.Combo.Input(parameter.name, options=list(parameter.choices), **options)
    if isinstance(parameter.default, str):
        return io.String.Input(parameter.name, **options)
    if isinstance(parameter.default, bool):
        return io.Boolean.Input(parameter.name, **options)
    if isinstance(parameter.default, int):
        return io.Int.Input(parameter.name, min=int(parameter.low), max=int(parameter.high), **options)
    return io.Float.Input(parameter.name, min=parameter.low, max=parameter.high, step=parameter.step, **options)
