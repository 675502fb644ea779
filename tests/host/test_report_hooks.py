"""Public reports 1, 2, 4, 5: whoever calls our block hooks, with whatever arguments, the picture is right.

Each test is named after the report (what users did, what went wrong, what is right).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

STEPS = 12
TRUNK = ["Apply", "FreqCa", "Auto, trunk"]
CALLS = ["second_dict", "nowhere", "bare", "other_options", "no_options", "late"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we told the user."""
    ours = (r for r in caplog.records if r.name == "SpectralCache" and r.levelname == "WARNING")
    return [record.getMessage() for record in ours]


def is_right(host: Any, out: torch.Tensor, plain: torch.Tensor, fewer: torch.Tensor) -> None:
    """Skipped and about as near as fewer steps; or nothing was skipped, and not a bit differs."""
    assert torch.isfinite(out).all()
    trace = host.trace()
    if trace["skipped"] + trace["partial"] == 0:
        assert torch.equal(out, plain)
        return
    # two of three steps skipped in any order is further off than even steps: a factor, but no garbage
    assert host.foreign.error(out, plain) < 2 * host.foreign.error(fewer, plain) + 0.05


@pytest.fixture(scope="module")
def plain_runs(host: Any) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
    """The full run and one of as few steps as are computed, at CFG 1 and 3: our stand-in forward gives the same."""
    model = host.model
    return {cfg: (host.sample(model, steps=STEPS, cfg=cfg), host.sample(model, steps=4, cfg=cfg)) for cfg in (1.0, 3.0)}


# 1: a pack's own forward calls the hooks in its own way ---------------------------------------------------------------


def test_report_01_the_stand_in_forward_is_the_hosts_in_numbers(host: Any, plain_runs: Any) -> None:
    foreign = host.foreign
    with foreign.replaced(host.diffusion_model, foreign.Forward(foreign.modern)):
        assert torch.equal(host.sample(host.model, steps=STEPS, cfg=3.0), plain_runs[3.0][0])
        host.sample(foreign.attached(host, "Apply"), steps=STEPS)
    assert host.trace()["skipped"] >= 4 and host.trace()["site"] == "trunk"


@pytest.mark.parametrize(
    ("method", "call", "cfg"),
    [*(("Apply", call, 1.0) for call in CALLS), ("FreqCa", "second_dict", 3.0), ("Auto, trunk", "late", 3.0)],
)
def test_report_01_pulid_hook_arguments(
    host: Any, plain_runs: Any, caplog: pytest.LogCaptureFixture, method: str, call: str, cfg: float
) -> None:
    """It is cached, in the trunk or by whole model calls, and nobody gets an exception."""
    foreign = host.foreign
    plain, fewer = plain_runs[cfg]
    caplog.clear()
    with foreign.replaced(host.diffusion_model, foreign.Forward(foreign.CALLS[call])):
        out = host.sample(foreign.attached(host, method), steps=STEPS, cfg=cfg)
    trace = host.trace()
    is_right(host, out, plain, fewer)
    assert trace["state"] == "done" and trace["skipped"] >= 4, trace["notes"]
    assert len(warnings(caplog)) == (trace["site"] == "model")  # told once that blocks could not be skipped
    assert len(trace["evaluations"]) == STEPS


@pytest.mark.parametrize("call", ["second_dict", "nowhere"])
def test_report_01_with_a_foreign_patch_in_a_slot(host: Any, call: str) -> None:
    """The same forward, and a third pack's block patch, which must go on working."""
    foreign = host.foreign
    calls: list[int] = []

    def patch(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        calls.append(1)
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.02}

    model = host.model.clone()
    model.set_model_patch_replace(patch, "dit", "single_block", len(host.diffusion_model.single_blocks) - 1)
    with foreign.replaced(host.diffusion_model, foreign.Forward(foreign.CALLS[call])):
        plain = host.sample(model, steps=STEPS)
        fewer = host.sample(model, steps=4)
        calls.clear()
        out = host.sample(foreign.attached(host, "FreqCa", model), steps=STEPS)
    is_right(host, out, plain, fewer)
    assert host.trace()["skipped"] >= 4
    assert len(calls) == host.trace()["computed"]


