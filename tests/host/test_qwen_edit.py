"""Qwen-Image-Edit: decisions and features on the target's tokens, whatever references come with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

STEPS = 12
TARGET, WIDTH = 6 * 8, 128
METHODS = ["index", "index_timestep_zero", "negative_index", "offset", "uxo"]
SIZES = [((12, 16),), ((8, 8), (21, 20), (5, 7))]


@pytest.fixture(scope="module")
def qwen(host: Any) -> Any:
    return host.tiny.Qwen(host)


@pytest.fixture(scope="module")
def newest(host: Any) -> Any:
    """Edit 2511, whose own method is index_timestep_zero."""
    return host.tiny.Qwen(host, "qwen_image_2511")


def sides(qwen: Any, *sizes: tuple[int, int], **options: Any) -> dict[str, Any]:
    return {"positive": qwen.conditioning(1, *sizes, **options), "negative": qwen.conditioning(2, *sizes, **options)}


@pytest.mark.claim(
    "Models", "Qwen-Image-Edit (2509, 2511): one to three references, larger than the target, every reference method"
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", SIZES)
def test_references(qwen: Any, method: str, sizes: tuple[tuple[int, int], ...]) -> None:
    with_references = sides(qwen, *sizes, reference_latents_method=method)
    assert not torch.allclose(qwen.sample(cfg=3.0, **with_references), qwen.sample(cfg=3.0), atol=1e-2)
    qwen.check(cfg=3.0, **with_references)


@pytest.mark.parametrize(("size", "batch"), [((26, 38), 1), ((13, 17), 2)])
def test_the_newest_edit_model_by_its_own_method(newest: Any, size: tuple[int, int], batch: int) -> None:
    newest.check(size=size, batch=batch, cfg=3.0, **sides(newest, (12, 10), (20, 30)))
    newest.check(size=size, batch=batch, cfg=3.0)  # without references there is no t = 0 either


@pytest.mark.claim("Models", "Qwen-Image-Edit: references on one side of CFG only, CFG batched and split")
def test_references_on_one_side_of_cfg(newest: Any) -> None:
    newest.check(cfg=3.0, positive=newest.conditioning(1, (8, 8)))


@pytest.mark.parametrize("batch", [1, 2])
def test_batched_and_split_conditionings_agree(
    host: Any, newest: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """The modulation vector has the rows of t = 0 behind those of t, also where both sides of CFG share a call."""
    options = {"cfg": 3.0, "batch": batch, **sides(newest, (8, 8))}
    ours = host.apply(newest.model, **host.tiny.SKIPPING)
    together = newest.sample(ours, **options)
    first = host.trace()["evaluations"]
    monkeypatch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = newest.sample(ours, **options)
    second = host.trace()["evaluations"]
    assert [{e["calls"] for e in run} for run in (first, second)] == [{1}, {2}]
    assert [(e["action"], e["reason"]) for e in first] == [(e["action"], e["reason"]) for e in second]
    distances = [[e["scores"].get("d", 0.0) for e in run] for run in (first, second)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-3)
    assert torch.allclose(together, apart, atol=1e-4 * float(apart.abs().max()))


@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
@pytest.mark.parametrize("sizes", [(), ((8, 8),)])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_signal_is_the_first_blocks_own_input(
    host: Any, qwen: Any, monkeypatch: pytest.MonkeyPatch, method: str, sizes: tuple[tuple[int, int], ...], cfg: float
) -> None:
    """What the signal sees is what the block itself hands to its attention, target tokens only."""
    signal = type(host.spectralcache().rules[0].signal)
    look, seen, own = signal.look, [], []

    def watched(self: Any, probe: Any) -> Any:
        seen.append(probe.modulated.clone())
        return look(self, probe)

    def attention(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        own.extend(kwargs["hidden_states"][:, :TARGET].clone().split(2))

    monkeypatch.setattr(signal, "look", watched)
    handle = qwen.blocks[0].attn.register_forward_pre_hook(attention, with_kwargs=True)
    try:
        model = host.apply(qwen.model, threshold=1e-6)
        qwen.sample(model, cfg=cfg, batch=2, **sides(qwen, *sizes, reference_latents_method=method))
    finally:
        handle.remove()
    assert len(seen) == len(own) == STEPS * (1 if cfg == 1 else 2)
    for ours, theirs in zip(seen, own, strict=True):
        assert ours.shape == theirs.shape == (2, TARGET, WIDTH)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_nothing_of_the_references_is_kept(host: Any, qwen: Any) -> None:
    for sizes in ((), ((30, 40),)):
        qwen.sample(host.apply(qwen.model, **host.tiny.SKIPPING), **sides(qwen, *sizes))
        assert host.trace()["cache_bytes"] == pytest.approx(2 * TARGET * WIDTH * 4, abs=500)  # a feature and an M


def test_the_threshold_is_raw_distance_with_a_stated_unit(host: Any, qwen: Any) -> None:
    calibration = host.core.architecture_of(qwen.diffusion_model).calibration(True)
    assert (calibration.polynomial, calibration.unit) == ((), 0.25)
    assert "not been measured" in calibration.source
    qwen.sample(host.apply(qwen.model, threshold=1.0, tads_min=1.0, tads_max=1.0), **sides(qwen, (8, 8)))
    assert {e["limits"]["distance"] for e in host.trace()["evaluations"] if "distance" in e["limits"]} == {0.25}


@pytest.mark.claim("Models", "Qwen-Image-Edit: references that change between runs or in the middle of one")
@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
def test_references_that_change_between_runs(host: Any, newest: Any, method: str) -> None:
    params = host.tiny.SKIPPING if method == "spectralcache" else {"interval": 3}

    def fresh() -> Any:
        return host.host.attach(newest.model, host.core.methods()[method](**params), None)

    runs = [sides(newest, (8, 8)), sides(newest, (20, 30), (6, 6)), sides(newest), sides(newest, (8, 8))]
    alone = [newest.sample(fresh(), cfg=3.0, **run) for run in runs]
    ours = fresh()
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(newest.sample(ours, cfg=3.0, **run), expected)
        assert host.trace()["notes"] == []  # FreqCa's says if the target's tokens are not on its grid
    assert not torch.equal(alone[0], alone[1])


def test_references_that_come_in_the_middle_of_a_run_compute(host: Any, newest: Any) -> None:
    """At one step the host runs both conditionings: the new one has no feature yet and is computed beside the skip.
    From then on it leads, by its own past.
    """
    timed = [
        *newest.conditioning(1, start_percent=0.0, end_percent=0.5),
        *newest.conditioning(1, (8, 8), start_percent=0.5, end_percent=1.0),
    ]
    unlimited = {"max_consecutive": 1000, "tads_min": 10.0, "tads_max": 10.0}
    plain = newest.sample(positive=timed)
    assert torch.equal(newest.sample(host.apply(newest.model, threshold=1e-6), positive=timed), plain)
    newest.sample(host.apply(newest.model, **host.tiny.SKIPPING | unlimited), positive=timed)
    reasons = [e["reason"] for e in host.trace()["evaluations"] if e["action"] == "computed"]
    assert reasons == ["first step", "last step"]
    assert [(e["lanes"], e["work"]) for e in host.trace()["evaluations"] if e["action"] == "partial"] == [(2, 0.5)]


def test_every_method_runs_with_its_defaults(host: Any, newest: Any) -> None:
    options = {"cfg": 3.0, "batch": 2, "size": (13, 17), "steps": 20, **sides(newest, (8, 8), (5, 7))}
    for name, method in host.core.methods().items():
        out = newest.sample(host.host.attach(newest.model, method(), None), **options)
        trace = host.trace()
        assert torch.isfinite(out).all(), name
        if name == "deepcache":  # U-Nets only
            continue
        if name == "dbcache":  # by default its head alone is longer than this model
            assert "none of the 3 blocks" in trace["notes"][0]
            continue
        assert trace["state"] == "done" and trace["notes"] == [], (name, trace["notes"])
        assert trace["computed"] + trace["skipped"] + trace["partial"] == len(trace["evaluations"]) == 20, name
