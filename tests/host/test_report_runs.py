"""Public reports 10 and 11: runs in pieces, many runs of one node, and what the user is told of them.

Nodes run in the executor; here its context is set by hand, as the executor sets it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

STEPS = 20


@contextlib.contextmanager
def executing(prompt: str, node: str, index: int = 0) -> Iterator[None]:
    """As the executor does around a node's function, once an item of a list."""
    from comfy_execution.utils import CurrentNodeContext

    with CurrentNodeContext(prompt, node, index):
        yield


def pieces(host: Any, model: Any, cuts: list[int], sampler: str = "euler", cfg: float = 1.0) -> torch.Tensor:
    """One schedule, sampled piece by piece on what the last one left, as SplitSigmas and step loops do."""
    foreign = host.foreign
    sigmas = foreign.simple(host, model, STEPS)
    latent = torch.zeros(1, 16, 12, 16)
    noise = host.comfy.sample.prepare_noise(latent, 0)
    kind = host.comfy.samplers.sampler_object(sampler)
    for first, last in itertools.pairwise([0, *cuts, STEPS]):
        part = sigmas[first : last + 1]
        latent = foreign.run(host, model, kind, part, cfg=cfg, latent=latent, noise=noise)
        noise = torch.zeros_like(noise)
    return latent


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (r for r in caplog.records if r.name == "SpectralCache" and r.levelname == "WARNING")
    return [record.getMessage() for record in ours]


def traces(host: Any, prompt: str) -> list[dict[str, Any]]:
    """All runs of a prompt that the RunBook still knows, the newest first."""
    found: list[dict[str, Any]] = []

    def look(trace: dict[str, Any]) -> bool:
        if trace["run"]["prompt"] == prompt:
            found.append(trace)
        return False

    host.host.RUNS.newest(look)
    return found


# 10: short pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Apply", "Auto"])
def test_report_10_short_pieces_warn_once(host: Any, caplog: pytest.LogCaptureFixture, method: str) -> None:
    """Twenty runs of one step are one node: at most one warning a prompt, and no "1 steps"."""
    model = host.foreign.attached(host, method)
    with executing("ten", "5"):
        pieces(host, model, list(range(1, STEPS)))
    told = warnings(caplog)
    assert len(told) <= 1, told
    assert not any("1 steps" in sentence for sentence in told)
    caplog.clear()
    with executing("another prompt", "5"):
        pieces(host, model, [1, 2, 3])
    assert len(warnings(caplog)) <= 1


@pytest.mark.parametrize("steps", [1, 2])
def test_report_10_singular(host: Any, steps: int) -> None:
    sigmas = torch.linspace(1, 0, steps + 1)
    host.foreign.run(host, host.foreign.attached(host, "Auto"), host.comfy.samplers.sampler_object("euler"), sigmas)
    note = host.trace()["notes"][0]
    assert ("1 step " in note) if steps == 1 else ("2 steps" in note)


@pytest.mark.parametrize("cuts", [[3, 6], [10], list(range(1, STEPS))], ids=["3+3+14", "10+10", "1 x 20"])
def test_report_10_pieces_in_one_node_go_on_with_their_history(host: Any, cuts: list[int]) -> None:
    """A run that starts where the last one of the same node execution stopped is its continuation.

    As near to the same pieces computed in full as one run is to its own full run, and about as much is skipped. (A
    first piece that is long enough to be cached keeps its own budget: it cannot know that more will follow.)
    """
    foreign = host.foreign
    auto = foreign.attached(host, "Auto")
    full = pieces(host, host.model, cuts)
    alone = foreign.error(pieces(host, auto, cuts), full)  # outside the executor
    with executing(f"whole {cuts}", "5"):
        once = foreign.error(pieces(host, auto, []), full)
    with executing(f"cut {cuts}", "5"):
        out = pieces(host, auto, cuts)
    found = traces(host, f"cut {cuts}")
    assert sum(len(t["evaluations"]) for t in found) == STEPS
    assert sum(t["computed"] for t in found) <= STEPS // 2 + 2
    assert all(e["step"] < t["steps"] for t in found for e in t["evaluations"])
    assert foreign.error(out, full) < (1.1 * alone if cuts == [10] else 2 * once + 0.02)


def test_report_10_nothing_is_held_behind_a_prompt(host: Any) -> None:
    """An unfinished run waits in the context of its prompt's task, and goes with it."""
    import asyncio

    def held() -> list[Any]:
        return [s for s in gc.get_objects() if type(s) is host.core.Session and s.bytes()]

    async def prompt() -> None:
        with executing("left", "5"):
            latent = torch.zeros(1, 16, 4, 4)
            sigmas = host.foreign.simple(host, host.model, STEPS)[:8]
            sampler = host.comfy.samplers.sampler_object("euler")
            host.foreign.run(host, host.foreign.attached(host, "Auto"), sampler, sigmas, latent=latent)
        assert held()

    asyncio.run(prompt())
    gc.collect()
    assert not held()


