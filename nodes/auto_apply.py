"""SpectralCache Auto: the method on a model. The node holds widgets and their help; the work is in `cache_core`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cache_core.methods.auto import CHOICES, RANGES, auto
from .apply import applied, verdict
from .schema import ADVANCED, ALIASES, schema

NAME = "SpectralCache Auto"


class SpectralCacheAutoApply(io.ComfyNode):
    """MODEL in, MODEL out; see `cache_core/methods/auto.py` for what the numbers mean, `gates.py` for the budget,
    `placement.py`, `backtest.py` and `corrections.py` for the formulas.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheAutoApply",
            display_name=NAME,
            description=(
                "Speeds up sampling, with one dial: say how much faster, and only so many steps are computed, where "
                "they matter most; the others are forecast, and the next computed step makes good what a forecast "
                "missed. Put it anywhere between the model loader and the sampler. Remove or bypass it and the picture "
                "is exactly the original again. Connect Cache Stats to see what was skipped."
            ),
            search_aliases=[*ALIASES, "auto", "automatic", "one dial", "easy", "budget", "自动", "自動"],
            inputs=_inputs(),
            outputs=[
                io.Model.Output(
                    tooltip="The model with SpectralCache Auto on it. The model that came in is not changed."
                )
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        speedup: float | None = None,
        tolerance: float | None = None,
        keep_first: int | None = None,
        keep_last: int | None = None,
        bands: int | None = None,
    ) -> bool | str:
        """Before anything runs, with our words instead of ComfyUI's. Linked inputs are None."""
        given = {
            "speedup": speedup,
            "tolerance": tolerance,
            "keep_first": keep_first,
            "keep_last": keep_last,
            "bands": bands,
        }
        return verdict(NAME, given, RANGES)

    @classmethod
    def execute(cls, model: Any, **params: Any) -> io.NodeOutput:
        return applied(cls, NAME, auto, model, params)


SPEEDUP = (
    "How much faster, counted in steps: of 28 steps, 2.0 computes 14, 3.0 computes 9. Higher: faster, further from the "
    "original picture. 1.5 careful, 2 balanced, 3 fast, 4 and more for drafts. Counts only with quality Custom, where "
    "1.0 switches the node off."
)
QUALITY = (
    "In words instead of a number: how many steps are computed then depends on how many there are. Quality is slowest "
    "and closest to the original, then Balanced, Fast and Draft. Custom: the number in speedup counts."
)
TOLERANCE = (
    "A step whose estimated error would be larger is computed, whatever the budget. Lower: slower, closer to the "
    "original. 0 switches this off (typical): the budget is kept. Cache Stats shows the estimates of your runs; 0.02 "
    "means two percent."
)
KEEP_FIRST = (
    "So many first steps are always computed; they count in the budget. Higher: the layout is closer to the original "
    "and less is left for the rest. 1 is typical, 2 to 4 protect the layout."
)
KEEP_LAST = (
    "So many last steps are always computed; they count in the budget. Higher: finer detail, and less is left for the "
    "rest. 1 is typical, 2 protects texture."
)
BANDS = (
    "How many bands, from coarse structure to fine detail, are forecast each at its own pace. Higher: detail that "
    "cannot be foreseen is held back apart. 3 is typical; 1 treats all alike and is a little faster."
)
SITE = (
    "Where to skip: model skips the whole model call, which works on every model and holds least memory; trunk skips "
    "inside FLUX and Qwen-Image, as the other nodes do, and holds more; auto takes the better one, which is model."
)


def _inputs() -> list[io.Input]:
    optional: dict[str, Any] = {"optional": True, "extra_dict": dict(ADVANCED)}
    (fewest, most), (least_error, most_error) = RANGES["speedup"], RANGES["tolerance"]
    return [
        io.Model.Input("model", tooltip="The model to speed up: any diffusion model."),
        io.Float.Input("speedup", default=2.0, min=fewest, max=most, step=0.1, tooltip=SPEEDUP),
        io.Combo.Input("quality", options=list(CHOICES["quality"]), default="Balanced", tooltip=QUALITY),
        io.Float.Input(
            "tolerance", default=0.0, min=least_error, max=most_error, step=0.01, tooltip=TOLERANCE, **optional
        ),
        _whole("keep_first", 1, KEEP_FIRST, optional),
        _whole("keep_last", 1, KEEP_LAST, optional),
        _whole("bands", 3, BANDS, optional),
        io.Combo.Input("site", options=list(CHOICES["site"]), default="auto", tooltip=SITE, **optional),
    ]


def _whole(name: str, default: int, tooltip: str, options: dict[str, Any]) -> io.Input:
    low, high = (int(bound) for bound in RANGES[name])
    return io.Int.Input(name, default=default, min=low, max=high, tooltip=tooltip, **options)
