"""SpectralCache Auto on the real host, at both sites: DESIGN section 3, the budget, the estimate, the node itself.

What conditionings, add-ons, samplers and faults do to it is in the tests of these: `caching` there stands for it too.
"""

from __future__ import annotations

import gc
import json
import types
from typing import Any

import pytest
import torch

SITES = ["model", "trunk"]
SAMPLERS = ["euler", "heun", "dpm_2", "dpmpp_2m", "uni_pc", "euler_ancestral"]
FAST = {"speedup": 3.0}
"""Of 12 steps 4 are computed."""
ALL = {"speedup": 3.0, "keep_first": 100}
"""A budget that computes every step, with everything recorded."""

pytestmark = pytest.mark.usefixtures("host")
both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def small(host: Any) -> Any:
    """A FLUX of half the size with random weights, for what only counts steps."""
    return host.tiny.load("flux")[0]


def computed(trace: dict[str, Any]) -> list[int]:
    """The distinct steps that were computed."""
    return sorted({e["step"] for e in trace["evaluations"] if e["action"] == "computed"})


def decisions(trace: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(e["step"], e["stage"], e["action"], e["reason"]) for e in trace["evaluations"]]


# 1: never skipping is bit-identical -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("params", "hooked"), [({"speedup": 1.0}, False), (FAST, True)])
def test_off_installs_no_block_hook(host: Any, params: dict[str, float], hooked: bool) -> None:
    seen: list[Any] = []

    def spy(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args[5].get("patches_replace", {}))
        return executor(*args, **kwargs)

    model = host.auto(site="trunk", **params)
    model.add_wrapper_with_key("apply_model", "spy", spy)
    host.sample(model, steps=6)
    assert [bool(replace) for replace in seen] == [hooked] * 6


# 2: removed, the model is what it was ---------------------------------------------------------------------------------


