"""Live text on the Apply node while it samples: "11/28 skipped · 1.6x · est. error 0.8 %".

Sent to the page that queued the prompt and to nobody else; without a page nothing is sent. Only figures that are on the
host already, so no device is waited for. It may never cost a run: whatever goes wrong here goes wrong in silence.
"""

from __future__ import annotations

import contextlib
import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..cache_core.trace import PARTIAL, SKIPPED, Recorder, State, Trace, estimated_error, measured_speedup

Send = Callable[[str], None]

INTERVAL = 0.25
"""Seconds between two texts. The last one waits for nothing, which makes five a second at most."""
LONGEST_REASON = 160
ALWAYS_COMPUTED = ("first step", "last step")


@dataclass(slots=True)
class Live:
    """The text of one run. `send` writes it on the page; None where there is none."""

    recorder: Recorder
    send: Send | None
    clock: Callable[[], float] = time.monotonic
    shown: str = ""
    shown_at: float = -math.inf

    def step(self) -> None:
        """An evaluation has ended."""
        with contextlib.suppress(Exception):
            if self.send is not None and self.clock() - self.shown_at >= INTERVAL:
                self._show(progress(self.recorder))

    def end(self, state: State, trace: Trace | None) -> None:
        """The run has ended; `trace` is None where it could not be written."""
        with contextlib.suppress(Exception):
            if self.send is not None:
                self._show(outcome(self.recorder, state, trace))

    def _show(self, text: str) -> None:
        if self.send is not None and text != self.shown:
            self.shown, self.shown_at = text, self.clock()
            self.send(text)


# the words ------------------------------------------------------------------------------------------------------------


def progress(recorder: Recorder) -> str:
    """The run so far: what was skipped of how many evaluations, and how many more they are than the work done."""
    work = sum(record.work for record in recorder.records)
    return _line(recorder, len(recorder.records) / work if work else 1.0)


def outcome(recorder: Recorder, state: State, trace: Trace | None) -> str:
    """The last text of a run."""
    if state != "done":
        return state
    if trace is None:
        return progress(recorder)
    if recorder.stood_down or trace["skipped"] + trace["partial"]:
        return _line(recorder, measured_speedup(trace))
    reasons = Counter(e["reason"] for e in trace["evaluations"] if e["reason"] not in ALWAYS_COMPUTED)
    return ": ".join(["nothing skipped", *(reason for reason, _ in reasons.most_common(1))])


def _line(recorder: Recorder, faster: float) -> str:
    count = Counter(record.action for record in recorder.records)
    parts = []
    if count[SKIPPED] + count[PARTIAL]:
        in_part = f", {count[PARTIAL]} in part" if count[PARTIAL] else ""
        parts += [f"{count[SKIPPED]}/{len(recorder.records)} skipped{in_part}", f"{faster:.1f}x"]
        error = estimated_error(record.json() for record in recorder.records)
        if error is not None:
            parts.append(f"est. error {100 * error:.1f} %")
    if recorder.stood_down:  # its sentence is the newest: nothing is decided after it
        parts.append(f"stood down: {textwrap.shorten(recorder.notes[-1], LONGEST_REASON, placeholder='…')}")
    return " · ".join(parts) or f"0/{len(recorder.records)} skipped"


# the page -------------------------------------------------------------------------------------------------------------


def page(node_id: str | None) -> Send | None:
    """What writes under a node on the page that queued the running prompt; None without node, server or page."""
    with contextlib.suppress(Exception):
        server = sys.modules["server"].PromptServer.instance  # never loaded here: a host without it has no page
        if node_id is not None and server.client_id is not None:
            return partial(server.send_progress_text, node_id=_on_screen(node_id), sid=server.client_id)
    return None


def _on_screen(node_id: str) -> Any:
    """The node that users see: the one that expanded into this one, where it was made while the prompt runs."""
    from comfy_execution.progress import get_progress_state

    return get_progress_state().dynprompt.get_display_node_id(node_id)
