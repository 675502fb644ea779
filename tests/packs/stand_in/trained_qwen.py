"""The trained small Qwen-Image (bench/train) in the host's own class, whose loader fixes the real one's dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch

HEAD = 128


class FluxLatents(comfy.latent_formats.Flux):
    """FLUX's scale and shift, as the small autoencoder has them, on latents with a frame, as Qwen-Image wants them."""

    latent_dimensions = 3


def load(path: Path) -> Any:
    """A ModelPatcher; dimensions from the weights."""
    weights = comfy.utils.load_torch_file(str(path))
    hidden, text = weights["txt_in.weight"].shape
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image",
            "num_layers": 1
            + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks.")),
            "attention_head_dim": HEAD,
            "num_attention_heads": hidden // HEAD,
            "joint_attention_dim": text,
            "dtype": torch.float32,
        }
    )
    config.latent_format = FluxLatents()
    device = torch.device("cpu")
    with torch.inference_mode(False):
        model = config.get_model({}, device=device)
        model.diffusion_model.load_state_dict({name: value.float() for name, value in weights.items()})
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
