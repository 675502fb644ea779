"""The live view on the Apply nodes: what a page gets over its websocket, and what nobody gets."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import uuid
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import torch

STEPS = 10
TEXT = 3  # the type of the host's binary message
EVENT = "spectralcache.run"
ABILITIES = {"supports_preview_metadata": True, "supports_manager_v4_ui": True}
"""What ComfyUI's page says of itself when it connects."""

Told = list[dict[str, Any]]
"""Each message, in order; binary text frames as {"binary": True}."""


def listen(
    server: Any,
    graph: dict[str, Any],
    owner: bool = True,
    interrupt_at: int | None = None,
    abilities: dict[str, bool] = ABILITIES,
) -> tuple[Told, Told, str]:
    """Queue a graph while two clients listen: what its own got, what the other one got, and how it ended.

    owner: whether the prompt names its client. interrupt_at: the number of messages after which it is interrupted.
    abilities: what the clients say of themselves; a page says what it can do, a client of the API mostly nothing.
    """

    async def client(session: aiohttp.ClientSession, name: str) -> aiohttp.ClientWebSocketResponse:
        messages = await session.ws_connect(f"{server.url}/ws?clientId={name}", max_msg_size=0)
        if abilities:
            await messages.send_json({"type": "feature_flags", "data": abilities})
        await messages.receive()  # the host's greeting: from here on it knows this client
        return messages

    async def take(messages: aiohttp.ClientWebSocketResponse, told: Told) -> None:
        async for message in messages:
            if message.type is aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4]) == (TEXT,):
                told.append({"binary": True})
            elif message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == EVENT:
                told.append(json.loads(message.data)["data"])
                if len(told) == interrupt_at:
                    await asyncio.to_thread(server.interrupt)

    async def run() -> tuple[Told, Told, str]:
        clients, told = [uuid.uuid4().hex for _ in range(2)], ([], [])
        async with aiohttp.ClientSession() as session:
            sockets = [await client(session, name) for name in clients]
            tasks = [asyncio.create_task(take(*both)) for both in zip(sockets, told, strict=True)]
            extra = {"extra_pnginfo": {"workflow": {"id": "the workflow"}}}
            body = {"prompt": graph, "extra_data": extra, **({"client_id": clients[0]} if owner else {})}
            prompt = json.loads(await asyncio.to_thread(server._request, "/prompt", body))["prompt_id"]
            while prompt not in json.loads(await asyncio.to_thread(server._request, f"/history/{prompt}")):
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)  # the last messages were sent before the history was written
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return *told, server.history(prompt)["status"]["messages"][-1][0]

    return asyncio.run(asyncio.wait_for(run(), 300))


def graph_of(graphs: Any, seed: int, apply: str = "apply", settings: Any = None, **changes: Any) -> dict[str, Any]:
    picture = graphs.Picture(
        **{"prompt": "a large fox on blue", "steps": STEPS, "width": 96, "height": 96, "seed": seed, **changes}
    )
    text = json.dumps(graphs.cached(picture, settings or {"threshold": 2.0}))
    return json.loads(text.replace('"apply"', json.dumps(apply)))


@pytest.mark.claim("Live view", "the page that queued the prompt gets it, for the Apply node; no other page does")
@pytest.mark.parametrize("apply", ["4", "7:4"], ids=["in the graph", "in a subgraph"])
def test_the_submitting_page_alone_gets_it(server: Any, graphs: Any, apply: str) -> None:
    mine, other, state = listen(server, graph_of(graphs, 901, apply))
    assert state == "execution_success"
    assert {(told["node"], told["workflow"]) for told in mine} == {(apply, "the workflow")}
    assert (mine[0]["done"], mine[0]["state"], mine[0]["steps"]) == (1, "sampling", STEPS)
    assert (mine[-1]["done"], mine[-1]["state"], mine[-1]["first"]) == (STEPS, "done", 0)
    actions = [evaluation[0] for evaluation in mine[-1]["evaluations"]]
    assert len(actions) == STEPS and actions.count("skipped") == mine[-1]["skipped"] > 2
    assert other == []


@pytest.mark.claim("Live view", "a prompt without a page: nothing is sent")
def test_without_a_page_nothing_is_sent(server: Any, graphs: Any) -> None:
    mine, other, state = listen(server, graph_of(graphs, 902), owner=False)
    assert state == "execution_success"
    assert mine == other == []


@pytest.mark.claim("Live view", "a client of the API that keeps binary frames for pictures gets pictures only")
@pytest.mark.parametrize("abilities", [{}, {"supports_preview_metadata": True}], ids=["silent", "wants previews"])
def test_a_client_of_the_api_gets_nothing(server: Any, graphs: Any, abilities: dict[str, bool]) -> None:
    mine, other, state = listen(server, graph_of(graphs, 906), abilities=abilities)
    assert state == "execution_success"
    assert mine == other == []


@pytest.mark.claim("Live view", "an interrupted run says so last")
def test_an_interrupted_run_says_so_last(server: Any, graphs: Any) -> None:
    mine, other, state = listen(server, graph_of(graphs, 903, steps=400, width=192, height=192), interrupt_at=3)
    assert state == "execution_interrupted"
    assert mine[-1]["state"] == "interrupted"
    assert {told["state"] for told in mine[:-1]} == {"sampling"}
    assert other == []


