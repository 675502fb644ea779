"""Models with random weights for `bench speed`: FLUX of moderate width for a CPU, FLUX.1 and Qwen-Image as they are.

Speed does not depend on what the weights are, only decisions do; the settings that are timed leave little to decide.
The real dimensions are for a GPU: FLUX.1 takes 24 GB in bf16, Qwen-Image 41 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SPREAD = 0.02
"""Standard deviation of the random weights: small enough for every width here to stay finite."""


@dataclass(frozen=True, slots=True)
class Size:
    """One model to time. `latent` is b c h w; `text` tokens of width `context`; `pooled` 0: the family has none."""

    name: str
    family: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    text: int
    context: int
    pooled: int
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        """Image tokens: the latent in patches of 2 by 2."""
        return self.latent[-2] * self.latent[-1] // 4

    @property
    def hidden(self) -> int:
        """The trunk's width."""
        known = self.config.get("hidden_size")
        return int(known or self.config["num_attention_heads"] * self.config["attention_head_dim"])


def flux(hidden: int, double: int, single: int, context: int, pooled: int, guidance: bool) -> dict[str, Any]:
    """Arguments of the host's Flux class."""
    return {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": pooled,
        "context_in_dim": context,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": hidden // 128,
        "depth": double,
        "depth_single_blocks": single,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": guidance,
        "txt_ids_dims": [],
    }


def moderate(hidden: int, double: int, single: int, side: int) -> Size:
    """FLUX's architecture at a size that a CPU runs in seconds."""
    name = f"FLUX architecture, hidden {hidden}, {double} double + {single} single blocks, random weights, float32"
    config = flux(hidden, double, single, 64, 64, guidance=False)
    return Size(name, "flux", config, (1, 16, side, side), 64, 64, 64, torch.float32)


QWEN = {"image_model": "qwen_image", "num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24,
        "joint_attention_dim": 3584}  # fmt: skip
REAL = {
    "flux1": Size(
        "FLUX.1 at its real dimensions, random weights, bfloat16",
        "flux",
        flux(3072, 19, 38, 4096, 768, guidance=True),
        (1, 16, 128, 128),
        512,
        4096,
        768,
        torch.bfloat16,
    ),
    "qwen-image": Size(
        "Qwen-Image at its real dimensions, random weights, bfloat16",
        "qwen_image",
        QWEN,
        (1, 16, 1, 128, 128),
        256,
        3584,
        0,
        torch.bfloat16,
    ),
}


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Small random weights everywhere, the zero-initialised ones too."""
    for parameter in module.parameters():
        generator = torch.Generator(parameter.device).manual_seed(seed)
        values = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
        parameter.data = (values * SPREAD).to(parameter.dtype)
        seed += 1


def build(size: Size, device: str) -> Any:
    """A ModelPatcher: FLUX through the host's own loader, Qwen-Image from its class."""
    with torch.inference_mode(False), torch.no_grad():
        return _loaded(size, device) if size.family == "flux" else _from_class(size, device)


def _loaded(size: Size, device: str) -> Any:
    import comfy.ops
    import comfy.sd
    from comfy.ldm.flux.model import Flux, FluxParams

    known = FluxParams.__annotations__  # older hosts lack some
    config = {name: value for name, value in size.config.items() if name in known}
    model = Flux(**config, dtype=size.dtype, device=device, operations=comfy.ops.disable_weight_init)
    randomize(model)
    patcher = comfy.sd.load_diffusion_model_state_dict(model.state_dict(), model_options={"dtype": size.dtype})
    if patcher is None:
        raise RuntimeError("ComfyUI's loader did not recognise the random FLUX")
    return patcher


def _from_class(size: Size, device: str) -> Any:
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.QwenImage({**size.config, "dtype": size.dtype})
    model = config.get_model({}, device=torch.device(device))
    randomize(model.diffusion_model)
    place = torch.device(device)
    return comfy.model_patcher.ModelPatcher(model, load_device=place, offload_device=torch.device("cpu"))


def conditioning(size: Size, seed: int) -> list[Any]:
    """Random text, as wide as the model wants it."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, size.text, size.context, generator=generator)
    extra = {"pooled_output": torch.randn(1, size.pooled, generator=generator)} if size.pooled else {}
    return [[text, extra]]
