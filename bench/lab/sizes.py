"""Models with random weights for tables of speed: FLUX of moderate width for a CPU, FLUX.1 and Qwen-Image as they are.

Speed does not depend on what the weights are, only decisions do; the settings that are timed leave little to decide.
The real dimensions are for a GPU: FLUX.1 takes 24 GB in bf16, Qwen-Image 41 GB. With fewer blocks (`reduced`) the very
same code runs on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache_core.types import Grid

SPREAD = 0.02
"""Standard deviation of the random weights: small enough for every width here to stay finite."""
HEAD = 128
"""Width of an attention head in all of these."""
PATCH = 2
"""Latent pixels along each side of a token."""
MOST_ON_CPU = 8
"""Gigabytes of weights that a CPU is asked to run."""


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
    def grid(self) -> Grid:
        """The image tokens' grid, as the architecture's file has it: frames, where there are any, then h w."""
        *frames, height, width = self.latent[2:]
        return (*frames, -(-height // PATCH), -(-width // PATCH))

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return math.prod(self.grid)

    @property
    def doubles(self) -> int:
        """Double-stream blocks."""
        return int(self.config["num_layers" if self.family == "qwen_image" else "depth"])

    @property
    def singles(self) -> int:
        """Single-stream blocks; Qwen-Image has none."""
        return int(self.config.get("depth_single_blocks", 0))

    @property
    def gigabytes(self) -> float:
        """The blocks' weights. A double block has two streams of modulation (6 d²), attention (4 d²) and MLP (8 d²);
        a single one 3, 4 and 8.
        """
        return (36 * self.doubles + 15 * self.singles) * self.hidden**2 * self.dtype.itemsize / 1e9

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
        "num_heads": hidden // HEAD,
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


QWEN = {"image_model": "qwen_image", "num_layers": 60, "attention_head_dim": HEAD, "num_attention_heads": 24,
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


def reduced(
    size: Size, double: int | None = None, single: int | None = None, side: int | None = None, hidden: int | None = None
) -> Size:
    """A real model with fewer blocks, a smaller picture, or another width (a multiple of 128); None: as it is."""
    config = dict(size.config)
    if double is not None:
        config["num_layers" if size.family == "qwen_image" else "depth"] = double
    if single is not None:
        config["depth_single_blocks"] = single
    if hidden is not None and size.family == "qwen_image":
        config["num_attention_heads"] = hidden // HEAD
    elif hidden is not None:
        config |= {"hidden_size": hidden, "num_heads": hidden // HEAD}
    latent = size.latent if side is None else (*size.latent[:-2], side, side)
    made = replace(size, config=config, latent=latent)
    return made if made == size else replace(made, name=_reduced_name(made))


def full(size: Size) -> Size:
    """The real model that a size is a part of."""
    return next(known for known in REAL.values() if known.family == size.family)


def _reduced_name(size: Size) -> str:
    whole = full(size)
    blocks = f"{size.doubles} of {whole.doubles} blocks"
    if whole.singles:
        blocks = f"{size.doubles} double + {size.singles} single blocks of {whole.doubles} + {whole.singles}"
    name = whole.name.split(" at ")[0]
    width = f"{name}'s width" if size.hidden == whole.hidden else f"{name} at width {size.hidden}"
    return f"{width}, {blocks}, random weights, bfloat16"


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Small random weights everywhere, the zero-initialised ones too, in place: one weight more at a time is held."""
    for parameter in module.parameters():
        generator = torch.Generator(parameter.device).manual_seed(seed)
        values = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
        parameter.data.copy_(values.mul_(SPREAD))
        seed += 1


def build(size: Size, device: str) -> Any:
    """A ModelPatcher. In float32 through the host's own loader; the real widths, whose weights a loader would hold
    twice, from the host's class, on the device at once.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _loaded(size, device) if size.dtype == torch.float32 else _from_class(size)


def _loaded(size: Size, device: str) -> Any:
    import comfy.ops
    import comfy.sd
    from comfy.ldm.flux.model import Flux

    model = Flux(**_known(size.config), dtype=size.dtype, device=device, operations=comfy.ops.disable_weight_init)
    randomize(model)
    patcher = comfy.sd.load_diffusion_model_state_dict(model.state_dict(), model_options={"dtype": size.dtype})
    if patcher is None:
        raise RuntimeError("ComfyUI's loader did not recognise the random FLUX")
    return patcher


def _from_class(size: Size) -> Any:
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    place = comfy.model_management.get_torch_device()
    if size.family == "flux":
        config = comfy.supported_models.Flux({"image_model": "flux", **_known(size.config), "dtype": size.dtype})
    else:
        config = comfy.supported_models.QwenImage({**size.config, "dtype": size.dtype})
    model = config.get_model({}, device=place)
    randomize(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=place, offload_device=torch.device("cpu"))


def _known(config: dict[str, Any]) -> dict[str, Any]:
    """Without what an older host's FLUX lacks."""
    from comfy.ldm.flux.model import FluxParams

    return {name: value for name, value in config.items() if name in FluxParams.__annotations__}


def conditioning(size: Size, seed: int) -> list[Any]:
    """Random text, as wide as the model wants it."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, size.text, size.context, generator=generator)
    extra = {"pooled_output": torch.randn(1, size.pooled, generator=generator)} if size.pooled else {}
    return [[text, extra]]
