"""Cache Profile: hands on a profile that Cache Calibrate has stored. It never raises for what is in a file: whatever
uses the profile then goes without, and says why.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cache_core.profile import Profile, Refused
from . import shelf
from .calibration_report import report
from .schema import PROFILE, schema

NAME = "Cache Profile"
NONE, NOTHING = "none yet: run Cache Calibrate", "there are no profiles; make one with Cache Calibrate"
DESCRIPTION = (
    "Loads what Cache Calibrate has learned of a model before, so that nothing has to be sampled again. Connect it to "
    "the profile input of an Apply node. A profile of another model is refused, the run goes on without, and Cache "
    "Stats says why."
)


class SpectralCacheProfileLoader(io.ComfyNode):
    """A name in, PROFILE and its report out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpectralCacheProfileLoader",
            display_name=NAME,
            description=DESCRIPTION,
            search_aliases=["profile", "load profile", "calibration", "cache profile", "配置档", "プロファイル"],
            inputs=[
                io.Combo.Input("name", options=shelf.names() or [NONE], tooltip="One of the profiles that Cache "
                               "Calibrate has stored, the newest first. Press R to read the list again."),
            ],
            outputs=[
                io.Custom(PROFILE).Output(display_name="profile", tooltip="For the profile input of SpectralCache "
                                          "Auto, of other Apply nodes, and of Cache Method."),
                io.String.Output(display_name="report", tooltip="What was learned, in words, or why the file cannot be "
                                 "used."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name: Any) -> bool | str:
        """Takes the list's place: a file that has gone since is no error, the run goes on without it."""
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return shelf.stamp(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        found = Refused(name, NOTHING) if name == NONE else shelf.get(name)
        if isinstance(found, Profile):
            return io.NodeOutput(found, report(found))
        return io.NodeOutput(found, f"The profile {found.name} cannot be used: {found.why}.")
