"""Tiny models with random weights, of every family that the site model is shown on. Needs the host on `sys.path`.

Where the host's loader derives the dimensions from the weights, the model goes through that loader (LOADED); the others
are built from the host's own class and configuration at small dimensions (BUILT).
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
FLUX2 = FLUX | {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "mlp_ratio": 3.0,
    "qkv_bias": False,
    "ops_bias": False,
    "guidance_embed": True,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
}
HUNYUAN_VIDEO = FLUX | {
    "vec_in_dim": 768,
    "patch_size": [1, 2, 2],
    "theta": 256,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
WAN = {
    "model_type": "t2v",
    "dim": HIDDEN,
    "ffn_dim": 256,
    "text_dim": 4096,
    "num_heads": 1,
    "num_layers": 2,
}
SD3 = {
    "input_size": None,
    "in_channels": 16,
    "depth": 2,
    "adm_in_channels": CONTEXT,
    "num_patches": 64 * 64,
    "pos_embed_max_size": 64,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CONTEXT, "out_features": HIDDEN},
    },
}
NEXT_DIT = {
    "image_model": "lumina2",
    "in_channels": 16,
    "dim": 96,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [16, 16, 16],
    "axes_lens": [300, 512, 512],
    "cap_feat_dim": CONTEXT,
    "qk_norm": True,
}
CHROMA = FLUX | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": HIDDEN,
    "hidden_dim": 128,
    "n_layers": 1,
    "txt_ids_dims": [],
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "num_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": CONTEXT,
}
LOADED = {
    "flux2": ("comfy.ldm.flux.model", "Flux", FLUX2, CONTEXT, (1, 128, 6, 8)),
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideo", HUNYUAN_VIDEO, CONTEXT, (1, 16, 2, 8, 8)),
    "wan2.1": ("comfy.ldm.wan.model", "WanModel", WAN, 4096, (1, 16, 2, 8, 8)),
    "sd3": ("comfy.ldm.modules.diffusionmodules.mmdit", "MMDiT", SD3, CONTEXT, (1, 16, 8, 8)),
}
"""family: module, class, arguments, text width, latent shape (b c ...)."""
BUILT = {
    "next_dit": ("Lumina2", NEXT_DIT, CONTEXT, (1, 16, 8, 8)),
    "chroma": ("Chroma", CHROMA, CONTEXT, (1, 16, 8, 8)),
    "qwen_image": ("QwenImage", QWEN_IMAGE, CONTEXT, (1, 16, 1, 8, 8)),
}
"""family: class in comfy.supported_models, unet_config, text width, latent shape (b c ...)."""


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Small random weights everywhere, the zero-initialised ones too, so that the output depends on everything."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.05


def load(family: str) -> tuple[Any, int, tuple[int, ...]]:
    """A ModelPatcher, its text width and a latent shape."""
    if family in LOADED:
        return _through_the_loader(*LOADED[family])
    return _from_the_class(*BUILT[family])


def _through_the_loader(
    module: str, name: str, arguments: dict[str, Any], text: int, shape: tuple[int, ...]
) -> tuple[Any, int, tuple[int, ...]]:
    import importlib

    import comfy.ops
    import comfy.sd

    cls = getattr(importlib.import_module(module), name)
    with torch.inference_mode(False):
        model = cls(**arguments, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        randomize(model)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        patcher = comfy.sd.load_diffusion_model_state_dict(weights)
    assert patcher is not None, f"the host's loader did not recognise the tiny {name}"
    return patcher, text, shape


def _from_the_class(
    name: str, unet_config: dict[str, Any], text: int, shape: tuple[int, ...]
) -> tuple[Any, int, tuple[int, ...]]:
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode(False):
        config = getattr(comfy.supported_models, name)({**unet_config, "dtype": torch.float32})
        model = config.get_model({}, device=torch.device("cpu"))
        randomize(model.diffusion_model)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device), text, shape
