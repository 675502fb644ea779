"""Cache Calibrate on the small models: what it records against modules watched by hand, and a run that follows it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

STEPS = 6


@pytest.fixture(scope="module")
def node(host: Any) -> Any:
    return module(host, "calibrate").SpectralCacheCalibrate


def module(host: Any, name: str) -> Any:
    return importlib.import_module(f"{host.host.__package__}.{name}")


@pytest.fixture(autouse=True)
def shelf(host: Any, tmp_path: Path) -> Iterator[Any]:
    """A user folder of its own."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path))
    yield module(host, "shelf")
    folder_paths.set_user_directory(before)


def calibrate(host: Any, node: Any, model: Any = None, **options: Any) -> Any:
    given = {
        "seed": 5,
        "steps": STEPS,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "samples": 2,
        "lags": 2,
    }
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    out = node.execute(model or host.model, host.conditioning(1), host.conditioning(2), latent, **{**given, **options})
    return out.args


@pytest.mark.claim("Calibration", "changes and noise norms equal those watched by hand; the model is left as it was")
def test_what_is_recorded(host: Any, node: Any) -> None:
    block, outs, denoised = host.diffusion_model.double_blocks[0], [], []
    options = {"steps": STEPS, "size": (8, 8), "seed": 5}
    handle = block.img_mlp.register_forward_hook(lambda m, a, out: outs.append(out.clone()))
    try:
        plain = host.sample(host.model, **options)
    finally:
        handle.remove()
    profile, report, picture = calibrate(host, node, samples=1)
    assert torch.equal(host.sample(host.model, **options), plain)
    assert profile.about["model"] == f"FLUX.1, {host.blocks} blocks of {host.diffusion_model.hidden_size}"
    handle = block.txt_mlp.register_forward_hook(lambda m, a, out: denoised.append(out.clone()))
    try:
        host.sample(host.model, **options)
    finally:
        handle.remove()
    change = profile.tables["mlp.change"]
    for step in range(2, STEPS):
        for lag in (1, 2):
            moved = sum((s[step][:, ::8] - s[step - lag][:, ::8]).abs().mean() for s in (outs, denoised))
            size = sum(s[step][:, ::8].abs().mean() for s in (outs, denoised))
            assert float(change[lag - 1, step, 0]) == pytest.approx(float(moved / size), rel=1e-3)
    assert torch.isnan(change[1, 1]).all() and torch.isnan(change[0, 0]).all()
    noise = profile.tables["attention.noise"][0, 1:-1, 0]
    assert torch.isfinite(noise).all() and 0 < float((noise - 1).abs().max()) < 0.5
    assert "FEB-Cache, work 0.5" in report and report.count("\n") > 8
    assert picture.ndim == 4 and picture.shape[3] == 3 and float(picture.std()) > 0.05


