"""Cache Compare: a picture with the cache against the same one without. The maths is in `cache_core/comparison.py`."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..cache_core import comparison
from ..cache_core.types import CacheError
from .schema import schema

NAME = "Cache Compare"


class SpectralCacheCompare(io.ComfyNode):
    """Output node: figures, heat map, and a slider on the page (`web/compare.js`)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheCompare",
            display_name=NAME,
            description=(
                "Shows what a cache changed in the picture: a slider to look with your own eyes, the usual figures, "
                "and a map of where. Render the same prompt and seed twice, once without the Apply node and once with "
                "it."
            ),
            search_aliases=[
                *(
                    "cache compare",
                    "compare images",
                    "before after",
                    "difference",
                    "slider",
                    "psnr",
                    "ssim",
                    "heat map",
                ),
                *("对比", "比较", "比較"),
            ],
            inputs=[
                io.Image.Input("full", tooltip="The picture without a cache: every step computed, same seed."),
                io.Image.Input(
                    "cached",
                    tooltip="The picture with the cache. One picture, or as many as in full, and of the same size.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="PSNR (dB, higher is closer), SSIM (1 is equal), the largest difference and where it is.",
                ),
                io.Image.Output(
                    display_name="difference",
                    tooltip="Heat map: black where both are equal, white where they differ most.",
                ),
                io.Image.Output(
                    display_name="side_by_side", tooltip="Both pictures in one: full at the left, cached at the right."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, full: Any, cached: Any) -> io.NodeOutput:
        try:
            full, cached = comparison.pair(full, cached)
        except CacheError as error:
            raise CacheError(f"{NAME}: {error}.") from None
        report = comparison.report(comparison.differences(full, cached), comparison.gain(full, cached))
        heat = comparison.heat_map(full, cached)
        shown = {"full": _saved(cls, full), "cached": _saved(cls, cached), "difference": _saved(cls, heat)}
        return io.NodeOutput(report, heat, comparison.side_by_side(full, cached), ui={**shown, "report": [report]})


def _saved(cls: type[io.ComfyNode], pictures: Any) -> list[Any]:
    """Written into the host's folder for previews. Not sent as `images`: the page would draw these by itself."""
    return ui.PreviewImage(pictures, cls=cls).as_dict()["images"]
