"""One prompt behind the other: queued while another runs, and on a ComfyUI that keeps no node's output."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SERVER = Path(__file__).resolve().parents[2] / "bench" / "host" / "server.py"
CACHES = (
    ("SpectralCacheAutoApply", {"quality": "Fast"}),
    ("SpectralCacheApply", {"threshold": 0.4}),
    ("SpectralCacheFreqCaApply", {"interval": 3}),
)

PLAIN = {"prompt": "a photo of rocket", "seed": 41, "cfg": 3.0, "steps": 12, "width": 96, "height": 96}


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ComfyUI of its own, started with --cache-none."""
    spec = importlib.util.spec_from_file_location("spectralcache_tests_server", SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = module.base_directory(tmp_path_factory.mktemp("forgetful"))
    with module.Server(base, arguments=("--cache-none",)) as running:
        yield running


@pytest.fixture
def prompts(graphs: Any) -> list[Any]:
    """Three graphs with the same node ids: an own cache, prompt and seed each."""
    words = ("a large fox on blue", PLAIN["prompt"], "a cloud on sky")
    return [
        graphs.cached(graphs.Picture(**{**PLAIN, "prompt": text, "seed": seed}), settings, apply)
        for seed, (text, (apply, settings)) in enumerate(zip(words, CACHES, strict=True), 40)
    ]


def result(server: Any, entry: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The picture, and the trace without its clock and the name of its run."""
    outputs = entry["outputs"]
    trace = json.loads(outputs["stats"]["trace"][0])
    evaluations = [{**e, "seconds": None} for e in trace["evaluations"]]
    return pixels(server, entry), {**trace, "evaluations": evaluations, "run": None, "speedup": None}


def made_again(entry: dict[str, Any]) -> bool:
    """Whether the host ran every node, instead of taking what it had."""
    told = [data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    return told == [[]]


def pixels(server: Any, entry: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(server.image(entry["outputs"]["save"]["images"][0]))).tobytes()


@pytest.mark.claim("Machines", "--cache-none (no node's output is kept): the same picture and report each time")
def test_where_no_output_is_kept(forgetful: Any, server: Any, graphs: Any, prompts: list[Any]) -> None:
    plain = graphs.uncached(graphs.Picture(**PLAIN))
    before = forgetful.run(plain)
    for prompt in prompts[:2]:
        entries = [forgetful.run(prompt) for _ in range(2)]
        assert all(made_again(entry) for entry in entries)
        first, second = (result(forgetful, entry) for entry in entries)
        assert first == second and first[1]["skipped"] > 0
        assert first == result(server, server.run(prompt))
    after = forgetful.run(plain)
    assert pixels(forgetful, before) == pixels(forgetful, after) != first[0]


@pytest.mark.claim("Machines", "prompts queued while one runs: each gets its own report, and the picture it gets alone")
def test_prompts_queued_while_one_runs(forgetful: Any, prompts: list[Any]) -> None:
    prompts[0]["latent"]["inputs"] |= {"width": 192, "height": 192}  # it still runs when the others come
    alone = [result(forgetful, forgetful.run(prompt)) for prompt in prompts]
    ids = [forgetful.queue(prompt) for prompt in prompts]
    waiting = json.loads(forgetful._request("/queue"))["queue_pending"]
    assert [entry[1] for entry in waiting][-2:] == ids[1:], "queued behind one that runs"
    forgetful.run(prompts[0])  # behind them
    together = [result(forgetful, forgetful.history(name)) for name in ids]
    assert together == alone
    assert len({trace["method"] for _, trace in together}) == len({picture for picture, _ in together}) == len(ids)