@pytest.mark.claim("Calibration", "what modules do is learned within 12 pictures' work, counted in its trace")
def test_what_learning_modules_costs(host: Any, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of T steps is tried at T - 2 of them, two lags old but for the first: 3 T - 5 evaluations' work."""
    defaults = {each.id: each.default for each in node.define_schema().inputs if hasattr(each, "default")}
    samples, lags = defaults["samples"], defaults["lags"]
    traces: list[dict[str, Any]] = []
    monkeypatch.setattr(host.host.RUNS, "publish", traces.append)
    calibrate(host, node, samples=samples, lags=lags, record="modules", steps=8)
    work = sum(e["work"] for trace in traces for e in trace["evaluations"])
    assert len(traces) == samples and work == pytest.approx(samples * (3 * 8 - 5))
    steps = defaults["steps"]
    assert samples * (3 * steps - 5) <= 12 * steps


@pytest.mark.claim("Calibration", "the trunk's figures and the course of a run equal those watched by hand")
def test_what_is_recorded_of_a_whole_run(host: Any, node: Any) -> None:
    model, entered, left, courses = host.diffusion_model, [], [], []

    def watch(args: dict[str, Any]) -> torch.Tensor:
        courses.append((args["input"] - args["denoised"]) / args["sigma"])
        return args["denoised"]

    watched = host.model.clone()
    watched.set_model_sampler_post_cfg_function(watch)
    first = model.double_blocks[0].register_forward_pre_hook(
        lambda m, args, kwargs: entered.append((args[0] if args else kwargs["img"]).clone()), with_kwargs=True
    )
    last = model.single_blocks[-1].register_forward_hook(lambda m, a, out: left.append(out.clone()))
    try:
        host.sample(watched, steps=STEPS, size=(8, 8), seed=5)
    finally:
        first.remove()
        last.remove()
    residuals = [out[:, -img.shape[1] :] - img for img, out in zip(entered, left, strict=True)]
    tables = calibrate(host, node, samples=1, record="whole run")[0].tables
    assert "mlp.change" not in tables and "branch.difference" not in tables
    for step in range(1, STEPS):
        before, now = residuals[step - 1 : step + 1]
        change = (now - before).abs().mean() / before.abs().mean()
        assert float(tables["trunk.change"][0, 0, step]) == pytest.approx(float(change), rel=1e-4)
        magnitude = (now.norm(dim=-1) / before.norm(dim=-1)).mean()
        assert float(tables["trunk.magnitude"][0, 0, step]) == pytest.approx(float(magnitude), rel=1e-4)
        assert 0 < float(tables["trunk.embedding"][step]) < 1 and 0 < float(tables["trunk.signal"][0, 0, step]) < 1
    rows = torch.stack([course.flatten() for course in courses]).double()
    gram = rows @ rows.T
    assert torch.allclose(tables["course.gram"], gram / gram.diagonal().mean(), rtol=1e-4)


def test_what_an_error_does_to_the_picture(host: Any, node: Any) -> None:
    """At the last step it is the latent's own error; before that the rest of the run makes more or less of it."""
    sizes = []
    watched = host.model.clone()
    watched.set_model_sampler_post_cfg_function(
        lambda args: sizes.append(((args["input"] - args["denoised"]) / args["sigma"]).norm()) or args["denoised"]
    )
    latent = host.sample(watched, steps=STEPS, size=(8, 8), seed=5)
    plain = host.sample(host.model, steps=STEPS, size=(8, 8), seed=5)
    profile, report, _ = calibrate(host, node, samples=1, record="whole run")
    amplified = profile.tables["course.amplified"]
    scale = host.model.model.latent_format.scale_factor
    usual = torch.stack(sizes).square().mean().sqrt()
    assert float(amplified[-1]) == pytest.approx(float(usual / scale / latent.norm()), rel=1e-3)
    assert torch.isfinite(amplified).all() and float(amplified[0]) > 0 and torch.equal(latent, plain)
    assert "error of the latent about" in report


def test_both_sides_of_guidance(host: Any, node: Any) -> None:
    sides: list[dict[str, torch.Tensor]] = []
    watched = host.model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: sides.append(args) or args["denoised"])
    host.sample(watched, steps=STEPS, size=(8, 8), seed=5, cfg=3.0)
    tables = calibrate(host, node, samples=1, cfg=3.0, record="whole run")[0].tables
    for step, args in enumerate(sides):
        apart = (args["uncond_denoised"] - args["cond_denoised"]).abs().mean()
        size = (args["input"] - args["cond_denoised"]).abs().mean()
        assert float(tables["branch.difference"][0, step]) == pytest.approx(float(apart / size), rel=1e-4)
    assert torch.isfinite(tables["trunk.magnitude"][:, 0, 1:]).all() and tables["trunk.magnitude"].shape[0] == 2


def test_memory_is_bounded(host: Any, node: Any, monkeypatch: Any) -> None:
    """What is looked at of a derivative fits the budget, and what is learned from it is about the same."""
    whole = calibrate(host, node, samples=1, record="whole run")[0].tables["course.gram"]
    watcher = module(host, "watcher")
    monkeypatch.setattr(watcher, "BUDGET", STEPS * 4 * 600)
    held: list[int] = []
    seen = watcher.Watcher._seen
    monkeypatch.setattr(watcher.Watcher, "_seen", lambda *args: (out := seen(*args), held.append(out.numel()))[0])
    part = calibrate(host, node, samples=1, record="whole run")[0].tables["course.gram"]
    assert set(held) == {600} and not torch.equal(part, whole) and torch.allclose(part, whole, rtol=0.15)


