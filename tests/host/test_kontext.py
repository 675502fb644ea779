"""FLUX Kontext from end to end: the small trained FLUX with reference latents, against its blocks composed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 12
SIZES = [((12, 16),), ((8, 8), (21, 20))]
METHODS = ["offset", "index", "uxo"]


def conditioning(host: Any, sizes: tuple[tuple[int, int], ...], method: str = "offset", seed: int = 1) -> list[Any]:
    generator = torch.Generator().manual_seed(4)
    latents = [torch.randn(1, 16, *size, generator=generator) for size in sizes]
    extra = {"reference_latents": latents, "reference_latents_method": method} if sizes else {}
    return [[tensor, {**options, **extra}] for tensor, options in host.conditioning(seed)]


def by_hand(host: Any, x: Tensor, sigma: Tensor, sides: list[Any], method: str, residual: Tensor | None) -> Any:
    """(velocity, residual) of one FLUX forward, its trunk left out where a residual is given."""
    from comfy.ldm.flux.layers import timestep_embedding

    model, base = host.diffusion_model, host.model.model
    text, options = sides[0]
    entry_tokens, ids = model.process_img(x)
    targets = entry_tokens.shape[1]
    vec = model.time_in(timestep_embedding(sigma, 256)) + model.vector_in(options["pooled_output"])
    if residual is None:
        tokens, place = [entry_tokens], [0, 0, 0]
        for latent in options.get("reference_latents", ()):
            place, shift = after(place, latent, x, method)
            more, more_ids = model.process_img(base.process_latent_in(latent), **shift)
            tokens.append(more)
            ids = torch.cat((ids, more_ids), dim=1)
        img, txt = model.img_in(torch.cat(tokens, dim=1)), model.txt_in(text)
        entry = img[:, :targets].clone()
        pe = model.pe_embedder(torch.cat((torch.zeros(1, text.shape[1], 3), ids), dim=1))
        for block in model.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe)
        joint = torch.cat((txt, img), dim=1)
        for block in model.single_blocks:
            joint = block(joint, vec=vec, pe=pe)
        residual = joint[:, text.shape[1] :][:, :targets] - entry
    out = model.final_layer(model.img_in(entry_tokens) + residual, vec)
    h, w = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
    out = out.reshape(1, h, w, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 2 * h, 2 * w)
    return out[..., : x.shape[2], : x.shape[3]], residual


def after(place: list[int], latent: Tensor, x: Tensor, method: str) -> tuple[list[int], dict[str, int]]:
    """Where the next reference goes: [references, rows, columns] so far -> those with it, and its coordinates."""
    count, down, right = place
    height, width = latent.shape[-2:]
    if method == "index":
        return [count + 1, 0, 0], {"index": count + 1, "h_offset": 0, "w_offset": 0}
    if method == "uxo":
        sides = [-(-size // 2) * 2 for size in x.shape[2:]]
        shift = {"index": 0, "h_offset": sides[0] + down, "w_offset": sides[1] + right}
        return [count + 1, down + height, right + width], shift
    sideways = height + down <= width + right
    shift = {"index": 1, "h_offset": down if sideways else 0, "w_offset": 0 if sideways else right}
    return [count + 1, max(down, height + shift["h_offset"]), max(right, width + shift["w_offset"])], shift


@pytest.mark.claim("Add-ons", "FLUX Kontext: a skipped evaluation equals the host's own blocks composed by hand")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(12, 16), (13, 9)])
def test_cached_runs_equal_the_blocks_composed_by_hand(
    host: Any, sizes: tuple[tuple[int, int], ...], method: str, size: tuple[int, int]
) -> None:
    positive = conditioning(host, sizes, method)
    ours = host.sample(host.apply(**host.tiny.SKIPPING), steps=STEPS, size=size, positive=positive)
    trace = host.trace()
    skips = [e["action"] == "skipped" for e in trace["evaluations"]]
    assert trace["site"] == "trunk" and sum(skips) >= 4, trace["notes"]
    sigmas = torch.tensor([e["sigma"] for e in trace["evaluations"]] + [0.0])
    x = host.comfy.sample.prepare_noise(torch.zeros(1, 16, *size), 0) * sigmas[0]
    residual = None
    for i, skip in enumerate(skips):
        velocity, residual = by_hand(host, x, sigmas[i : i + 1], positive, method, residual if skip else None)
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    x = host.model.model.process_latent_out(x)
    assert torch.allclose(ours, x, atol=2e-4 * float(x.abs().max()))


@pytest.mark.claim("Add-ons", "FLUX Kontext: every reference method, CFG batched and split, 832 x 1216 and odd sizes")
@pytest.mark.parametrize(
    ("method", "size", "batch"),
    [("offset", (26, 38), 1), ("offset", (13, 9), 2), ("index", (13, 9), 1), ("uxo", (13, 9), 1)],
)
def test_never_skipping_is_bit_identical_and_split_calls_agree(
    host: Any, monkeypatch: pytest.MonkeyPatch, method: str, size: tuple[int, int], batch: int
) -> None:
    sides = {n: conditioning(host, ((8, 8), (15, 12)), method, s) for n, s in (("positive", 1), ("negative", 2))}
    options = {"steps": STEPS, "cfg": 3.0, "size": size, "batch": batch, **sides}
    plain = host.sample(host.model, **options)
    for refusing in (host.apply(threshold=1e-6), host.freqca(warmup_steps=100)):
        assert torch.equal(host.sample(refusing, **options), plain)
        assert host.trace()["skipped"] == 0 and host.trace()["cache_bytes"] > 0
    for ours in (host.freqca(interval=3), host.apply(**host.tiny.SKIPPING)):
        together, first = host.sample(ours, **options), host.trace()
        with monkeypatch.context() as patch:
            patch.setattr(host.comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
            apart, second = host.sample(ours, **options), host.trace()
        assert [{e["calls"] for e in trace["evaluations"]} for trace in (first, second)] == [{1}, {2}]
        assert [e["action"] for e in first["evaluations"]] == [e["action"] for e in second["evaluations"]]
        assert first["skipped"] >= 4 and first["notes"] == []
        assert torch.allclose(together, apart, atol=1e-3 * float(apart.abs().max()))


@pytest.mark.claim("Add-ons", "FLUX Kontext: references that change between runs")
@pytest.mark.parametrize("method", ["spectralcache", "freqca"])
def test_references_that_change_between_runs(host: Any, method: str) -> None:
    def fresh() -> Any:
        return host.apply(**host.tiny.SKIPPING) if method == "spectralcache" else host.freqca(interval=3)

    runs = [conditioning(host, sizes) for sizes in (((8, 8),), ((20, 30), (6, 6)), (), ((8, 8),))]
    alone = [host.sample(fresh(), steps=STEPS, positive=run) for run in runs]
    ours = fresh()
    for run, expected in zip(runs, alone, strict=True):
        assert torch.equal(host.sample(ours, steps=STEPS, positive=run), expected)
        assert host.trace()["notes"] == []  # FreqCa's says if the target's tokens are not on its grid
    assert not torch.equal(alone[0], alone[1])


def test_freqca_splits_bands_on_the_targets_grid(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As released, FreqCa took the root of target and reference tokens together for the side of a square."""
    predictor = type(host.core.methods()["freqca"]().rules[0].predictor)
    predict, grids = predictor.predict, []

    def watched(self: Any, history: Any, now: Any, grid: Any = None, figures: Any = None) -> Any:
        grids.append((grid, history[-1].value.shape[1]))
        return predict(self, history, now, grid, figures)

    monkeypatch.setattr(predictor, "predict", watched)
    host.sample(host.freqca(interval=3), steps=STEPS, size=(26, 38), positive=conditioning(host, ((26, 38),)))
    assert set(grids) == {((13, 19), 13 * 19)}
