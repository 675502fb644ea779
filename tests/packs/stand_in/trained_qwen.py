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
UNREAD = ("txt_mlp", "attn.to_add_out")
"""Of the last block: they make the text that nothing reads, and the file leaves them out."""


class FluxLatents(comfy.latent_formats.Flux):
    """FLUX's scale and shift, as the small autoencoder has them, on latents with a frame, as Qwen-Image wants them."""

    latent_dimensions = 3


def load(path: Path) -> Any:
    """A ModelPatcher; dimensions from the weights."""
    weights = comfy.utils.load_torch_file(str(path))
    hidden, text = weights["txt_in.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image",
            "num_layers": layers,
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
        unread = tuple(f"transformer_blocks.{layers - 1}.{part}." for part in UNREAD)
        own = model.diffusion_model.state_dict()
        zeros = {name: torch.zeros_like(value) for name, value in own.items() if name.startswith(unread)}
        model.diffusion_model.load_state_dict({**zeros, **{name: value.float() for name, value in weights.items()}})
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