@pytest.mark.claim("Calibration", "profiles are stored whole or not at all, under free names, and load again")
def test_profiles_are_stored_and_loaded(host: Any, node: Any, shelf: Any) -> None:
    profile, report, _ = calibrate(host, node, samples=1, record="whole run", name="my model: 1/2")
    again = calibrate(host, node, samples=1, record="whole run", name="my model: 1/2")[0]
    named = calibrate(host, node, samples=1, record="whole run")[0]
    assert [p.about["name"] for p in (profile, again)] == ["my model 1 2", "my model 1 2 (2)"]
    assert named.about["name"].startswith("FLUX.1 euler simple 6 steps cfg 1 ") and "Stored as my model 1 2." in report
    assert set(shelf.names()) == {p.about["name"] for p in (profile, again, named)}
    loader = module(host, "profile_loader").SpectralCacheProfileLoader
    assert loader.define_schema().inputs[0].options == shelf.names()
    loaded, words = loader.execute("my model 1 2").args
    assert dict(loaded.about) == dict(profile.about) and "euler, simple, 6 steps" in words
    assert all(torch.equal(loaded.tables[n].nan_to_num(), t.nan_to_num()) for n, t in profile.tables.items())


def test_an_interrupt_leaves_nothing_behind(host: Any, node: Any, shelf: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module(host, "watcher").Watcher, "tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate(host, node, samples=1, record="whole run")
    assert not shelf.folder().exists()
    monkeypatch.undo()
    profile = calibrate(host, node, samples=1, record="whole run")[0]
    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shelf.put(profile, "half")
    assert [file.stem for file in shelf.folder().iterdir()] == shelf.names() == [profile.about["name"]]


def interrupt(*args: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.claim("Calibration", "a profile that cannot be used costs a run nothing else, and it says why")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-16], "cannot be read"),
        (lambda data: b"PK" + data, "no profile"),
        (lambda data: data + bytes(2**26), "none is larger"),
        (lambda data: data.replace(b'\\"version\\": 1', b'\\"version\\": 9'), "version 9"),
        (lambda data: data.replace(b'"dtype":"F32"', b'"dtype":"I32"'), "torch.int32"),
        (None, "not there any more"),
    ],
)
def test_a_bad_file_is_refused_and_the_run_goes_on(host: Any, node: Any, shelf: Any, spoil: Any, words: str) -> None:
    stored = calibrate(host, node, samples=1, record="modules")[0].about["name"]
    file = shelf.folder() / f"{stored}.safetensors"
    file.unlink() if spoil is None else file.write_bytes(spoil(file.read_bytes()))
    refused, report = module(host, "profile_loader").SpectralCacheProfileLoader.execute(stored).args
    assert words in report and stored in report
    goes_without(host, refused, words)


def goes_without(host: Any, profile: Any, words: str, **options: Any) -> None:
    """The run is that of the method without a profile, and its trace says why."""
    method = host.core.methods()["smoothcache"]
    with_it = host.host.apply(host.model, method, profile, {"alpha": 0.5}, None)
    out = host.sample(with_it, steps=STEPS, size=(8, 8), **options)
    (note,) = [note for note in host.trace()["notes"] if "profile" in note]
    assert words in note and not host.trace()["profile"]
    plain = host.host.apply(host.model, method, None, {"alpha": 0.5}, None)
    assert torch.equal(out, host.sample(plain, steps=STEPS, size=(8, 8), **options))


def test_another_model_sampler_or_guidance_is_refused(host: Any, node: Any) -> None:
    profile = calibrate(host, node, samples=1, record="modules")[0]
    goes_without(host, profile, "CFG 1, this run has 3", cfg=3.0)
    goes_without(host, profile, "euler_ancestral adds noise of its own", sampler="euler_ancestral")
    goes_without(host, "nonsense", "it is str")
    about = {**profile.about, "model": "FLUX.1, 57 blocks of 3072"}
    goes_without(host, type(profile)(about, profile.tables), "not for this model")
    learned = host.core.methods()["feb_cache"]
    model = host.host.apply(host.model, learned, profile, {"scaling": "measured"}, None)
    host.sample(model, steps=STEPS, size=(8, 8), cfg=3.0)
    assert host.trace()["state"] == "stood down" and "cannot do without" in host.trace()["notes"][0]