@both_sites
def test_every_tensor_that_a_session_holds_came_from_keep(
    host: Any, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    """Features, slopes, gains, what the back-test says, and what is paid back at a step's further evaluations."""
    from_keep: set[int] = set()
    alive: list[torch.Tensor] = []
    keep, end = host.host.keep, host.core.Session.end

    def remembered(tensor: torch.Tensor) -> torch.Tensor:
        copy = keep(tensor)
        alive.append(copy)  # so that no id is used twice
        from_keep.add(id(copy))
        return copy

    kinds: list[tuple[int, int]] = []

    def checked_end(self: Any) -> None:
        end(self)
        (track,) = self.tracks
        held = [*track.tensors(), *track._ledger.values(), *track._evidence.values()]
        trails = [trail for lane in track._lanes.values() for trail in lane.trails.values()]
        kinds.append((len(held), sum(trail.repair is not None for trail in trails)))
        assert all(id(t) in from_keep for t in held)

    monkeypatch.setattr(host.host, "keep", remembered)
    monkeypatch.setattr(host.core.Session, "end", checked_end)
    host.sample(host.auto(site=site, **FAST), cfg=3.0, sampler="heun")
    assert host.trace()["state"] == "done" and host.trace()["skipped"] > 4
    assert max(count for count, _ in kinds) >= 10 and max(repairs for _, repairs in kinds) == 2


# 3: nothing kept aliases what is returned, nothing given is written to ------------------------------------------------


def test_writing_into_what_the_trunk_returned_changes_nothing_later(host: Any) -> None:
    clean = host.sample(host.auto(site="trunk", **FAST))

    def spoil(_: Any, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        args[0].fill_(float("nan"))

    handle = host.diffusion_model.final_layer.register_forward_hook(spoil)
    try:
        spoiled = host.sample(host.auto(site="trunk", **FAST))
    finally:
        handle.remove()
    assert torch.equal(clean, spoiled)


@both_sites
def test_writing_into_what_a_model_call_got_and_returned_changes_nothing_later(host: Any, site: str) -> None:
    """On computed, repaired and skipped calls alike."""

    def spoil(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = x.clone()
        out = executor(given, *args, **kwargs)
        assert torch.equal(given, x), "what we were given was written to"
        result = out.clone()
        out.fill_(float("nan"))
        given.fill_(float("nan"))
        return result

    outside = host.model.clone()
    outside.add_wrapper_with_key("apply_model", "spoil", spoil)  # before ours, so that it stands around it
    clean = host.sample(host.auto(site=site, **FAST), cfg=3.0)
    spoiled = host.sample(host.auto(outside, site=site, **FAST), cfg=3.0)
    assert torch.isfinite(spoiled).all() and torch.equal(clean, spoiled)


@both_sites
def test_what_the_model_returned_is_not_written_to(host: Any, site: str) -> None:
    """A computed call that is repaired gives a new tensor: somebody else may hold the model's own."""
    returned: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = executor(*args, **kwargs)
        returned.append((out, out.clone()))
        return out

    model = host.auto(site=site, **FAST)
    model.add_wrapper_with_key("apply_model", "inside", remember)
    host.sample(model)
    assert len(returned) == (4 if site == "model" else 12)
    assert all(torch.equal(out, copy) for out, copy in returned)


def test_what_the_last_block_returned_is_not_written_to(host: Any) -> None:
    """Where the trunk is repaired, too: the block may be somebody else's, who still holds its tensor."""
    returned: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = extra["original_block"](args)
        returned.append((out["img"], out["img"].clone()))
        return out

    model = host.model.clone()
    model.set_model_patch_replace(remember, "dit", "single_block", len(host.diffusion_model.single_blocks) - 1)
    host.sample(host.auto(model, site="trunk", **FAST))
    assert len(returned) == host.trace()["computed"] == 4
    assert all(torch.equal(out, copy) for out, copy in returned)


# 4 and 7: lanes -------------------------------------------------------------------------------------------------------


# 5 and the budget -----------------------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "the budget is exact: euler, heun, dpm_2, dpmpp_2m, uni_pc, euler_ancestral; CFG; batches")
@both_sites
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("cfg", "batch", "split"), [(1.0, 1, False), (3.0, 1, True), (3.0, 2, False)])
def test_the_budget_is_exact(
    host: Any, small: Any, monkeypatch: pytest.MonkeyPatch, site: str, sampler: str, cfg: float, batch: int, split: bool
) -> None:
    if split:
        monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    for asked, speedup in ((5, 2.0), (8, 3.0), (13, 1.4), (20, 6.0)):
        model = host.auto(small, site=site, speedup=speedup)
        out = host.sample(model, sampler=sampler, steps=asked, cfg=cfg, batch=batch, size=(8, 8))
        trace = host.trace()
        steps = trace["steps"]
        assert torch.isfinite(out).all() and trace["state"] == "done", trace["notes"]
        assert len(computed(trace)) == max(2, round(steps / speedup)), (steps, speedup, computed(trace))
        assert {0, steps - 1} <= set(computed(trace))
        for step in range(steps):  # whole or not at all
            assert len({e["action"] for e in trace["evaluations"] if e["step"] == step}) == 1


@pytest.mark.claim("Auto", "every sampler of the host: the budget holds")
@both_sites
def test_the_budget_holds_on_every_sampler(host: Any, small: Any, site: str) -> None:
    wrong = {}
    for name in host.comfy.samplers.SAMPLER_NAMES:
        out = host.sample(host.auto(small, site=site, speedup=2.5), sampler=name, steps=14, size=(8, 8))
        trace = host.trace()
        if name in ("dpm_fast", "dpm_adaptive", "lcm"):  # no steps to find, or every one from fresh noise
            assert (trace["state"], trace["skipped"]) == ("stood down", 0)
            continue
        steps = trace["steps"]
        planned = [e for e in trace["evaluations"] if e["reason"] not in ("sigma rose", "no history")]
        whole = {step: {e["action"] for e in planned if e["step"] == step} for step in range(steps)}
        count = sum(actions == {"computed"} for actions in whole.values())
        if count != max(2, round(steps / 2.5)) or any(len(actions) > 1 for actions in whole.values()):
            wrong[name] = f"{count} of {steps} computed"
        if not torch.isfinite(out).all() or trace["state"] != "done":
            wrong[name] = f"{trace['state']}, finite: {bool(torch.isfinite(out).all())}"
    assert wrong == {}


@both_sites
@pytest.mark.parametrize(("first", "last"), [(3, 1), (1, 3), (4, 4)])
def test_kept_steps_count_in_the_budget(host: Any, site: str, first: int, last: int) -> None:
    host.sample(host.auto(site=site, speedup=2.0, keep_first=first, keep_last=last), steps=20)
    found = computed(host.trace())
    assert len(found) == 10
    assert {*range(first), *range(20 - last, 20)} <= set(found)


def test_few_steps_and_stochastic_samplers_are_noted(host: Any) -> None:
    host.sample(host.auto(**FAST), steps=6)
    assert host.trace()["skipped"] == 4 and any("only 6 steps" in note for note in host.trace()["notes"])
    host.sample(host.auto(**FAST), sampler="euler_ancestral")
    assert host.trace()["skipped"] == 8 and any("fresh noise" in note for note in host.trace()["notes"])
    host.sample(host.auto(**FAST))
    assert host.trace()["notes"] == []


# 8: the same decisions whatever ran before ----------------------------------------------------------------------------


# the trace tells the truth --------------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "every skipped step has an estimate of its error from the fourth computed one on")
@both_sites
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_skipped_steps_have_an_estimate(host: Any, site: str, cfg: float) -> None:
    host.sample(host.auto(site=site, **FAST), cfg=cfg, steps=20)
    trace = host.trace()
    third = computed(trace)[2]
    skips = [e for e in trace["evaluations"] if e["action"] == "skipped"]
    assert {e["step"] for e in skips if "estimate" in e["scores"]} == {e["step"] for e in skips if e["step"] > third}
    estimates = [e["scores"]["estimate"] for e in skips if e["step"] > third]
    assert len(estimates) > 6 and all(0 < estimate < 1 for estimate in estimates)
    assert "Estimated error: " in host.core.report(trace) and "estimated error " in host.core.summary(trace)


@both_sites
def test_tolerance_computes_beyond_the_budget_and_says_so(host: Any, site: str) -> None:
    host.sample(host.auto(site=site, **FAST), steps=20)
    budget = host.trace()
    worst = max(e["scores"].get("estimate", 0.0) for e in budget["evaluations"])
    host.sample(host.auto(site=site, **FAST, tolerance=worst / 4), steps=20)
    trace = host.trace()
    assert len(computed(budget)) == 7 < len(computed(trace)) < 20
    skips = [e for e in trace["evaluations"] if e["action"] == "skipped"]
    assert skips and all(e["scores"]["estimate"] <= e["limits"]["estimate"] == worst / 4 for e in skips)
    assert sum(e["reason"] == "tolerance" for e in trace["evaluations"]) >= 2
    assert "tolerance (" in host.core.report(trace)


@both_sites
def test_memory_is_three_features_a_slope_and_a_bend_a_lane(host: Any, site: str) -> None:
    host.sample(host.auto(site=site, **FAST), cfg=3.0, batch=2, size=(16, 24))
    one = 2 * (16 * 16 * 24 if site == "model" else 8 * 12 * 256) * 4  # rows, elements, float32
    assert host.trace()["cache_bytes"] == pytest.approx(2 * 5 * one, abs=1000)


def test_auto_takes_the_model_site(host: Any) -> None:
    one = host.sample(host.auto(**FAST))
    assert host.trace()["site"] == "model"
    assert torch.equal(one, host.sample(host.auto(site="model", **FAST)))
    assert not torch.equal(one, host.sample(host.auto(site="trunk", **FAST)))


def test_it_replaces_an_earlier_apply_and_is_replaced(host: Any) -> None:
    alone = host.sample(host.auto(**FAST))
    assert torch.equal(host.sample(host.auto(host.apply(threshold=2.0), **FAST)), alone)
    assert host.trace()["method"] == "SpectralCache Auto" and len(host.trace()["evaluations"]) == 12
    host.sample(host.apply(host.auto(**FAST), threshold=2.0))
    assert host.trace()["method"] == "SpectralCache" and len(host.trace()["evaluations"]) == 12


# what it is worth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_what_is_paid_back_brings_the_run_nearer_to_the_full_one(
    host: Any, monkeypatch: pytest.MonkeyPatch, cfg: float
) -> None:
    full = host.sample(host.model, cfg=cfg, steps=28)

    def error(model: Any) -> float:
        return float((host.sample(model, cfg=cfg, steps=28) - full).square().mean().sqrt())

    repaid = error(host.auto(speedup=2.0))
    correction = type(host.core.methods()["auto"]().rules[0].correction)
    monkeypatch.setattr(correction, "repair", lambda self, history, new, *_: torch.zeros_like(new.value))
    assert repaid < 0.9 * error(host.auto(speedup=2.0))
    assert repaid < 0.05 * float(full.square().mean().sqrt())


# a ControlNet that begins and ends ------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "a ControlNet that begins and ends during the run")
@both_sites
def test_nothing_is_forecast_or_paid_back_across_the_edges_of_a_controlnet(
    host: Any, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    calls = 0

    def add(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        control = {"input": [torch.full((1, 48, 256), 0.5)], "output": []} if 8 < calls <= 14 else None
        return executor(*args[:4], control, *args[5:], **kwargs)

    controlled = host.model.clone()
    controlled.add_wrapper_with_key("apply_model", "control", add)
    method = host.core.methods()["auto"]()
    predictor, correction = type(method.rules[0].predictor), type(method.rules[0].correction)
    predict, repair = predictor.predict, correction.repair
    forecast: dict[int, int] = {}
    gaps: dict[int, list[int]] = {}

    def watched(self: Any, history: Any, now: Any, grid: Any = None, figures: Any = None) -> Any:
        forecast.setdefault(now.index, len(history))
        return predict(self, history, now, grid, figures)

    def repaired(self: Any, history: Any, new: Any, gap: Any, *rest: Any) -> Any:
        gaps[rest[1].index] = [step.index for step in gap]
        return repair(self, history, new, gap, *rest)

    monkeypatch.setattr(predictor, "predict", watched)
    monkeypatch.setattr(correction, "repair", repaired)
    out = host.sample(host.auto(controlled, site=site, speedup=4.0), steps=24)
    trace = host.trace()
    assert torch.isfinite(out).all() and trace["state"] == "done"
    reasons = {e["step"]: e["reason"] for e in trace["evaluations"]}
    assert (reasons[8], reasons[14]) == ("control changed", "control changed")
    assert 8 not in gaps and 14 not in gaps
    for edge, end in ((8, 14), (14, 24)):
        inside = [step for step in computed(trace) if edge <= step < end]
        for step, known in forecast.items():
            if edge < step < end:
                assert known == min(2, sum(s < step for s in inside)), step
    assert forecast[9] == forecast[15] == 1


# what goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "a failure of its own costs the cache, never the picture")
@both_sites
@pytest.mark.parametrize("part", ["learn", "repair", "predict"])
def test_our_failure_costs_the_cache_and_never_the_picture(
    host: Any, monkeypatch: pytest.MonkeyPatch, site: str, part: str
) -> None:
    plain = host.sample(host.model)
    method = host.core.methods()["auto"]()
    owner = type(method.rules[0].correction if part == "repair" else method.rules[0].predictor)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(owner, part, fail)
    out = host.sample(host.auto(site=site, **FAST), steps=12)
    trace = host.trace()
    assert trace["state"] == "stood down" and sum("injected" in note for note in trace["notes"]) == 1
    tried_both = site == "trunk"  # the second place fails by the same error, which is not told twice
    assert any("in the same way" in note for note in trace["notes"]) == tried_both
    assert torch.isfinite(out).all() and len(trace["evaluations"]) == 12
    assert torch.equal(out, plain) == (part != "repair")  # a skip came before the first payment


def test_a_forward_without_hooks_falls_back_to_whole_model_calls(host: Any) -> None:
    """As with packs that replace FLUX's forward: the trunk is asked for and cannot be had."""
    model = host.diffusion_model
    original = type(model).forward_orig

    def without_hooks(self: Any, *args: Any, transformer_options: dict[str, Any], **kwargs: Any) -> Any:
        return original(self, *args, transformer_options={**transformer_options, "patches_replace": {}}, **kwargs)

    model.forward_orig = types.MethodType(without_hooks, model)
    try:
        plain = host.sample(host.model)
        assert torch.equal(host.sample(host.auto(site="trunk", **ALL)), plain)
        host.sample(host.auto(site="trunk", **FAST))
    finally:
        del model.forward_orig
    trace = host.trace()
    assert (trace["site"], trace["state"], trace["evaluations"][0]["reason"]) == ("model", "done", "blocks not reached")
    assert trace["skipped"] >= 6 and any("without reaching our block hooks" in note for note in trace["notes"])


@both_sites
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_returns_rubbish_once(host: Any, site: str, value: float) -> None:
    """The run goes on, with the same number of computed steps; the picture is what the model made of it."""
    with host.spoiled(value):
        host.sample(host.auto(site=site, speedup=2.0), steps=20)
    trace = host.trace()
    assert trace["state"] == "done" and len(computed(trace)) == 10
    json.dumps(trace, allow_nan=False)


@both_sites
def test_many_runs_leave_nothing_behind(host: Any, site: str) -> None:
    def census() -> tuple[int, int]:
        gc.collect()
        kinds = [type(thing) for thing in gc.get_objects()]
        return kinds.count(torch.Tensor), kinds.count(host.core.Session)

    model = host.auto(site=site, **FAST)
    for _ in range(3):
        host.sample(model, steps=6, size=(4, 4))
    before = census()
    for seed in range(40):
        host.sample(model, steps=6, size=(4, 4), seed=seed)
    after = census()
    assert after[0] <= before[0] + 2 and after[1] == before[1]


# other models ---------------------------------------------------------------------------------------------------------


@pytest.mark.claim("Auto", "Qwen-Image, with and without references")
@both_sites
@pytest.mark.parametrize("references", [(), ((8, 8), (20, 20))])
def test_qwen_image(host: Any, site: str, references: tuple[tuple[int, int], ...]) -> None:
    qwen = host.tiny.Qwen(host)
    options = {"cfg": 3.0, "positive": qwen.conditioning(1, *references), "negative": qwen.conditioning(2, *references)}
    plain = qwen.sample(**options)
    assert torch.equal(qwen.sample(host.auto(qwen.model, site=site, **ALL), **options), plain)
    out = qwen.sample(host.auto(qwen.model, site=site, **FAST), **options)
    trace = host.trace()
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert (trace["site"], trace["state"], len(computed(trace))) == (site, "done", 4), trace["notes"]


@both_sites
@pytest.mark.parametrize("size", [(12, 16), (8, 24), (13, 9), (6, 6)])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_any_size_aspect_ratio_and_number_of_bands(host: Any, site: str, size: tuple[int, int], bands: int) -> None:
    out = host.sample(host.auto(site=site, bands=bands, **FAST), size=size)
    trace = host.trace()
    assert torch.isfinite(out).all()
    assert (len(computed(trace)), trace["state"], trace["notes"]) == (4, "done", [])


def test_bands_make_a_difference(host: Any) -> None:
    one, three = (host.sample(host.auto(bands=bands, **FAST)) for bands in (1, 3))
    assert not torch.equal(one, three)


# the node, through a real server --------------------------------------------------------------------------------------

NODE = "SpectralCacheAutoApply"


def picture(graphs: Any, **changes: Any) -> Any:
    settings = {"prompt": "a large fox on blue", "steps": 20, "width": 96, "height": 96, **changes}
    return graphs.Picture(**settings)


def trace_of(entry: dict[str, Any]) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(entry["outputs"]["stats"]["trace"][0])
    return trace


def test_the_contract_of_the_inputs(server: Any) -> None:
    info = server.object_info(NODE)
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    expected = ["model", "speedup", "quality", "tolerance", "keep_first", "keep_last", "bands", "site", "computed"]
    expected += ["guidance", "profile"]
    assert list(inputs) == expected and info["output"] == ["MODEL"]
    assert info["display_name"] == "SpectralCache Auto"
    defaults = {name: spec[1]["default"] for name, spec in inputs.items() if name not in ("model", "profile")}
    assert list(defaults.values()) == [2.0, "Balanced", 0.0, 1, 1, 3, "auto", 0, "follow"]
    assert [inputs["speedup"][1][key] for key in ("min", "max", "step")] == [1.0, 20.0, 0.1]
    assert (inputs["bands"][1]["min"], inputs["bands"][1]["max"]) == (1, 4)
    offered = {name: spec[1]["options"] for name, spec in inputs.items() if "options" in spec[1]}
    assert offered == {
        "quality": ["Custom", "Quality", "Balanced", "Fast", "Draft"],
        "site": ["auto", "trunk", "model", "guided"],
        "guidance": ["follow", "derive"],
    }
    assert [name for name, spec in inputs.items() if spec[1].get("advanced")] == expected[3:-1]  # a socket is seen
    assert {"auto", "easy"} <= set(info["search_aliases"])


def test_it_is_the_first_of_our_nodes(server: Any) -> None:
    known = json.loads(server._request("/object_info"))
    assert next(name for name, info in known.items() if info["category"] == "SpectralCache") == NODE


@pytest.mark.claim("Auto", "words: Quality, Balanced, Fast, Draft compute fewer steps from one to the next")
def test_words_through_the_server(server: Any, graphs: Any) -> None:
    counts = []
    for word in ("Quality", "Balanced", "Fast", "Draft"):
        trace = trace_of(server.run(graphs.cached(picture(graphs), {"quality": word, "speedup": 6.0}, graphs.AUTO)))
        assert trace["method"] == "SpectralCache Auto" and trace["params"]["quality"] == word
        assert (trace["state"], trace["steps"]) == ("done", 20)
        counts.append(trace["computed"])
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4 and counts[-1] > 3  # not the number's
    custom = {"quality": "Custom", "speedup": 4.0}
    assert trace_of(server.run(graphs.cached(picture(graphs), custom, graphs.AUTO)))["computed"] == 5


def test_without_the_advanced_inputs_the_defaults_count(server: Any, graphs: Any) -> None:
    graph = graphs.cached(picture(graphs, seed=2), None, graphs.AUTO)
    whole = trace_of(server.run(graph))
    kept = ("model", "speedup", "quality")
    graph["apply"]["inputs"] = {name: graph["apply"]["inputs"][name] for name in kept}
    graph["sampler"]["inputs"]["seed"] = 3
    short = trace_of(server.run(graph))
    assert whole["params"] == short["params"] and whole["computed"] == short["computed"] < 20


@pytest.mark.claim("Auto", "bad settings are refused with the node, the value and the way out")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speedup": 0.5}, ["SpectralCache Auto", "speedup is 0.5", "from 1 to 20"]),
        ({"speedup": 21.0}, ["SpectralCache Auto", "speedup is 21.0", "from 1 to 20"]),
        ({"speedup": float("nan")}, ["SpectralCache Auto", "speedup is nan", "from 1 to 20"]),
        ({"tolerance": -1.0}, ["SpectralCache Auto", "tolerance is -1.0", "from 0 to"]),
        ({"keep_first": 0}, ["SpectralCache Auto", "keep_first is 0", "from 1 to 100"]),
        ({"keep_last": 101}, ["SpectralCache Auto", "keep_last is 101", "from 1 to 100"]),
        ({"bands": 5}, ["SpectralCache Auto", "bands is 5", "from 1 to 4"]),
        ({"quality": "Best"}, ["quality", "Best", "Balanced"]),
        ({"site": "unet"}, ["site", "unet", "trunk"]),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    server: Any, graphs: Any, settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(Exception) as refusal:
        server.queue(graphs.cached(picture(graphs), settings, graphs.AUTO))
    text = str(refusal.value)
    assert "refused" in text and all(word in text for word in words), text


def test_a_linked_value_is_checked_when_the_node_runs(server: Any, graphs: Any) -> None:
    graph = graphs.cached(picture(graphs), {"quality": "Custom"}, graphs.AUTO)
    graph["number"] = graphs.node("PrimitiveFloat", value=27.5)
    graph["apply"]["inputs"]["speedup"] = graphs.link("number")
    with pytest.raises(Exception, match=r"SpectralCache Auto: speedup is 27.5; use a number from 1 to 20"):
        server.run(graph)


def test_off_through_the_server_is_the_original(server: Any, graphs: Any) -> None:
    def pixels(graph: dict[str, Any]) -> bytes:
        image: bytes = server.image(server.run(graph)["outputs"]["save"]["images"][0])
        return image[image.index(b"IDAT") :]  # behind the metadata, which holds the graph

    plain = pixels(graphs.uncached(picture(graphs, seed=5)))
    off = {"quality": "Custom", "speedup": 1.0}
    assert pixels(graphs.cached(picture(graphs, seed=5), off, graphs.AUTO)) == plain
    assert pixels(graphs.cached(picture(graphs, seed=5), None, graphs.AUTO)) != plain