@pytest.mark.parametrize("call", ["nowhere", "late"])
def test_report_01_recording_is_bit_identical(host: Any, plain_runs: Any, call: str) -> None:
    """Attached but never skipping changes nothing, however the hooks are called, and is not the end of recording."""
    foreign = host.foreign
    with foreign.replaced(host.diffusion_model, foreign.Forward(foreign.CALLS[call])):
        out = host.sample(host.apply(threshold=1e-6), steps=STEPS, cfg=3.0)
    assert torch.equal(out, plain_runs[3.0][0])
    assert host.trace()["state"] == "done" and host.trace()["cache_bytes"] > 0


# 2: extra rows or tokens between the first block and the last ---------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "extra", "cfg", "batch"),
    [
        *(("Apply", "rows", 1.0, 1), ("Apply", "rows", 1.0, 2), ("Apply", "tokens", 1.0, 1)),
        *(("FreqCa", "rows", 3.0, 1), ("Auto, trunk", "rows", 1.0, 1)),
    ],
)
def test_report_02_nag_extra_rows(
    host: Any, caplog: pytest.LogCaptureFixture, method: str, extra: str, cfg: float, batch: int
) -> None:
    """What leaves the last slot is not what entered the first: whole model calls are skipped, with one warning."""
    foreign = host.foreign
    forward = {
        "rows": lambda: foreign.Forward(foreign.modern, foreign.twice_the_rows, foreign.guidance_of_rows),
        "tokens": lambda: foreign.Forward(foreign.modern, foreign.more_tokens, lambda img: img[:, :-4]),
    }[extra]()
    options = {"cfg": cfg, "batch": batch}
    with foreign.replaced(host.diffusion_model, forward):
        plain = host.sample(host.model, steps=STEPS, **options)
        fewer = host.sample(host.model, steps=4, **options)
        assert torch.equal(host.sample(host.apply(threshold=1e-6), steps=STEPS, **options), plain)
        caplog.clear()
        out = host.sample(foreign.attached(host, method), steps=STEPS, **options)
    trace = host.trace()
    is_right(host, out, plain, fewer)
    assert (trace["state"], trace["site"]) == ("done", "model"), trace["notes"]
    assert trace["skipped"] >= 4
    assert len(warnings(caplog)) == 1


# 4: compiled as one graph ---------------------------------------------------------------------------------------------