def test_a_trial_is_a_step_with_that_module_one_step_old(host: Any, node: Any) -> None:
    """The norm that a profile holds for a step is that of the run that reuses the module there for the first time."""
    profile = calibrate(host, node, samples=1)[0]
    seen: dict[int, torch.Tensor] = {}

    def watch(args: dict[str, Any]) -> torch.Tensor:
        sigma = args["sigma"].flatten()[0]
        seen[len(seen)] = (args["input"] - (1 - sigma) * args["denoised"]).norm()
        return args["denoised"]

    def norms(model: Any) -> dict[int, torch.Tensor]:
        seen.clear()
        watched = model.clone()
        watched.set_model_sampler_post_cfg_function(watch)
        host.sample(watched, steps=STEPS, size=(8, 8), seed=5)
        return dict(seen)

    types, schedules = host.types, host.schedules
    whole = norms(host.model)
    both = (types.ATTENTION, types.MLP)
    for name, places in (("attention", both[:1]), ("mlp", both[1:]), ("both", both)):
        gate = schedules.Listed(lambda schedule: frozenset({3}))
        rules = tuple(types.Rule((p,), types.Signal(), gate, host.predictors.Hold(), "absolute") for p in places)
        reused = norms(host.host.attach(host.model, types.Method("one", rules), None))
        found = float(profile.tables[f"{name}.noise"][0, 3, 0])
        assert found == pytest.approx(float(reused[3] / whole[3]), rel=1e-4) and found != 1


@pytest.mark.claim(
    "Calibration", "a profile drives FEB-Cache, SmoothCache and Learning-to-Cache, and the report says which it was"
)
def test_from_a_profile_to_a_run(host: Any, node: Any) -> None:
    profile = calibrate(host, node, more=None, positive_2=host.conditioning(3))[0]
    core = host.core.methods()
    for name, options in (("feb_cache", {"work": 0.6, "scaling": "measured"}), ("smoothcache", {"alpha": 0.5}),
                          ("learning_to_cache", {"share": 0.5})):  # fmt: skip
        model = host.host.apply(host.model, core[name], profile, options, None)
        out = host.sample(model, steps=STEPS, size=(8, 8))
        trace = host.trace()
        assert trace["profile"] == profile.title
        assert torch.isfinite(out).all() and trace["skipped"] + trace["partial"] > 0, name
        assert not [note for note in trace["notes"] if "profile" in note], trace["notes"]
    host.sample(model, steps=STEPS + 2, size=(8, 8))
    assert any("this run has 8" in note for note in host.trace()["notes"])


@pytest.mark.claim("Calibration", "Auto by a profile: its forecast within its range and the error that it expects")
def test_auto_with_a_profile(host: Any, node: Any) -> None:
    profile, auto = calibrate(host, node, record="whole run", steps=12)[0], host.core.methods()["auto"]

    def run(given: Any, steps: int = 12, **params: Any) -> tuple[torch.Tensor, Any]:
        model = host.host.apply(host.model, auto, given, {"quality": "Custom", "computed": 6, **params}, None)
        return host.sample(model, steps=steps, size=(8, 8), seed=7), host.trace()

    (out, trace), (plain, without) = run(profile), run(None)
    assert not torch.equal(out, plain) and trace["computed"] == without["computed"] == 6
    assert 0 < trace["expected_error"] < 1 and without["expected_error"] is None
    assert "by the profile" in host.core.report(trace)
    (_, longer), (other, at_trunk) = run(profile, steps=20), run(profile, site="trunk")
    assert longer["expected_error"] is None and longer["profile"] and not longer["notes"]
    assert torch.equal(other, run(None, site="trunk")[0]) and "choose another site" in at_trunk["notes"][0]
    few = run(profile, computed=4)[1]
    assert few["expected_error"] is None and "from 6 computed steps on" in few["notes"][0]
    narrow = {name: table[4:] if name == "sigmas" else table for name, table in profile.tables.items()}
    narrow |= {"course.gram": profile.tables["course.gram"][4:, 4:], "course.amplified": narrow["sigmas"] * torch.nan}
    beyond, told = run(type(profile)(profile.about, narrow), keep_first=1)
    assert torch.isfinite(beyond).all() and told["expected_error"] is None


