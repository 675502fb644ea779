"""What SpectralCache Auto is going to do, for the page to say before the run: GET /spectralcache/plan.

The page sends the node's widgets and the number of steps of the graph's sampler; the answer comes from the method
itself, so that page and run cannot disagree. Nothing is kept. Without a server (a script, a test) there is no route.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from ..cache_core.gates import Budget
from ..cache_core.methods.auto import auto
from ..cache_core.types import CacheError
from .obstacles import MIN_STEPS

ADDRESS = "/spectralcache/plan"
MOST_STEPS = 100_000


def planned(total: int, params: Mapping[str, Any]) -> int:
    """How many of a run's `total` steps are computed, unless something changes on the way or exceeds the tolerance."""
    if not 1 <= total <= MOST_STEPS:
        raise CacheError(f"steps is {total}; use a number from 1 to {MOST_STEPS}")
    gate = auto(**params).rules[0].gate
    return gate.steps(total) if isinstance(gate, Budget) and total >= MIN_STEPS else total


def parameters(query: Mapping[str, str]) -> dict[str, Any]:
    """Auto's parameters as an address carries them, all text."""
    given = {name: value for name, value in query.items() if name != "steps"}
    defaults = auto.defaults
    return {name: _as(defaults.get(name, 0.0), value) for name, value in given.items()}


def _as(default: object, value: str) -> Any:
    """A value of the default's kind."""
    return value if isinstance(default, str) else int(float(value)) if isinstance(default, int) else float(value)


def add_route() -> None:
    """Once, when the pack is loaded. Whatever goes wrong costs the line on the node and nothing else."""
    try:
        server = sys.modules["server"].PromptServer.instance
        from aiohttp import web

        async def answer(request: Any) -> Any:
            try:
                query = request.rel_url.query
                return web.json_response({"computed": planned(int(query["steps"]), parameters(query))})
            except (CacheError, TypeError, ValueError, KeyError) as error:
                return web.json_response({"error": str(error)}, status=400)

        server.routes.get(ADDRESS)(answer)
    except Exception:
        logging.getLogger("SpectralCache").debug("No route for the page's plan.", exc_info=True)
