"""What the trainer writes is what ComfyUI's own classes compute."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
NEEDED = ("autoencoder", "flux", "latents", "qwen")


@pytest.fixture(scope="module")
def trainer() -> Iterator[dict[str, ModuleType]]:
    """The trainer's modules, with `bench` found by path and forgotten afterwards."""
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(
        "bench", BENCH / "__init__.py", submodule_search_locations=[str(BENCH)]
    )
    assert spec is not None and spec.loader is not None
    package = sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield {name: importlib.import_module(f"bench.train.{name}") for name in NEEDED}
    for name in [name for name in sys.modules if name not in before and name.split(".")[0] == "bench"]:
        del sys.modules[name]


def awake(model: torch.nn.Module) -> Any:
    """Random weights where a new model has zeros, so that the output depends on all of them."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def inputs(height: int = 6, width: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 16, height, width), (2, 12, 64), (2, 64))
    x, context, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, torch.tensor([0.9, 0.2]), context, pooled


@pytest.mark.parametrize("guidance", [False, True])
def test_the_trained_flux_is_the_hosts(host: Any, trainer: dict[str, ModuleType], guidance: bool) -> None:
    flux = trainer["flux"]
    with torch.inference_mode(False):
        ours = awake(flux.Flux(flux.Shape(double=2, single=2, guidance=guidance)))
        theirs = host.comfy.sd.load_diffusion_model_state_dict(flux.exported(ours.state_dict()))
    x, t, context, pooled = inputs()
    scale = torch.tensor([1.5, 4.0])
    expected = theirs.model.diffusion_model(x, t, context, y=pooled, guidance=scale)
    out = ours(x, t, context, pooled, scale)
    assert out.std() > 0.1
    assert torch.allclose(out, expected, atol=1e-4), (out - expected).abs().max()
    options = {"rope_options": {"scale_x": 2.0, "scale_y": 2.0}}
    spread = theirs.model.diffusion_model(x, t, context, y=pooled, guidance=scale, transformer_options=options)
    assert torch.allclose(ours(x, t, context, pooled, scale, spread=2.0), spread, atol=1e-4)
    assert not torch.allclose(out, spread, atol=1e-2)


def test_the_trained_qwen_image_is_the_hosts(host: Any, trainer: dict[str, ModuleType]) -> None:
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    qwen = trainer["qwen"]
    shape = replace(qwen.Shape(), blocks=2)
    with torch.inference_mode(False):
        ours = awake(qwen.QwenImage(shape))
        theirs = QwenImageTransformer2DModel(
            num_layers=2, num_attention_heads=2, joint_attention_dim=64, dtype=torch.float32, device="cpu",
            operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
    for size in ((6, 8), (10, 4)):
        x, t, context, pooled = inputs(*size)
        expected = theirs(x[:, :, None], t, context)[:, :, 0]
        out = ours(x, t, context, pooled)
        assert out.std() > 0.1
        assert torch.allclose(out, expected, atol=1e-4), (out - expected).abs().max()


def test_the_trained_qwen_image_comes_from_its_file(host: Any, trainer: dict[str, ModuleType], tmp_path: Path) -> None:
    """Through the test pack's loader, with latents as they are for FLUX."""
    from safetensors.torch import save_file

    qwen = trainer["qwen"]
    with torch.inference_mode(False):
        ours = awake(qwen.QwenImage(qwen.Shape(hidden=128, blocks=3)))
        exported = qwen.exported(ours.state_dict())
        assert "transformer_blocks.2.txt_mlp.net.2.weight" not in exported, "nothing reads it"
        save_file(exported, tmp_path / "qwen.safetensors")
    model = host.load_qwen(tmp_path / "qwen.safetensors")
    x, t, context, _ = inputs()
    assert torch.allclose(
        model.model.diffusion_model(x[:, :, None], t, context)[:, :, 0], ours(x, t, context), atol=1e-4
    )
    empty = host.comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 16, 8, 8))
    assert empty.shape == (1, 16, 1, 8, 8)
    flux = host.comfy.latent_formats.Flux()
    assert torch.equal(model.model.process_latent_in(x[:, :, None])[:, :, 0], flux.process_in(x))


def test_the_exported_autoencoder_is_the_hosts(host: Any, trainer: dict[str, ModuleType]) -> None:
    autoencoder, latents = trainer["autoencoder"], trainer["latents"]
    with torch.inference_mode(False):
        pictures = torch.rand(3, 3, 64, 64)
        space = latents.Space.fit(pictures)
        decoder = autoencoder.decoder().requires_grad_(False)
        vae = host.comfy.sd.VAE(sd=autoencoder.exported(space, decoder.state_dict()))
    flux = host.comfy.latent_formats.Flux()
    encoded = flux.process_in(vae.encode(pictures.permute(0, 2, 3, 1)))
    assert torch.allclose(encoded, space.encode(pictures), atol=1e-2)
    decoded = vae.decode(flux.process_out(encoded)).permute(0, 3, 1, 2)
    assert torch.allclose(decoded, decoder(space.encode(pictures)).clamp(0, 1), atol=1e-2)
