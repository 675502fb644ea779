"""The live text on the Apply nodes: what a page gets over its websocket, and what nobody gets."""

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

Said = list[tuple[str, str]]
"""(node id, text) of each progress text, in order."""


def listen(
    server: Any, graph: dict[str, Any], owner: bool = True, interrupt_at: int | None = None
) -> tuple[Said, Said, str]:
    """Queue a graph while two pages listen: what its own page got, what the other one got, and how it ended.

    owner: whether the prompt names its page. interrupt_at: the number of texts after which it is interrupted.
    """

    async def page(session: aiohttp.ClientSession, client: str) -> aiohttp.ClientWebSocketResponse:
        messages = await session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0)
        await messages.receive()  # the host's greeting: from here on it knows this page
        return messages

    async def take(messages: aiohttp.ClientWebSocketResponse, said: Said) -> None:
        async for message in messages:
            if message.type is aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4]) == (TEXT,):
                end = 8 + struct.unpack(">I", message.data[4:8])[0]
                said.append((message.data[8:end].decode(), message.data[end:].decode()))
                if len(said) == interrupt_at:
                    await asyncio.to_thread(server.interrupt)

    async def run() -> tuple[Said, Said, str]:
        clients, said = [uuid.uuid4().hex for _ in range(2)], ([], [])
        async with aiohttp.ClientSession() as session:
            pages = [await page(session, client) for client in clients]
            tasks = [asyncio.create_task(take(*both)) for both in zip(pages, said, strict=True)]
            body = {"prompt": graph, **({"client_id": clients[0]} if owner else {})}
            prompt = json.loads(await asyncio.to_thread(server._request, "/prompt", body))["prompt_id"]
            while prompt not in json.loads(await asyncio.to_thread(server._request, f"/history/{prompt}")):
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)  # the last texts were sent before the history was written
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return *said, server.history(prompt)["status"]["messages"][-1][0]

    return asyncio.run(asyncio.wait_for(run(), 300))


def graph_of(graphs: Any, seed: int, apply: str = "apply", settings: Any = None, **changes: Any) -> dict[str, Any]:
    picture = graphs.Picture(
        **{"prompt": "a large red circle on grass", "steps": STEPS, "width": 96, "height": 96, "seed": seed, **changes}
    )
    text = json.dumps(graphs.cached(picture, settings or {"threshold": 2.0}))
    return json.loads(text.replace('"apply"', json.dumps(apply)))


@pytest.mark.claim("Live text", "the page that queued the prompt gets it, under the Apply node; no other page does")
@pytest.mark.parametrize("apply", ["4", "7:4"], ids=["in the graph", "in a subgraph"])
def test_the_submitting_page_alone_gets_it(server: Any, graphs: Any, apply: str) -> None:
    mine, other, state = listen(server, graph_of(graphs, 901, apply))
    assert state == "execution_success"
    assert {node for node, _ in mine} == {apply}
    assert mine[0][1] == "0/1 skipped"
    assert mine[-1][1].split("/")[1].startswith(f"{STEPS} skipped · ")
    assert other == []


@pytest.mark.claim("Live text", "a prompt without a page: nothing is sent")
def test_without_a_page_nothing_is_sent(server: Any, graphs: Any) -> None:
    mine, other, state = listen(server, graph_of(graphs, 902), owner=False)
    assert state == "execution_success"
    assert mine == other == []


@pytest.mark.claim("Live text", 'an interrupted run ends with "interrupted"')
def test_an_interrupted_run_says_so_last(server: Any, graphs: Any) -> None:
    mine, other, state = listen(server, graph_of(graphs, 903, steps=400, width=192, height=192), interrupt_at=3)
    assert state == "execution_interrupted"
    assert mine[-1] == ("apply", "interrupted")
    assert "interrupted" not in [text for _, text in mine[:-1]]
    assert other == []


@pytest.mark.claim("Live text", "two samplers on one Apply node: a text for each run, the last figure stays")
def test_two_samplers_on_one_node(server: Any, graphs: Any) -> None:
    graph = graph_of(graphs, 904)
    second = json.loads(json.dumps(graph["sampler"]))
    second["inputs"] |= {"latent_image": graphs.link("sampler"), "steps": 6, "denoise": 0.6, "seed": 905}
    graph["second"] = second
    graph["decode"]["inputs"]["samples"] = graph["stats"]["inputs"]["after"] = graphs.link("second")
    mine, _, _ = listen(server, graph)
    texts = [text for _, text in mine]
    assert texts.count("0/1 skipped") == 2
    assert any(f"/{STEPS} skipped" in text for text in texts[: texts.index("0/1 skipped", 1)])
    assert "/6 skipped" in texts[-1] or texts[-1].startswith("nothing skipped: ")


