"""Live view on the page while a run is sampled: every evaluation, and the figures of the run so far (`web/live.js`).

Sent as JSON to the page that queued the prompt and to nobody else: a client of the API, which never said that it is a
page, gets nothing of ours among its pictures. Without a page nothing is sent and nothing is put together. Only figures
that are on the host already, so no device is waited for. It may never cost a run: whatever goes wrong here goes wrong
in silence.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..cache_core.trace import PARTIAL, SKIPPED, Record, Recorder, State, Trace, estimated_error, measured_speedup

Message = dict[str, Any]
Send = Callable[[Message], None]

EVENT = "spectralcache.run"
INTERVAL = 0.25
"""Seconds between two messages. The last one waits for nothing, which makes five a second at most."""
ALL_AGAIN = 1000
"""The last message of a run holds every evaluation again, for a page that came late, up to so many."""
PAGE_ABILITIES = ("supports_progress_text_metadata", "supports_manager_v4_ui", "supports_v4")
"""What only ComfyUI's own page says of itself when it connects; a client that wants pictures does not."""


@dataclass(slots=True)
class Live:
    """What the page is told of one run. `send` is None where there is no page."""

    recorder: Recorder
    send: Send | None
    clock: Callable[[], float] = time.monotonic
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    sent: int = 0
    sent_at: float = -math.inf

    def step(self) -> None:
        """An evaluation has ended."""
        with contextlib.suppress(Exception):
            if self.send is not None and self.clock() - self.sent_at >= INTERVAL:
                self._tell(progress(self.recorder), self.sent)

    def end(self, state: State, trace: Trace | None) -> None:
        """The run has ended; `trace` is None where it could not be written."""
        with contextlib.suppress(Exception):
            if self.send is not None:
                again = len(self.recorder.records) <= ALL_AGAIN
                self._tell(outcome(self.recorder, state, trace), 0 if again else self.sent)

    def _tell(self, figures: Message, first: int) -> None:
        records = self.recorder.records
        self.sent, self.sent_at = len(records), self.clock()
        new = [evaluation(record) for record in records[first:]]
        if self.send is not None:
            self.send({"run": self.name, **figures, "first": first, "evaluations": new})


# what is told ---------------------------------------------------------------------------------------------------------


def evaluation(record: Record) -> list[Any]:
    """One evaluation: action, step, stage, sigma, reason, and each score with its limit. `web/run.js` reads this."""
    names = dict.fromkeys((*record.scores, *record.limits))
    scores = {name: [_short(record.scores.get(name)), _short(record.limits.get(name))] for name in names}
    return [record.action, record.step, record.stage, _short(record.sigma), record.reason, scores]


def progress(recorder: Recorder) -> Message:
    """The run so far; `faster` is by evaluations, how many more there are than the work done."""
    work = sum(record.work for record in recorder.records)
    return _figures(recorder, "sampling", len(recorder.records) / work if work else 1.0)


def outcome(recorder: Recorder, state: State, trace: Trace | None) -> Message:
    """The run as it ended; `faster` is measured where it could be."""
    figures = progress(recorder)
    if trace is not None:
        figures["faster"] = _short(measured_speedup(trace))
    return {**figures, "state": "stood down" if recorder.stood_down and state == "done" else state}


def _figures(recorder: Recorder, state: str, faster: float) -> Message:
    count = Counter(record.action for record in recorder.records)
    return {
        "method": recorder.method,
        "state": state,
        "steps": recorder.steps,
        "done": len(recorder.records),
        SKIPPED: count[SKIPPED],
        PARTIAL: count[PARTIAL],
        "faster": _short(faster),
        "estimate": _short(estimated_error(record.json() for record in recorder.records)),
        "notes": list(recorder.notes),
    }


def _short(value: float | None) -> float | None:
    """Four figures; None for what JSON has no number for."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


# the page -------------------------------------------------------------------------------------------------------------


def page(node_id: str | None) -> Send | None:
    """What tells the page that queued the running prompt of a node; None without node, server or page."""
    with contextlib.suppress(Exception):
        server = sys.modules["server"].PromptServer.instance  # never loaded here: a host without it has no page
        client = server.client_id
        if node_id is not None and client is not None and _is_page(server, client):
            place = {"node": _on_screen(node_id), "workflow": _workflow(server)}
            return lambda message: server.send_sync(EVENT, {**place, **message}, client)
    return None


def _is_page(server: Any, client: str) -> bool:
    """Whether the client that queued the prompt is ComfyUI's page, by what it said when it connected."""
    said = server.sockets_metadata[client]["feature_flags"]
    return any(said.get(ability) for ability in PAGE_ABILITIES)


def _on_screen(node_id: str) -> Any:
    """The node that users see: the one that expanded into this one, where it was made while the prompt runs."""
    from comfy_execution.progress import get_progress_state

    return get_progress_state().dynprompt.get_display_node_id(node_id)


def _workflow(server: Any) -> str | None:
    """Which graph is being run, since another one with the same node numbers may be in view; None if it has no id."""
    with contextlib.suppress(Exception):
        running, _ = server.prompt_queue.get_current_queue_volatile()
        found = running[0][3]["extra_pnginfo"]["workflow"]["id"]
        return str(found) if found else None
    return None
