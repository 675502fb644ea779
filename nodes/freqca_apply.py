"""FreqCa Apply: the method on a model. The node holds widgets and their help; the work is in `cache_core`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cache_core.methods.freqca import CHOICES, RANGES, freqca
from .apply import ADVANCED_WIDGETS, MAX_CONSECUTIVE, THRESHOLD, applied, verdict
from .schema import ADVANCED, ALIASES, schema

NAME = "FreqCa Apply"


class SpectralCacheFreqCaApply(io.ComfyNode):
    """MODEL in, MODEL out; see `cache_core/methods/freqca.py` for what the numbers mean in the paper."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheFreqCaApply",
            display_name=NAME,
            description=(
                "Speeds up sampling on a fixed schedule: the steps between two computed ones are forecast, coarse "
                "structure held and detail extrapolated. Put it anywhere between the model loader and the sampler. "
                "Remove or bypass it and the picture is exactly the original again. Connect Cache Stats to see what "
                "was skipped."
            ),
            search_aliases=[*ALIASES, "hicache", "forecast", "interval"],
            inputs=_inputs(),
            outputs=[io.Model.Output(tooltip="The model with FreqCa on it. The model that came in is not changed.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent: float | None = None,
        end_percent: float | None = None,
        tads_min: float | None = None,
        tads_max: float | None = None,
    ) -> bool | str:
        """Before anything runs: only what has to be compared; ComfyUI checks the rest. Linked inputs are None."""
        given = {"start_percent": start_percent, "end_percent": end_percent, "tads_min": tads_min, "tads_max": tads_max}
        return verdict(NAME, given, RANGES)

    @classmethod
    def execute(cls, model: Any, **params: Any) -> io.NodeOutput:
        return applied(cls, NAME, freqca, model, params)


INTERVAL = (
    "Compute one step in this many. Higher: faster, further from the original picture. 2 to 4 suit 20 to 30 steps; the "
    "paper's 6 and 9 are for 50 steps; 1 switches the node off."
)
WARMUP = (
    "So many first steps are always computed. Higher: slower, composition closer to the original. The paper uses 3; 5 "
    "to 8 are safer at high guidance."
)
LAST = "So many last steps are always computed. Higher: slower, finer detail. 1 is typical, 2 protects texture."
TRANSFORM = (
    "How coarse and fine are told apart: dct (the paper's for FLUX), fft (the paper's for Qwen-Image), or none: "
    "everything is forecast alike with high_order, which is a little faster."
)
CUTOFF = (
    "Where coarse ends, as a share of the finest detail. Higher: more is held and less forecast, which is steadier and "
    "less sharp. The paper uses 0.1; 0.05 to 0.3 are usable."
)
LOW_ORDER = (
    "How coarse structure is forecast: 0 holds it (the paper's), 1 follows its slope, 2 its curve. Higher: bolder."
)
HIGH_ORDER = "How detail is forecast: 0 holds it, 1 follows its slope, 2 its curve (the paper's). Higher: bolder."
PREDICTOR = (
    "What forecasts: hermite (the paper's, by step), newton (exact curve through the last computed steps, by noise "
    "level), taylor (TaylorSeer's, by step), linear (slope only, by noise level). Boldest at long intervals: newton."
)
SCHEDULE = (
    "interval: the fixed schedule above. adaptive: SpectralCache's rule decides when to compute, with the settings "
    "below; interval then does not count."
)
FEATURE = (
    "What is forecast: absolute, the transformer's result itself (the paper's), or residual, what it adds to its "
    "input. Residual follows the picture's own noise, which suits holding; with forecasts the two are alike."
)
ROLL_OFF = "Softens the border between coarse and fine. 0 is the paper's hard border; 0.5 avoids ringing."
DAMPING = (
    "Only for the predictor linear: how much of the slope is followed. Lower: more cautious; 0 holds, 0.5 is safe."
)
REFERENCE = (
    "Use the released code's arithmetic of differences, for comparison with the paper. Off measures differences at the "
    "spacing the steps really have."
)


def _inputs() -> list[io.Input]:
    start, end = (widget for widget in ADVANCED_WIDGETS if widget[0].endswith("percent"))
    adaptive = [widget for widget in ADVANCED_WIDGETS if not widget[0].endswith("percent")]
    return [
        io.Model.Input("model", tooltip="The model to speed up: any diffusion model; FLUX.1 gains most."),
        io.Int.Input("interval", default=4, min=1, max=100, tooltip=INTERVAL),
        io.Int.Input("warmup_steps", default=3, min=1, max=100, tooltip=WARMUP),
        io.Int.Input("last_steps", default=1, min=1, max=100, tooltip=LAST),
        io.Combo.Input("transform", options=list(CHOICES["transform"]), default="dct", tooltip=TRANSFORM),
        io.Float.Input("cutoff", default=0.1, min=0.001, max=1.0, step=0.01, tooltip=CUTOFF),
        io.Int.Input("low_order", default=0, min=0, max=2, tooltip=LOW_ORDER),
        io.Int.Input("high_order", default=2, min=0, max=2, tooltip=HIGH_ORDER),
        io.Combo.Input("predictor", options=list(CHOICES["predictor"]), default="hermite", tooltip=PREDICTOR),
        _number(start, optional=False),
        _number(end, optional=False),
        _choice("schedule", "interval", SCHEDULE),
        _choice("feature", "absolute", FEATURE),
        _number(("roll_off", 0.0, 0.0, 1.0, ROLL_OFF)),
        _number(("damping", 1.0, 0.0, 1.0, DAMPING)),
        io.Boolean.Input("reference", default=False, optional=True, tooltip=REFERENCE, extra_dict=dict(ADVANCED)),
        _number(("threshold", 0.6, 0.0, 10.0, _for_adaptive(THRESHOLD))),
        io.Int.Input(
            "max_consecutive",
            default=2,
            min=0,
            max=1000,
            optional=True,
            tooltip=_for_adaptive(MAX_CONSECUTIVE),
            extra_dict=dict(ADVANCED),
        ),
        *(_number((name, d, low, high, _for_adaptive(tip))) for name, d, low, high, tip in adaptive),
    ]


def _for_adaptive(tooltip: str) -> str:
    return f"Only for the schedule adaptive. {tooltip}"


def _number(widget: tuple[str, float, float, float, str], *, optional: bool = True) -> io.Input:
    name, default, low, high, tooltip = widget
    options: dict[str, Any] = {"optional": optional, "extra_dict": dict(ADVANCED)}
    return io.Float.Input(name, default=default, min=low, max=high, step=0.01, tooltip=tooltip, **options)


def _choice(name: str, default: str, tooltip: str) -> io.Input:
    options: dict[str, Any] = {"optional": True, "extra_dict": dict(ADVANCED)}
    return io.Combo.Input(name, options=list(CHOICES[name]), default=default, tooltip=tooltip, **options)