# in this process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a page would show, with every evaluation far enough from the one before."""
    texts: list[str] = []
    monkeypatch.setattr(host.host, "page", lambda node: texts.append if node == "4" else None)
    monkeypatch.setattr(sys.modules[host.host.Live.__module__], "INTERVAL", 0.0)
    return texts


def attached(host: Any, **params: Any) -> Any:
    return host.host.attach(host.model, host.spectralcache(**params), "4")


def test_every_evaluation_and_the_figure_of_the_report(host: Any, said: list[str]) -> None:
    host.sample(attached(host, threshold=2.0), steps=STEPS)
    trace = host.trace()
    figure = f"{trace['skipped']}/{STEPS} skipped"
    assert len(said) - STEPS in (0, 1) and trace["skipped"] > 2  # 0: measured as counted, so the last text stands
    assert said[STEPS - 1].startswith(figure) and said[-1].startswith(figure)
    assert said[STEPS - 1].endswith(f" · {trace['speedup']['evaluations']:.1f}x")
    assert said[-1].endswith(f" · {trace['speedup']['wall']:.1f}x")


@pytest.mark.claim("Live text", "a run in which nothing was skipped says why")
@pytest.mark.parametrize(
    ("params", "steps", "words"),
    [
        ({"threshold": 0.0}, STEPS, "nothing skipped: off"),
        ({"threshold": 1e-6}, STEPS, "nothing skipped: "),
        ({"threshold": 2.0}, 3, "stood down: 3 steps leave nothing safe to skip"),
    ],
)
def test_nothing_skipped_says_why(host: Any, said: list[str], params: dict[str, float], steps: int, words: str) -> None:
    host.sample(attached(host, **params), steps=steps)
    assert host.trace()["skipped"] == 0
    assert said[-1].startswith(words) and len(said[-1]) > len("nothing skipped: ")


def test_an_error_in_the_sampler_is_the_last_text(host: Any, said: list[str]) -> None:
    def fail(*_: Any) -> None:
        if len(said) == 4:
            raise RuntimeError("injected")

    handle = host.diffusion_model.img_in.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="injected"):
            host.sample(attached(host, threshold=1e-6), steps=STEPS)
    finally:
        handle.remove()
    assert said[-1] == "error" and len(said) == 5


@pytest.mark.claim("Live text", "whatever goes wrong with it, the picture and the decisions are the same")
def test_a_page_that_fails_costs_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[torch.Tensor, list[str], str]:
        out = host.sample(attached(host, threshold=1.0), steps=STEPS)
        return out, [e["action"] for e in host.trace()["evaluations"]], host.trace()["state"]

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    quiet, calls = run(), []
    monkeypatch.setattr(host.host, "page", lambda node: lambda text: (calls.append(text), fail()))
    loud = run()
    assert calls and torch.equal(loud[0], quiet[0]) and loud[1:] == quiet[1:]


@pytest.mark.claim("Live text", "a node made by another while the prompt runs: under the one that users see")
def test_a_node_that_was_expanded_is_shown_at_its_origin(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import reset_progress_state

    sent: list[tuple[Any, ...]] = []
    page = type("Server", (), {"client_id": "me", "send_progress_text": lambda _, *a, **k: sent.append((*a, k))})()
    module = ModuleType("server")
    module.PromptServer = type("PromptServer", (), {"instance": page})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", module)
    prompt = DynamicPrompt({"4": {"class_type": "SpectralCacheApply", "inputs": {}}})
    prompt.add_ephemeral_node("4.0.0.2", {"class_type": "SpectralCacheApply", "inputs": {}}, "4", "4")
    reset_progress_state("prompt", prompt)
    for node in ("4.0.0.2", "4"):
        host.host.page(node)("hello")
    assert sent == [("hello", {"node_id": "4", "sid": "me"})] * 2
    reset_progress_state("", DynamicPrompt({}))