@pytest.mark.claim("Live view", "two samplers on one Apply node: two runs, each from its first evaluation on")
def test_two_samplers_on_one_node(server: Any, graphs: Any) -> None:
    graph = graph_of(graphs, 904)
    second = json.loads(json.dumps(graph["sampler"]))
    second["inputs"] |= {"latent_image": graphs.link("sampler"), "steps": 6, "denoise": 0.6, "seed": 905}
    graph["second"] = second
    graph["decode"]["inputs"]["samples"] = graph["stats"]["inputs"]["after"] = graphs.link("second")
    mine, _, _ = listen(server, graph)
    names = list(dict.fromkeys(told["run"] for told in mine))
    assert len(names) == 2
    for name, steps in zip(names, (STEPS, 6), strict=True):
        run = [told for told in mine if told["run"] == name]
        assert (run[0]["first"], run[0]["done"]) == (0, 1)
        assert (run[-1]["done"], run[-1]["state"]) == (steps, "done")


# in this process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(host: Any, monkeypatch: pytest.MonkeyPatch) -> Told:
    """What a page would be told, with every evaluation far enough from the one before."""
    told: Told = []
    monkeypatch.setattr(host.host, "page", lambda node: told.append if node == "4" else None)
    monkeypatch.setattr(sys.modules[host.host.Live.__module__], "INTERVAL", 0.0)
    return told


def attached(host: Any, **params: Any) -> Any:
    return host.host.attach(host.model, host.spectralcache(**params), "4")


def test_every_evaluation_and_the_figure_of_the_report(host: Any, said: Told) -> None:
    host.sample(attached(host, threshold=2.0), steps=STEPS)
    trace = host.trace()
    assert len(said) == STEPS + 1 and trace["skipped"] > 2
    assert said[STEPS - 1]["skipped"] == said[-1]["skipped"] == trace["skipped"]
    assert said[STEPS - 1]["faster"] == pytest.approx(trace["speedup"]["evaluations"], rel=1e-3)
    assert said[-1]["faster"] == pytest.approx(trace["speedup"]["wall"], rel=1e-3)
    told = [(action, step, reason) for action, step, _, _, reason, _ in said[-1]["evaluations"]]
    assert told == [(e["action"], e["step"], e["reason"]) for e in trace["evaluations"]]


@pytest.mark.claim("Live view", "a run in which nothing was skipped says why")
@pytest.mark.parametrize(
    ("params", "steps", "state", "reason"),
    [
        ({"threshold": 0.0}, STEPS, "done", "off"),
        ({"threshold": 1e-6}, STEPS, "done", "threshold"),
        ({"threshold": 2.0}, 3, "stood down", "stood down"),
    ],
)
def test_nothing_skipped_says_why(
    host: Any, said: Told, params: dict[str, float], steps: int, state: str, reason: str
) -> None:
    host.sample(attached(host, **params), steps=steps)
    assert host.trace()["skipped"] == 0
    assert (said[-1]["state"], said[-1]["skipped"]) == (state, 0)
    assert reason in {evaluation[4] for evaluation in said[-1]["evaluations"]}
    if state == "stood down":
        assert said[-1]["notes"][-1].startswith("3 steps leave nothing safe to skip")


def test_an_error_in_the_sampler_is_told_last(host: Any, said: Told) -> None:
    def fail(*_: Any) -> None:
        if len(said) == 4:
            raise RuntimeError("injected")

    handle = host.diffusion_model.img_in.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="injected"):
            host.sample(attached(host, threshold=1e-6), steps=STEPS)
    finally:
        handle.remove()
    assert said[-1]["state"] == "error" and len(said) == 5


@pytest.mark.claim("Live view", "whatever goes wrong with it, the picture and the decisions are the same")
def test_a_page_that_fails_costs_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[torch.Tensor, list[str], str]:
        out = host.sample(attached(host, threshold=1.0), steps=STEPS)
        return out, [e["action"] for e in host.trace()["evaluations"]], host.trace()["state"]

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    quiet, calls = run(), []
    monkeypatch.setattr(host.host, "page", lambda node: lambda message: (calls.append(message), fail()))
    loud = run()
    assert calls and torch.equal(loud[0], quiet[0]) and loud[1:] == quiet[1:]


@pytest.mark.claim("Live view", "a node made by another while the prompt runs: under the one that users see")
def test_a_node_that_was_expanded_is_shown_at_its_origin(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import reset_progress_state

    sent: list[tuple[Any, ...]] = []
    known = {"client_id": "me", "sockets_metadata": {"me": {"feature_flags": ABILITIES}}}
    page = type("Server", (), {**known, "send_sync": lambda _, *message: sent.append(message)})()
    module = ModuleType("server")
    module.PromptServer = type("PromptServer", (), {"instance": page})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", module)
    prompt = DynamicPrompt({"4": {"class_type": "SpectralCacheApply", "inputs": {}}})
    prompt.add_ephemeral_node("4.0.0.2", {"class_type": "SpectralCacheApply", "inputs": {}}, "4", "4")
    reset_progress_state("prompt", prompt)
    for node in ("4.0.0.2", "4"):
        host.host.page(node)({"done": 1})
    assert sent == [(EVENT, {"node": "4", "workflow": None, "done": 1}, "me")] * 2
    reset_progress_state("", DynamicPrompt({}))
