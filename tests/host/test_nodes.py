"""The nodes as users meet them: through the API of a real server."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image

STEPS = 10


def picture(graphs: Any, **changes: Any) -> Any:
    return graphs.Picture(**{"prompt": "a large fox on blue", "steps": STEPS, "width": 96, "height": 96, **changes})


def stats_of(entry: dict[str, Any], node: str = "stats") -> tuple[str, dict[str, Any]]:
    outputs = entry["outputs"][node]
    return outputs["text"][0], json.loads(outputs["trace"][0])


def test_the_contract_of_the_inputs(server: Any) -> None:
    """Ids, defaults and ranges, for ever: workflows depend on them."""
    required = server.object_info("SpectralCacheApply")["input"]["required"]
    assert {name: spec[1]["default"] for name, spec in required.items() if name != "model"} == {
        "threshold": 0.6, "max_consecutive": 2, "tads_min": 0.5, "tads_max": 1.5, "band_split": 0.5, "gamma_low": 0.8,
        "gamma_high": 1.5, "start_percent": 0.0, "end_percent": 1.0,
    }  # fmt: skip
    ranges = {name: (spec[1]["min"], spec[1]["max"]) for name, spec in required.items() if name != "model"}
    assert ranges["threshold"] == ranges["tads_min"] == ranges["tads_max"] == (0, 10)
    assert ranges["max_consecutive"] == ranges["gamma_low"] == ranges["gamma_high"] == (0, 1000)
    assert ranges["band_split"] == (0.01, 0.99) and ranges["start_percent"] == (0, 1)
    freqca = server.object_info("SpectralCacheFreqCaApply")["input"]["required"]
    assert {name: spec[1]["default"] for name, spec in freqca.items() if name != "model"} == {
        "interval": 4, "warmup_steps": 3, "last_steps": 1, "transform": "dct", "cutoff": 0.1, "low_order": 0,
        "high_order": 2, "predictor": "hermite", "start_percent": 0.0, "end_percent": 1.0,
    }  # fmt: skip
    stats = server.object_info("SpectralCacheStats")
    assert list(stats["input"]["required"]) == ["model", "after"]
    assert stats["output"] == ["STRING", "IMAGE", "FLOAT", "STRING"]
    assert stats["output_name"] == ["report", "timeline", "speedup", "trace"]


@pytest.mark.parametrize(
    "node",
    [
        *("SpectralCacheAutoApply", "SpectralCacheApply", "SpectralCacheFreqCaApply", "SpectralCacheFEBApply"),
        "SpectralCacheStats",
    ],
)
def test_every_input_has_help_and_the_node_is_found(server: Any, node: str) -> None:
    info = server.object_info(node)
    groups = [info["input"].get(kind, {}) for kind in ("required", "optional")]
    for name, spec in [pair for group in groups for pair in group.items()]:
        assert len(spec[1].get("tooltip", "")) > 30, name
        if name not in ("model", "after"):
            tooltip = spec[1]["tooltip"]
            says_what = any(word in tooltip.lower() for word in ("higher", "lower", "bold", "same", "soft", "off", ":"))
            assert says_what, f"{name}: no direction in {tooltip!r}"
    words = {"teacache", "first block cache", "wavespeed", "magcache", "easycache", "speed up", "加速", "缓存"}
    assert (words <= set(info["search_aliases"])) == (node != "SpectralCacheStats")  # they want the Apply node first
    assert info["category"] == "SpectralCache" and len(info["description"]) > 60


@pytest.mark.claim(
    "Complaints about caching packs", "settings nobody understands: bad ones are refused with the way out"
)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 11}, ["threshold", "10"]),
        ({"tads_min": 2.0, "tads_max": 1.0}, ["SpectralCache Apply", "tads_min", "2.0", "1.0", "switch TADS off"]),
        ({"tads_min": -1.0}, ["SpectralCache Apply", "tads_min", "-1.0", "from 0 to 10"]),
        ({"start_percent": 0.9, "end_percent": 0.1}, ["SpectralCache Apply", "start_percent", "0.9", "0.1"]),
        ({"max_consecutive": -1}, ["max_consecutive", "0"]),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(
    server: Any, graphs: Any, settings: dict[str, float], words: list[str]
) -> None:
    with pytest.raises(Exception) as refusal:
        server.queue(graphs.cached(picture(graphs), settings))
    text = str(refusal.value)
    assert "refused" in text and all(word in text for word in words), text


def test_a_linked_value_is_checked_when_the_node_runs(server: Any, graphs: Any) -> None:
    graph = graphs.cached(picture(graphs), {"tads_min": 2.0})
    graph["number"] = graphs.node("PrimitiveFloat", value=1.0)
    graph["apply"]["inputs"]["tads_max"] = graphs.link("number")
    with pytest.raises(Exception, match=r"SpectralCache Apply: tads_min 2.0 is above tads_max 1.0"):
        server.run(graph)


def test_a_run_and_its_statistics(server: Any, graphs: Any) -> None:
    entry = server.run(graphs.cached(picture(graphs), {"threshold": 2.0}))
    report, trace = stats_of(entry)
    assert trace["version"] == 1 and trace["method"] == "SpectralCache" and trace["state"] == "done"
    assert trace["run"]["node"] == "sampler" and trace["run"]["prompt"] and trace["run"]["index"] == 0
    assert trace["computed"] + trace["skipped"] + trace["partial"] == len(trace["evaluations"]) == STEPS
    assert trace["skipped"] > 2 and trace["params"]["threshold"] == 2.0
    assert set(trace["evaluations"][0]) == {
        *("step", "stage", "sigma", "lanes", "calls", "action", "skip", "work", "reason"),
        *("scores", "limits", "consecutive", "seconds"),
    }
    assert f"{trace['skipped']} skipped" in report and "FDC decided alone" in report
    timeline = Image.open(io.BytesIO(server.image(entry["outputs"]["stats"]["images"][0])))
    assert timeline.size[0] >= 512
    assert len(timeline.convert("RGB").getcolors(maxcolors=1 << 24) or ()) > 8


def test_the_second_run_is_shown_and_the_first_one_repeats(server: Any, graphs: Any) -> None:
    """Same graph, seed and machine: the same picture and decisions, with other runs between."""

    def run(seed: int) -> tuple[bytes, list[tuple[int, str]]]:
        entry = server.run(graphs.cached(picture(graphs, seed=seed, cfg=3.0), {"threshold": 1.0}))
        _, trace = stats_of(entry)
        return server.image(entry["outputs"]["save"]["images"][0]), [
            (e["step"], e["action"]) for e in trace["evaluations"]
        ]

    first = run(11)
    run(12)
    server.run(graphs.uncached(picture(graphs, seed=13, width=64)))
    server._request("/free", {"unload_models": True, "free_memory": True})
    assert run(11) == first


def test_removed_or_bypassed_the_picture_is_the_original(server: Any, graphs: Any) -> None:
    def pixels(graph: dict[str, Any]) -> bytes:
        return Image.open(io.BytesIO(server.image(server.run(graph)["outputs"]["save"]["images"][0]))).tobytes()

    plain = graphs.uncached(picture(graphs, seed=21))
    before = pixels(plain)
    assert pixels(graphs.cached(picture(graphs, seed=21), {"threshold": 2.0})) != before
    server._request("/free", {"unload_models": False, "free_memory": True})
    assert pixels(plain) == before
    assert pixels(graphs.cached(picture(graphs, seed=21), {"threshold": 0.0})) == before


@pytest.mark.claim("Graphs", "Cache Stats without a run, without our node, behind anything")
def test_statistics_never_raise(server: Any, graphs: Any) -> None:
    """Without a run, with a bare model, behind something that is no sampler: a message, 1.0 and an empty trace."""
    graph = graphs.uncached(picture(graphs, seed=31))
    graph["stats"] = graphs.node("SpectralCacheStats", model=graphs.link("model"), after=graphs.link("latent"))
    graph["preview"] = graphs.node("PreviewAny", source=graphs.link("stats", 2))
    entry = server.run(graph)
    report, trace = stats_of(entry)
    assert entry["status"]["status_str"] == "success" and "save" in entry["outputs"]
    assert "carries no cache" in report
    assert (
        trace["evaluations"] == [] and trace["version"] == 1 and trace["speedup"] == {"evaluations": None, "wall": None}
    )
    assert entry["outputs"]["preview"]["text"] == ["1.0"]

    graph = graphs.cached(picture(graphs, seed=32))
    graph["stats"]["inputs"]["after"] = graphs.link("latent")
    report, trace = stats_of(server.run(graph))
    assert "No run to show" in report and trace["evaluations"] == []


def test_a_bypassed_apply_does_not_show_an_earlier_run(server: Any, graphs: Any) -> None:
    server.run(graphs.cached(picture(graphs, seed=33), {"threshold": 2.0}))
    graph = graphs.uncached(picture(graphs, seed=33))
    graph["stats"] = graphs.node("SpectralCacheStats", model=graphs.link("shift"), after=graphs.link("sampler"))
    report, trace = stats_of(server.run(graph))
    assert "carries no cache" in report and trace["evaluations"] == []


def test_statistics_show_the_sampler_they_hang_on(server: Any, graphs: Any) -> None:
    """Two samplers on one model: each Cache Stats shows its own, also behind the decoder."""
    graph = graphs.cached(picture(graphs, seed=41), {"threshold": 2.0})
    graph["second"] = {**graph["sampler"], "inputs": {**graph["sampler"]["inputs"], "steps": 7, "seed": 5}}
    graph["second decode"] = graphs.node("VAEDecode", samples=graphs.link("second"), vae=graphs.link("vae"))
    graph["second stats"] = graphs.node(
        "SpectralCacheStats", model=graphs.link("apply"), after=graphs.link("second decode")
    )
    entry = server.run(graph)
    assert stats_of(entry)[1]["steps"] == STEPS
    assert stats_of(entry, "second stats")[1]["steps"] == 7


@pytest.mark.claim("Graphs", "KSampler (Advanced) chains with leftover noise")
def test_a_chain_of_advanced_samplers_is_two_runs(server: Any, graphs: Any) -> None:
    """KSamplerAdvanced with leftover noise: each stage begins and ends computed, and Cache Stats shows the last."""
    graph = graphs.cached(picture(graphs, seed=51), {"threshold": 2.0})
    common = {
        key: graph["sampler"]["inputs"][key]
        for key in ("model", "positive", "negative", "cfg", "sampler_name", "scheduler")
    }
    for name, latent, start, end, noise, leftover in (
        ("sampler", "latent", 0, 10, "enable", "enable"),
        ("second", "sampler", 10, 20, "disable", "disable"),
    ):
        graph[name] = graphs.node(
            "KSamplerAdvanced",
            **common,
            latent_image=graphs.link(latent),
            add_noise=noise,
            noise_seed=3,
            steps=20,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise=leftover,
        )
    graph["decode"]["inputs"]["samples"] = graphs.link("second")
    graph["stats"]["inputs"]["after"] = graphs.link("second")
    graph["first stats"] = graphs.node("SpectralCacheStats", model=graphs.link("apply"), after=graphs.link("sampler"))
    entry = server.run(graph)
    for node, sampler in (("stats", "second"), ("first stats", "sampler")):
        trace = stats_of(entry, node)[1]
        assert (trace["steps"], trace["run"]["node"]) == (10, sampler)
        assert [trace["evaluations"][i]["action"] for i in (0, -1)] == ["computed", "computed"]
        assert trace["skipped"] > 2


@pytest.mark.claim("Graphs", "SplitSigmas, SamplerCustomAdvanced, schedules that do not fall")
def test_split_sigmas_and_custom_sampling(server: Any, graphs: Any) -> None:
    graph = graphs.cached(picture(graphs, seed=61), {"threshold": 2.0})
    graph["noise"] = graphs.node("RandomNoise", noise_seed=4)
    graph["guider"] = graphs.node("BasicGuider", model=graphs.link("apply"), conditioning=graphs.link("positive"))
    graph["euler"] = graphs.node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = graphs.node(
        "BasicScheduler", model=graphs.link("apply"), scheduler="simple", steps=20, denoise=1.0
    )
    graph["split"] = graphs.node("SplitSigmas", sigmas=graphs.link("sigmas"), step=8)
    graph["none"] = graphs.node("DisableNoise")
    for name, noise, latent, part in (("sampler", "noise", "latent", 0), ("second", "none", "sampler", 1)):
        graph[name] = graphs.node(
            "SamplerCustomAdvanced",
            noise=graphs.link(noise),
            guider=graphs.link("guider"),
            sampler=graphs.link("euler"),
            sigmas=graphs.link("split", part),
            latent_image=graphs.link(latent),
        )
    graph["decode"]["inputs"]["samples"] = graphs.link("second")
    graph["stats"]["inputs"]["after"] = graphs.link("second")
    _, trace = stats_of(server.run(graph))
    assert trace["steps"] == 12 and trace["skipped"] > 3
    # a schedule that rises again
    graph["sigmas"] = graphs.node("ManualSigmas", sigmas="1.0, 0.9, 0.8, 0.85, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0")
    graph["sampler"]["inputs"]["sigmas"] = graphs.link("sigmas")
    graph["decode"]["inputs"]["samples"] = graph["stats"]["inputs"]["after"] = graphs.link("sampler")
    report, trace = stats_of(server.run(graph))
    assert trace["state"] == "stood down" and trace["skipped"] == 0
    assert "do not fall" in report


def test_an_interrupt_ends_the_run_and_the_next_one_is_clean(server: Any, graphs: Any) -> None:
    plain = graphs.uncached(picture(graphs, seed=71, steps=12))
    before = server.image(server.run(plain)["outputs"]["save"]["images"][0])

    stops: list[int] = []

    def stop(value: int, maximum: int) -> None:
        if value >= 3 and not stops:
            stops.append(value)
            server.interrupt()

    with pytest.raises(Exception, match="Interrupted"):
        server.run(graphs.cached(picture(graphs, seed=71, steps=400, width=192, height=192), {"threshold": 2.0}), stop)
    server._request("/free", {"unload_models": False, "free_memory": True})
    assert server.image(server.run(plain)["outputs"]["save"]["images"][0]) == before
    _, trace = stats_of(server.run(graphs.cached(picture(graphs, seed=72), {"threshold": 2.0})))
    assert trace["state"] == "done" and len(trace["evaluations"]) == STEPS


@pytest.mark.parametrize("settings", [{"interval": 3}, {"interval": 1}, {"predictor": "newton", "transform": "fft"}])
def test_freqca_through_the_server(server: Any, graphs: Any, settings: dict[str, Any]) -> None:
    report, trace = stats_of(server.run(graphs.cached(picture(graphs, seed=81), settings, graphs.FREQCA_APPLY)))
    assert trace["method"] == "FreqCa" and trace["state"] == "done"
    assert (trace["skipped"] > 0) == (settings.get("interval") != 1)
    assert "Memory held" in report


def test_help_pages_are_served(server: Any) -> None:
    for node in (
        "SpectralCacheAutoApply",
        "SpectralCacheApply",
        "SpectralCacheFreqCaApply",
        "SpectralCacheMethodApply",
        "SpectralCacheStats",
    ):
        page = server._request(f"/extensions/spectralcache/docs/{node}.md").decode()
        info = server.object_info(node)
        names = [name for kind in ("required", "optional") for name in info["input"].get(kind, {})]
        assert [name for name in names if f"| **{name}** |" not in page] == []