HOLD = {"interval": 3, "warmup_steps": 1}


def with_gain(host: Any, profile: Any, gain: str, name: str = "freqca", params: Any = None) -> Any:
    params = HOLD if params is None else params
    return host.host.apply(host.model, host.core.methods()[name], profile, params, None, gain)


@pytest.mark.claim("Calibration", "a cache's gain equals the one watched by hand and acts from the first skip on")
def test_the_gain_of_a_cache(host: Any, node: Any) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def watch(executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        out = executor(x, sigma, *args, **options)
        seen.append((x.clone(), out.clone(), float(sigma.flatten()[0])))
        return out

    def run(apply: Any) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        seen.clear()
        watched = host.model.clone()  # the outermost wrapper, which also sees what acts on the result
        watched.add_wrapper_with_key("predict_noise", "test", watch)
        host.sample(apply(watched), steps=STEPS, size=(8, 8), seed=5)
        return list(seen)

    method = host.core.methods()["freqca"]
    cached = host.host.apply(host.model, method, None, HOLD, None)
    profile, report, picture = calibrate(host, node, cached, samples=1, record="gain")
    full, plain = run(lambda model: model), run(lambda model: host.host.apply(model, method, None, HOLD, None))
    norms = [[(x - (1 - sigma) * out).norm() for x, out, sigma in each] for each in (full, plain)]
    expected = torch.stack(norms[0]) / torch.stack(norms[1])
    assert profile.groups == ("gain",) and "Gain of" in report and float(picture.std()) > 0.02
    assert torch.allclose(profile.tables["gain.noise"], expected.clamp(0.9, 1.1), rtol=1e-4)
    channels = profile.tables["gain.channels"]
    assert channels.shape == (STEPS, 16)
    for gain in ("noise", "channels"):
        ours = run(lambda model, gain=gain: host.host.apply(model, method, profile, HOLD, None, gain))
        trace = host.trace()
        assert trace["params"]["gain"] == gain and trace["profile"] and not trace["notes"][1:], trace["notes"]
        first = next(e["step"] for e in trace["evaluations"] if e["skip"])
        assert all(torch.equal(a[1], b[1]) for a, b in zip(ours[:first], plain[:first], strict=True))
        assert torch.allclose(channels[:first], torch.ones(first, 16))
        assert not torch.allclose(channels[first], torch.ones(16), atol=1e-4)
        x, out, sigma = plain[first]
        if gain == "noise":
            b = float(expected[first])
            assert b != 1 and torch.allclose(ours[first][1], b * out + (1 - b) / (1 - sigma) * x, atol=1e-5)
        else:
            mean = out.mean((2, 3), keepdim=True)
            assert torch.allclose(ours[first][1], mean + channels[first].view(1, -1, 1, 1) * (out - mean), atol=1e-5)


@pytest.mark.claim("Calibration", "a gain on a run that skips nothing changes nothing, to the bit")
@pytest.mark.parametrize("gain", ["noise", "channels"])
@pytest.mark.parametrize("name", ["teacache", "freqca"])
def test_a_gain_where_nothing_is_skipped(host: Any, node: Any, name: str, gain: str) -> None:
    method = host.core.methods()[name]
    cached = host.host.apply(host.model, method, None, {}, None)
    profile = calibrate(host, node, cached, samples=1, record="gain")[0]
    off = {"gain.noise": torch.full((STEPS,), 0.95), "gain.channels": torch.full((STEPS, 16), 0.95)}
    tables = {**profile.tables, **off}
    plain = host.sample(host.model, steps=STEPS, size=(8, 8))
    for params in (method.never, method.refusing):
        about = {**profile.about, "gained": module(host, "calibrate").settings(method(**params))}
        ours = with_gain(host, type(profile)(about, tables), gain, name, params)
        assert torch.equal(host.sample(ours, steps=STEPS, size=(8, 8)), plain)
    skipping = {**profile.about, "gained": module(host, "calibrate").settings(method(**method.skipping))}
    ours = with_gain(host, type(profile)(skipping, tables), gain, name, method.skipping)
    without = host.host.apply(host.model, method, None, method.skipping, None)
    outs = [host.sample(model, steps=STEPS, size=(8, 8)) for model in (ours, without)]
    assert not torch.equal(*outs) and torch.equal(host.sample(host.model, steps=STEPS, size=(8, 8)), plain)


@pytest.mark.claim("Calibration", "a gain of another cache, other steps or guidance is not used, and it says so")
def test_a_gain_that_does_not_fit(host: Any, node: Any) -> None:
    method = host.core.methods()["freqca"]
    cached = host.host.apply(host.model, method, None, HOLD, None)
    profile = calibrate(host, node, cached, samples=1, record="gain")[0]
    about = {**profile.about, "model": "FLUX.1, 57 blocks of 3072"}
    for known, params, options, words in (
        (profile, {**HOLD, "cutoff": 0.2}, {}, "its gain belongs to"),
        (profile, HOLD, {"steps": STEPS + 2}, "the profile is of 6 steps"),
        (profile, HOLD, {"cfg": 3.0}, "CFG 1, this run has 3"),
        (type(profile)(about, profile.tables), HOLD, {}, "not for this model"),
        ("nonsense", HOLD, {}, "it is str"),
    ):
        given = {"steps": STEPS, "size": (8, 8), **options}
        out = host.sample(with_gain(host, known, "noise", params=params), **given)
        assert any(words in note for note in host.trace()["notes"]), (words, host.trace()["notes"])
        assert torch.equal(out, host.sample(host.host.apply(host.model, method, None, params, None), **given))
    with pytest.raises(ValueError, match="no profile"):
        with_gain(host, None, "noise")
    with pytest.raises(ValueError, match="no cache is on this model"):
        calibrate(host, node, samples=1, record="gain")
    scaled = host.host.apply(host.model, host.core.methods()["feb_cache"], None, {"scaling": "paper"}, None)
    with pytest.raises(ValueError, match="switch that off"):
        calibrate(host, node, scaled, samples=1, record="gain")


def test_qwen_image_and_what_is_not_described(host: Any, node: Any) -> None:
    qwen = host.tiny.Qwen(host)
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    profile, *_ = node.execute(
        qwen.model, qwen.conditioning(1), qwen.conditioning(2), latent, 0, STEPS, 3.0, "euler", "simple", 1, 1
    ).args
    assert profile.about["family"] == "Qwen-Image" and torch.isfinite(profile.tables["mlp.noise"][0, 1:-1]).all()
    assert profile.groups == ("modules", "trunk", "branch", "course")
    other = host.families.FAMILIES["Lumina 2"].patcher()
    with pytest.raises(ValueError, match="use whole run"):
        calibrate(host, node, other, record="modules")


def test_auto_learns_of_a_model_that_is_not_described(host: Any, node: Any) -> None:
    model, width, shape = host.tiny.load("sd15")
    words = [[torch.randn(1, 6, width, generator=torch.Generator().manual_seed(seed)), {}] for seed in (1, 2)]
    sides = [[word] for word in words]
    latent = {"samples": torch.zeros(shape)}
    profile = node.execute(model, *sides, latent, 0, 8, 3.0, "euler", "normal", 1, 1).args[0]
    assert profile.groups == ("branch", "course") and profile.about["family"] == "UNetModel"
    auto = host.core.methods()["auto"]
    cached = host.host.apply(model, auto, profile, {"quality": "Custom", "computed": 5}, None)
    empty = torch.zeros(shape)
    noise = host.comfy.sample.prepare_noise(empty, 3)
    out = host.comfy.sample.sample(cached, noise, 8, 3.0, "euler", "normal", *sides, empty, seed=3)
    assert torch.isfinite(out).all() and 0 < host.trace()["expected_error"] < 2 and host.trace()["skipped"] == 3


# through the server ---------------------------------------------------------------------------------------------------


def calibrating(graphs: Any, qwen: bool) -> Any:
    """A graph that calibrates, makes a picture with TeaCache by what was learned, and shows both reports."""
    picture = graphs.Picture("a large fox on blue", steps=8, width=64, height=64, cfg=3.0 if qwen else 1.0)
    graph = graphs.cached(picture, apply=graphs.AUTO)
    if qwen:
        graph["model"] = graphs.node("SpectralCacheStandInQwen", family="qwen_image")
    names = ("positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler")
    common = {name: graph["sampler"]["inputs"][name] for name in names}
    options = {"samples": 2, "lags": 1, "record": "whole run", "name": "round trip"}
    graph["calibrate"] = graphs.node(NODE, model=graphs.link("shift"), **options, **common)
    graph["words"] = graphs.node("PreviewAny", source=graphs.link("calibrate", 1))
    graph["curves"] = graphs.node("PreviewImage", images=graphs.link("calibrate", 2))
    return graph


NODE, LOADER, METHOD = "SpectralCacheCalibrate", "SpectralCacheProfileLoader", "SpectralCacheMethodApply"


@pytest.mark.claim("Calibration", "calibrate, apply, store, load through the server: small FLUX, small Qwen-Image")
@pytest.mark.parametrize("qwen", [False, True], ids=["flux", "qwen"])
def test_a_round_trip_through_the_server(server: Any, graphs: Any, qwen: bool) -> None:
    graph = calibrating(graphs, qwen)
    settings = {"method": "teacache", "method.threshold": 0.6, "method.start_percent": 0.0, "method.end_percent": 1.0}
    graph["apply"] = graphs.node(METHOD, model=graphs.link("shift"), profile=graphs.link("calibrate"), **settings)
    outputs = server.run(graph)["outputs"]
    trace, report = json.loads(outputs["stats"]["trace"][0]), outputs["words"]["text"][0]
    name = report.split("Stored as ")[1].split(".")[0]
    assert name.startswith("round trip") and "explains" in report and outputs["curves"]["images"]
    assert trace["profile"].startswith(f"{name} (") and not [note for note in trace["notes"] if "profile" in note]
    assert 1 < trace["skipped"] < 7  # the unit is measured on runs like this one
    assert f"Profile: {name} (" in outputs["stats"]["text"][0]
    again = {key: node for key, node in graph.items() if key not in ("calibrate", "words", "curves")}
    again["load"] = graphs.node(LOADER, name=name)
    again["apply"]["inputs"]["profile"] = graphs.link("load")
    repeated = json.loads(server.run(again)["outputs"]["stats"]["trace"][0])
    skipped = [[e["step"] for e in t["evaluations"] if e["skip"]] for t in (trace, repeated)]
    assert repeated["profile"] == trace["profile"] and skipped[0] == skipped[1]
    assert name in server.object_info(LOADER)["input"]["required"]["name"][1]["options"]
    again["load"]["inputs"]["name"] = "gone"
    gone = json.loads(server.run(again)["outputs"]["stats"]["trace"][0])
    assert not gone["profile"] and any("the profile gone is not used" in note for note in gone["notes"])


def test_a_gain_through_the_server(server: Any, graphs: Any) -> None:
    """Learned from one Cache Method, taken back by another with the same settings; without a profile it is refused."""
    graph = calibrating(graphs, False)
    settings = {"method": "first_block_cache", "method.threshold": 10.0, "method.max_consecutive": 2,
                "method.start_percent": 0.0, "method.end_percent": 1.0}  # fmt: skip
    graph["cache"] = graphs.node(METHOD, model=graphs.link("shift"), **settings)
    graph["calibrate"]["inputs"] |= {"model": graphs.link("cache"), "record": "gain", "samples": 1}
    graph["apply"] = graphs.node(
        METHOD, model=graphs.link("shift"), profile=graphs.link("calibrate"), gain="channels", **settings
    )
    trace = json.loads(server.run(graph)["outputs"]["stats"]["trace"][0])
    assert trace["params"]["gain"] == "channels" and trace["profile"] and trace["skipped"], trace["notes"]
    del graph["apply"]["inputs"]["profile"]
    with pytest.raises(Exception, match="no profile is connected"):
        server.queue(graph)