@pytest.fixture
def fullgraph(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles a model as one graph, with an attention that can be traced."""
    import comfy.ldm.flux.math
    import comfy.ldm.qwen_image.model
    import torch._dynamo
    from comfy.ldm.modules import attention
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for module in (comfy.ldm.flux.math, comfy.ldm.qwen_image.model):
        name = "optimized_attention" if hasattr(module, "optimized_attention") else "optimized_attention_masked"
        monkeypatch.setattr(module, name, attention.attention_pytorch)
    torch._dynamo.reset()

    def compiled(model: Any) -> Any:
        patched = model.clone()
        set_torch_compile_wrapper(model=patched, backend="eager", fullgraph=True)
        return patched

    yield compiled
    torch._dynamo.reset()


@pytest.mark.parametrize(("method", "order"), [("Apply", "compiled first"), ("FreqCa", "compiled last")])
def test_report_04_fullgraph_compile(
    host: Any, caplog: pytest.LogCaptureFixture, fullgraph: Any, method: str, order: str
) -> None:
    """A graph without breaks has no room for our hooks: whole model calls, and the sentence names the setting."""
    foreign = host.foreign
    plain, fewer = host.sample(host.model, steps=STEPS), host.sample(host.model, steps=4)  # eager: the same numbers
    caplog.clear()
    if order == "compiled first":
        model = foreign.attached(host, method, fullgraph(host.model))
    else:
        model = fullgraph(foreign.attached(host, method))
    out = host.sample(model, steps=STEPS)
    trace = host.trace()
    is_right(host, out, plain, fewer)
    assert (trace["state"], trace["site"]) == ("done", "model")
    assert trace["skipped"] >= 4
    told = warnings(caplog)
    assert len(told) == 1 and "fullgraph" in told[0]


def test_report_04_fullgraph_with_auto_works(host: Any, fullgraph: Any) -> None:
    """Auto skips outside the graph, so nothing is in its way."""
    plain = host.sample(host.model, steps=STEPS)
    out = host.sample(fullgraph(host.foreign.attached(host, "Auto")), steps=STEPS)
    assert host.trace()["notes"] == [] and host.trace()["skipped"] == 6
    assert host.foreign.error(out, plain) < 0.2


# 5: tokens that are cut off behind the hooks' back --------------------------------------------------------------------


def kontext(host: Any, size: tuple[int, int], method: str) -> list[Any]:
    """A conditioning with one reference latent."""
    latent = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(4))
    extra = {"reference_latents": [latent], "reference_latents_method": method}
    return [[tensor, {**options, **extra}] for tensor, options in host.conditioning(1)]


@pytest.mark.parametrize(
    ("method", "size", "place"),
    [
        ("Apply", (8, 8), "offset"),
        ("Apply", (12, 16), "index"),
        ("Apply", (16, 20), "offset"),
        ("FreqCa", (8, 8), "index"),
        ("FreqCa", (12, 16), "offset"),
    ],
)
def test_report_05_flux_kv_cache_kontext(host: Any, method: str, size: tuple[int, int], place: str) -> None:
    """The host's KV cache cuts the reference's tokens off after the first step, and still reports their number."""
    from comfy_extras.nodes_flux import FluxKVCache

    foreign, options = host.foreign, {"positive": kontext(host, size, place)}

    def cached_keys(model: Any) -> Any:
        return FluxKVCache.execute(model)[0]

    plain = host.sample(cached_keys(host.model), steps=STEPS, **options)
    fewer = host.sample(cached_keys(host.model), steps=4, **options)
    assert torch.equal(host.sample(cached_keys(host.apply(threshold=1e-6)), steps=STEPS, **options), plain)
    out = host.sample(cached_keys(foreign.attached(host, method)), steps=STEPS, **options)
    assert host.trace()["skipped"] >= 4
    is_right(host, out, plain, fewer)


@pytest.mark.parametrize("method", ["Apply", "FreqCa"])
@pytest.mark.parametrize("where", ["before", "behind"])
def test_report_05_image_tokens_that_are_neither_target_nor_reference(host: Any, method: str, where: str) -> None:
    """A pack adds image tokens of its own and takes them off again: not ours to forecast, so whole model calls.

    Behind the target they could be taken for a reference's; before it, they push the target aside.
    """
    foreign = host.foreign

    def add(args: dict[str, Any]) -> dict[str, Any]:
        extra, ids = args["img"][:, :5] * 0.3, args["img_ids"][:, :5]
        order = (lambda a, b: (b, a)) if where == "before" else (lambda a, b: (a, b))
        img, img_ids = torch.cat(order(args["img"], extra), dim=1), torch.cat(order(args["img_ids"], ids), dim=1)
        return {**args, "img": img, "img_ids": img_ids}

    def take_off(_: Any, args: tuple[Any, ...]) -> Any:
        img = args[0]
        return (img[:, 5:] if where == "before" else img[:, :-5], *args[1:])

    model = host.model.clone()
    model.set_model_patch(add, "post_input")
    handle = host.diffusion_model.final_layer.register_forward_pre_hook(take_off)
    try:
        plain = host.sample(model, steps=STEPS)
        fewer = host.sample(model, steps=4)
        assert torch.equal(host.sample(host.apply(model, threshold=1e-6), steps=STEPS), plain)
        out = host.sample(foreign.attached(host, method, model), steps=STEPS)
    finally:
        handle.remove()
    assert (host.trace()["state"], host.trace()["site"]) == ("done", "model"), host.trace()["notes"]
    assert host.trace()["skipped"] >= 4
    is_right(host, out, plain, fewer)
