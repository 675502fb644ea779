"""Tiny models with random weights, for tests of one family. Needs the host on `sys.path`.

FLUX and Wan go through the host's loader, which derives the dimensions from the weights (LOADED); the others are built
from the host's own class and configuration at small dimensions (BUILT, DESCRIBED). All families: families.py.
"""

from __future__ import annotations

from typing import Any

import torch

HIDDEN, CONTEXT = 128, 64
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": CONTEXT,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
}
WAN = {
    "model_type": "t2v",
    "dim": HIDDEN,
    "ffn_dim": 256,
    "text_dim": 4096,
    "num_heads": 1,
    "num_layers": 2,
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "num_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": CONTEXT,
}
FLUX1 = FLUX | {"depth_single_blocks": 3, "guidance_embed": False, "txt_ids_dims": []}
"""Half the width and half the blocks of the small trained FLUX."""
UNTRAINED = {"flux": FLUX1, "flux of two blocks": FLUX1 | {"depth": 1, "depth_single_blocks": 1}}
LOADED = {
    "wan2.1": ("comfy.ldm.wan.model", "WanModel", WAN, 4096, (1, 16, 2, 8, 8)),
}
"""family: module, class, arguments, text width, latent shape (b c ...)."""
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "image_size": 32,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": CONTEXT,
    "num_heads": 8,
    "adm_in_channels": None,
}
SDXL = UNET | {
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
BUILT = {
    "sd15": ("SD15", UNET, CONTEXT, (1, 4, 8, 8)),
    "sdxl": ("SDXL", SDXL, CONTEXT, (1, 4, 8, 8)),
}
QWEN_IMAGE_2511 = QWEN_IMAGE | {"default_ref_method": "index_timestep_zero"}
QWEN_IMAGE_LAYERED = QWEN_IMAGE | {"default_ref_method": "negative_index", "use_additional_t_cond": True}
DESCRIBED = {
    "qwen_image": ("QwenImage", QWEN_IMAGE, CONTEXT, (1, 16, 1, 8, 8)),
    "qwen_image_2511": ("QwenImage", QWEN_IMAGE_2511, CONTEXT, (1, 16, 1, 8, 8)),
    "qwen_image_layered": ("QwenImage", QWEN_IMAGE_LAYERED, CONTEXT, (1, 16, 3, 8, 8)),
}
"""family: class in comfy.supported_models, unet_config, text width, latent shape (b c ...)."""
SKIPPING = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
"""SpectralCache Apply: skips two of three steps."""


def randomize(module: torch.nn.Module, seed: int = 0, spread: float = 0.05, norm: float = 0.0) -> None:
    """Small random weights everywhere, the zero-initialised ones too, so that the output depends on everything.

    `norm` is the mean of what the normalisations scale with.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        mean = norm if "norm" in name and parameter.dim() == 1 else 0.0
        parameter.data = mean + torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * spread


def load(family: str, dtype: torch.dtype | None = None) -> tuple[Any, int, tuple[int, ...]]:
    """A ModelPatcher, its text width and a latent shape. `dtype`: as the loader's node is told it, for its weights."""
    if family in UNTRAINED:
        return _through_the_loader("comfy.ldm.flux.model", "Flux", UNTRAINED[family], CONTEXT, (1, 16, 8, 8), dtype)
    if family in LOADED:
        return _through_the_loader(*LOADED[family], dtype)
    if family in BUILT:
        return _from_the_class(*BUILT[family])
    return _from_the_class(*DESCRIBED[family], spread=0.1, norm=1.0)  # so that text, mask and references tell


def _through_the_loader(
    module: str,
    name: str,
    arguments: dict[str, Any],
    text: int,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> tuple[Any, int, tuple[int, ...]]:
    import importlib

    import comfy.ops
    import comfy.sd

    cls = getattr(importlib.import_module(module), name)
    with torch.inference_mode(False):
        model = cls(**arguments, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        randomize(model)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        patcher = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": dtype} if dtype else {})
    assert patcher is not None, f"the host's loader did not recognise the tiny {name}"
    return patcher, text, shape


def _from_the_class(
    name: str, unet_config: dict[str, Any], text: int, shape: tuple[int, ...], **weights: float
) -> tuple[Any, int, tuple[int, ...]]:
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode(False):
        config = getattr(comfy.supported_models, name)({**unet_config, "dtype": torch.float32})
        model = config.get_model({}, device=torch.device("cpu"))
        randomize(model.diffusion_model, **weights)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device), text, shape


class Qwen:
    """The small Qwen-Image: its conditioning and its runs."""

    def __init__(self, host: Any, family: str = "qwen_image") -> None:
        self.host = host
        self.model, self.text, (*_, self.layers, _, _) = load(family)

    @property
    def diffusion_model(self) -> Any:
        return self.model.model.diffusion_model

    @property
    def blocks(self) -> Any:
        return self.diffusion_model.transformer_blocks

    def references(self, *sizes: tuple[int, int], seed: int = 4) -> list[torch.Tensor]:
        """Reference latents: 1 c 1 h w."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, 16, 1, *size, generator=generator) for size in sizes]

    def conditioning(self, seed: int, *sizes: tuple[int, int], tokens: int = 8, **options: Any) -> list[Any]:
        """Random text, b m d = 1 tokens 64, with references of these latent sizes."""
        text = torch.randn(1, tokens, self.text, generator=torch.Generator().manual_seed(seed))
        references = {"reference_latents": self.references(*sizes)} if sizes else {}
        return [[text, references | options]]

    def sample(self, model: Any = None, *, size: tuple[int, int] = (12, 16), batch: int = 1, **options: Any) -> Any:
        """One run through the host's own sampling function: b c t h w."""
        latent = torch.zeros(batch, 16, self.layers, *size)
        sides = {"positive": self.conditioning(1), "negative": self.conditioning(2)}
        return self.host.sample(model or self.model, **{"latent": latent, "steps": 12} | sides | options)

    def counted(self, run: Any) -> tuple[Any, int]:
        """Run, and count the blocks that ran."""
        runs: list[int] = []
        handles = [block.register_forward_hook(lambda *_: runs.append(1)) for block in self.blocks]
        try:
            return run(), len(runs)
        finally:
            for handle in handles:
                handle.remove()

    def check(self, model: Any = None, *, least: int = 6, **options: Any) -> dict[str, Any]:
        """Refusing gates: bit-identical. Skipping: blocks, trace and lanes agree. Returns the skipping run's trace."""
        host, model = self.host, model or self.model
        plain, blocks = self.counted(lambda: self.sample(model, **options))
        refusing = (host.apply(model, threshold=1e-6), host.freqca(model, warmup_steps=100))
        for refused in refusing:
            assert torch.equal(self.sample(refused, **options), plain)
            assert host.trace()["skipped"] == 0 and host.trace()["cache_bytes"] > 0
        for eager in (host.freqca(model, interval=3), host.apply(model, **SKIPPING)):
            out, ran = self.counted(lambda eager=eager: self.sample(eager, **options))
            trace: dict[str, Any] = host.trace()
            assert torch.isfinite(out).all() and not torch.equal(out, plain)
            assert (trace["site"], trace["state"], trace["model"]) == ("trunk", "done", "Qwen-Image"), trace["notes"]
            assert trace["skipped"] >= least and trace["partial"] == 0 and trace["notes"] == [], trace["notes"]
            assert ran * len(trace["evaluations"]) == blocks * trace["computed"]
        return trace


class Wan:
    """The small Wan, two frames of text to video: its conditioning and its runs."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.model, self.text, self.shape = load("wan2.1")
        randomize(self.diffusion_model, spread=0.1, norm=1.0)

    @property
    def diffusion_model(self) -> Any:
        return self.model.model.diffusion_model

    @property
    def blocks(self) -> Any:
        return self.diffusion_model.blocks

    def conditioning(self, seed: int) -> list[Any]:
        """Random text, b m d = 1 8 4096."""
        return [[torch.randn(1, 8, self.text, generator=torch.Generator().manual_seed(seed)), {}]]

    def sample(self, model: Any = None, **options: Any) -> torch.Tensor:
        """One run through the host's own sampling function: b c t h w."""
        sides = {"positive": self.conditioning(1), "negative": self.conditioning(2)}
        latent = torch.zeros(self.shape)
        out: torch.Tensor = self.host.sample(model or self.model, **{"latent": latent, "steps": 7} | sides | options)
        return out