@pytest.mark.parametrize("method", ["Apply", "FreqCa", "Auto"])
def test_report_10_across_nodes_each_run_stands_alone(host: Any, method: str) -> None:
    """A first sampler that ComfyUI has cached would leave no history: the second's picture must not depend on it."""
    foreign = host.foreign
    sigmas = foreign.simple(host, host.model, STEPS)
    kind = host.comfy.samplers.sampler_object("euler")
    model, noise = foreign.attached(host, method), torch.zeros(1, 16, 12, 16)
    with executing("both", "1"):
        latent = foreign.run(host, model, kind, sigmas[:11])
    with executing("both", "2"):
        after = foreign.run(host, model, kind, sigmas[10:], latent=latent, noise=noise)
    with executing("second only", "2"):
        alone = foreign.run(host, model, kind, sigmas[10:], latent=latent, noise=noise)
    assert torch.equal(after, alone)


@pytest.mark.parametrize("change", ["sigma", "shape", "prompt"])
def test_report_10_another_picture_in_the_same_node_starts_anew(host: Any, change: str) -> None:
    """Tiles of an upscaler follow each other in one node: only a run that goes on where the last stopped goes on."""
    foreign = host.foreign
    kind = host.comfy.samplers.sampler_object("euler")
    auto = foreign.attached(host, "Auto")
    sigmas = foreign.simple(host, host.model, STEPS)
    first, second = sigmas[:11], sigmas[9:] if change == "sigma" else sigmas[10:]
    size = (10, 10) if change == "shape" else (12, 16)
    latent = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(1))
    noise = torch.zeros_like(latent)
    alone = foreign.run(host, auto, kind, second, latent=latent, noise=noise)
    with executing(f"tiles {change}", "5"):
        foreign.run(host, auto, kind, first)
        if change == "prompt":
            with executing("another prompt with its own", "5"):
                out = foreign.run(host, auto, kind, second, latent=latent, noise=noise)
        else:
            out = foreign.run(host, auto, kind, second, latent=latent, noise=noise)
    assert torch.equal(out, alone)


# 11: many runs, one report --------------------------------------------------------------------------------------------


class Graph:
    """A prompt with samplers and Cache Stats nodes, whose nodes run as the executor runs them."""

    def __init__(self, host: Any, prompt: str, *, model: Any) -> None:
        from comfy_execution.graph import DynamicPrompt

        self.host, self.prompt, self.model = host, prompt, model
        samplers = {node: {"class_type": "KSampler", "inputs": {}} for node in ("1", "2")}
        shown = {f"stats of {n}": {"class_type": "SpectralCacheStats", "inputs": {"after": [n, 0]}} for n in samplers}
        self.graph = DynamicPrompt({**samplers, **shown})

    def sample(self, node: str, size: tuple[int, int] = (4, 4), index: int = 0, **options: Any) -> None:
        """One sampling run inside a node."""
        with executing(self.prompt, node, index):
            self.host.sample(self.model, size=size, **options)

    def stats(self, node: str, index: int = 0) -> tuple[str, dict[str, Any]]:
        """Report and trace of the Cache Stats node behind a sampler."""
        from comfy_api.latest import io

        name = f"stats of {node}"
        hidden = {io.Hidden.unique_id: name, io.Hidden.dynprompt: self.graph}
        cls = self.host.stats_node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
        with executing(self.prompt, name, index):
            out = cls.execute(self.model, None)
        return out.args[0], json.loads(out.args[3])


def test_report_11_the_first_samplers_run_is_found_whatever_ran_since(host: Any) -> None:
    """A first pass, then forty tiles of a second node, then statistics of the first."""
    graph = Graph(host, "first pass", model=host.foreign.attached(host, "Auto"))
    graph.sample("1", size=(6, 6), steps=12)
    for tile in range(40):
        graph.sample("2", size=(2 + 2 * (tile % 3), 4), steps=6, seed=tile)
    report, trace = graph.stats("1")
    assert (trace["steps"], trace["computed"], trace["skipped"]) == (12, 6, 6), report.splitlines()[0]


def test_report_11_the_runs_of_one_node_are_one_report(host: Any) -> None:
    """Twenty-three tiles of different sizes: the sums are of all of them."""
    graph = Graph(host, "tiles", model=host.foreign.attached(host, "Auto"))
    for tile in range(23):
        graph.sample("2", size=(2 + 2 * (tile % 3), 4), steps=8, seed=tile)
    report, trace = graph.stats("2")
    assert (trace["computed"], trace["skipped"]) == (23 * 4, 23 * 4)
    assert len(trace["evaluations"]) == 23 * 8
    assert "23 runs" in report


def test_report_11_items_of_a_list_are_told_apart(host: Any) -> None:
    """ComfyUI runs a node once an item of a list; so it runs Cache Stats."""
    graph = Graph(host, "list", model=host.foreign.attached(host, "Auto"))
    for index, steps in enumerate((8, 10, 12)):
        graph.sample("1", steps=steps, index=index)
    assert [graph.stats("1", index)[1]["steps"] for index in range(3)] == [8, 10, 12]


def test_report_11_the_book_forgets_the_oldest_runs_of_one_node_not_other_nodes(host: Any) -> None:
    """Bounded a node, not over all: sixty tiles leave the other sampler's run, and not sixty traces."""
    graph = Graph(host, "sixty", model=host.foreign.attached(host, "Auto"))
    graph.sample("1", size=(2, 2), steps=5)
    for tile in range(60):
        graph.sample("2", size=(2, 2), steps=5, seed=tile)
    assert graph.stats("1")[1]["evaluations"]
    assert len(traces(host, "sixty")) < 61
