"""Cache Stats: what the cache did in a run, in words, as a picture and as JSON. It never raises: that would cost the
picture.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from comfy_api.latest import io, ui

from ..cache_core import trace as traces
from . import host
from .schema import schema
from .timeline import timeline

NO_RUN = (
    "No run to show. Connect `after` to the output of the sampler that uses this model (LATENT), so that this node "
    "runs behind it; if that sampler ran long ago, queue it again."
)
NO_PATCH = (
    "The model at this node carries no cache: put SpectralCache Apply between the loader and the sampler, and connect "
    "its output here too."
)


class SpectralCacheStats(io.ComfyNode):
    """Output node: shows the newest run of the sampler that `after` comes from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheStats",
            display_name="Cache Stats",
            description="Shows what the cache skipped in the last run, why the rest was computed, and what it gained.",
            search_aliases=["cache report", "cache statistics", "skipped steps", "timeline", "缓存统计"],
            inputs=[
                io.Model.Input("model", tooltip="The model from the Apply node (the same one that the sampler uses)."),
                io.AnyType.Input(
                    "after",
                    tooltip="The sampler's output. It makes this node run last, and tells it whose run to show.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The run in words, with a table of all evaluations."),
                io.Image.Output(
                    display_name="timeline", tooltip="Computed and skipped steps, and the scores against their limits."
                ),
                io.Float.Output(
                    display_name="speedup",
                    tooltip="Measured speed-up of the sampling steps; 1.0 where there is no run.",
                ),
                io.String.Output(display_name="trace", tooltip="Everything as JSON, version 1."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, after: Any) -> io.NodeOutput:
        try:
            if host.attachment_of(model) is None:  # bypassed or never there: an earlier run is not this model's
                return _output(cls, None, NO_PATCH)
            newest = _find(cls.hidden.dynprompt, cls.hidden.unique_id)
            if newest is None:
                return _output(cls, None, NO_RUN)
            trace = traces.together(host.RUNS.beside(newest) or [newest])
            return _output(cls, trace, traces.report(trace), newest)
        except Exception as error:
            logging.getLogger("SpectralCache").warning("Cache Stats could not show the run.", exc_info=True)
            return _output(cls, None, f"Cache Stats could not show the run ({type(error).__name__}: {error}).")


def _output(
    cls: type[io.ComfyNode], trace: traces.Trace | None, report: str, drawn: traces.Trace | None = None
) -> io.NodeOutput:
    """All runs in words and as JSON; the picture is of one."""
    shown = trace or traces.empty()
    picture = timeline(drawn)
    text = json.dumps(shown, allow_nan=False)
    preview = ui.PreviewImage(picture, cls=cls).as_dict()
    return io.NodeOutput(
        report, picture, traces.measured_speedup(shown), text, ui={**preview, "text": [report], "trace": [text]}
    )


def _find(prompt: Any, node: str) -> traces.Trace | None:
    """The newest run whose sampling node is among the ancestors of this node's `after`: of the same item of a list, if
    that has run.
    """
    ancestors, item = _ancestors(prompt, node), host.item()
    found: list[traces.Trace] = []

    def wanted(trace: traces.Trace) -> bool:
        if not _belongs(prompt, trace["run"]["node"], ancestors):
            return False
        found.append(trace)
        return bool(trace["run"].get("item", 0) == item)

    return host.RUNS.newest(wanted) or (found[0] if found else None)


def _belongs(prompt: Any, node: str | None, ancestors: set[str]) -> bool:
    """Whether a sampling node, or the node that expanded into it, is among the ancestors."""
    while node is not None and node not in ancestors:
        node = prompt.get_parent_node_id(node) if prompt.has_node(node) else None
    return node is not None


def _ancestors(prompt: Any, node: str) -> set[str]:
    """Every node that `after` depends on, found by walking up the links of the prompt as it is being executed."""
    found: set[str] = set()
    links = [prompt.get_node(node)["inputs"].get("after")]
    while links:
        link = links.pop()
        if not isinstance(link, list) or len(link) != 2 or str(link[0]) in found or not prompt.has_node(link[0]):
            continue
        found.add(str(link[0]))
        links += prompt.get_node(link[0])["inputs"].values()
    return found
