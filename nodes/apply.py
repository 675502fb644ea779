"""SpectralCache Apply: the method on a model. The node holds widgets and their help; the work is in `cache_core`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ..cache_core.methods.spectralcache import ORDERED, RANGES, spectralcache
from ..cache_core.parameters import Ranges, check
from ..cache_core.types import CacheError, Method
from . import host
from .schema import ADVANCED, ALIASES, schema

NAME = "SpectralCache Apply"


class SpectralCacheApply(io.ComfyNode):
    """MODEL in, MODEL out; see `cache_core/methods/spectralcache.py` for what the numbers mean in the paper."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheApply",
            display_name=NAME,
            description=(
                "Speeds up sampling: steps whose input has hardly changed reuse the transformer's last result. Put it "
                "anywhere between the model loader and the sampler. Remove or bypass it and the picture is exactly the "
                "original again. Connect Cache Stats to see what was skipped."
            ),
            search_aliases=ALIASES,
            inputs=_inputs(),
            outputs=[
                io.Model.Output(tooltip="The model with SpectralCache on it. The model that came in is not changed.")
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        tads_min: float | None = None,
        tads_max: float | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
    ) -> bool | str:
        """Before anything runs: only what has to be compared; ComfyUI checks the rest. Linked inputs are None."""
        given = {
            "tads_min": tads_min,
            "tads_max": tads_max,
            "start_percent": start_percent,
            "end_percent": end_percent,
        }
        return verdict(NAME, given, RANGES)

    @classmethod
    def execute(cls, model: Any, **params: Any) -> io.NodeOutput:
        return applied(cls, NAME, spectralcache, model, params)


def verdict(name: str, given: Mapping[str, float | None], ranges: Ranges) -> bool | str:
    """What `validate_inputs` answers: True, or the refusal with the node's name, the value and the way out."""
    try:
        check(given, ranges, ORDERED)
    except CacheError as error:
        return f"{name}: {error}"
    return True


def applied(
    node: type[io.ComfyNode], name: str, build: Callable[..., Method], model: Any, params: Mapping[str, Any]
) -> io.NodeOutput:
    """The model with a method on it; checks everything again, since linked values are only known now."""
    try:
        method = build(**params)
    except CacheError as error:
        raise CacheError(f"{name}: {error}") from None
    return io.NodeOutput(host.attach(model, method, node.hidden.unique_id))


THRESHOLD = (
    "How much change may build up before a step is computed again. Higher: faster, further from the original picture. "
    "0.25 careful, 0.4 balanced, 0.6 fast (the paper's), 0.8 draft; 0 switches the node off."
)
MAX_CONSECUTIVE = (
    "At most this many steps skipped in a row. Higher: faster, but errors add up. 2 is the paper's, 3 to 4 for drafts; "
    "0 switches the node off."
)
ADVANCED_WIDGETS = (  # name, default, smallest, largest, tooltip
    (
        "tads_min", 0.5, 0.0, 10.0,
        "Multiplies the threshold at the first and last steps. Lower: these are computed more often. The paper: 0.5; "
        "1 here and in tads_max keeps the threshold the same throughout.",
    ),
    (
        "tads_max", 1.5, 0.0, 10.0,
        "Multiplies the threshold in the middle of the run. Higher: more is skipped there. The paper uses 1.5.",
    ),
    (
        "band_split", 0.5, 0.01, 0.99,
        "Which share of the channels counts as the low band in the two checks below. Lower: the low-band check watches "
        "fewer channels, the high-band check more. The paper uses 0.5.",
    ),
    (
        "gamma_low", 0.8, 0.0, 1000.0,
        "A step is computed if the low band alone changed by more than this times the threshold. Lower: stricter. "
        "The paper uses 0.8, which rarely decides anything; 0.3 makes it matter, 1000 switches it off.",
    ),
    (
        "gamma_high", 1.5, 0.0, 1000.0,
        "The same for the high band. Lower: stricter, slower. The paper uses 1.5; 1000 switches it off.",
    ),
    (
        "start_percent", 0.0, 0.0, 1.0,
        "Nothing is skipped before this share of the run's steps. Higher: slower, composition closer to the original. "
        "0 is typical; 0.1 to 0.2 protects the layout.",
    ),
    (
        "end_percent", 1.0, 0.0, 1.0,
        "Nothing is skipped after this share of the run's steps. Lower: slower, finer detail. 1 is typical; 0.9 "
        "protects texture.",
    ),
)  # fmt: skip


def _inputs() -> list[io.Input]:
    model = "The model to speed up: any diffusion model; FLUX.1 gains most."
    return [
        io.Model.Input("model", tooltip=model),
        io.Float.Input("threshold", default=0.6, min=0.0, max=10.0, step=0.01, tooltip=THRESHOLD),
        io.Int.Input("max_consecutive", default=2, min=0, max=1000, tooltip=MAX_CONSECUTIVE),
        *(
            io.Float.Input(name, default=d, min=low, max=high, step=0.01, tooltip=tip, extra_dict=dict(ADVANCED))
            for name, d, low, high, tip in ADVANCED_WIDGETS
        ),
    ]
