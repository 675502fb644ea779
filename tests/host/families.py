"""Every family of models that the host ships, at tiny dimensions with random weights: one entry a family.

An entry is the class of comfy.supported_models, the arguments of its diffusion model where they differ from the
default, a latent's shape, and the shapes of what its conditioning holds. Which sizes a checkpoint could have does not
matter here: the code that runs is the host's own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

Shape = tuple[int, ...]
TEXT = (1, 8, 64)
"""The shape of a prompt's embedding, where an entry says no other: b m d."""
SEEN = SimpleNamespace(penultimate_hidden_states=torch.linspace(-1, 1, 5 * 1280).view(1, 5, 1280))
"""What CLIP's vision model hands on of a picture, five tokens of it."""


@dataclass(frozen=True)
class Family:
    """config: arguments of the diffusion model; latent: b c ..., or one shape a part of a nested latent; tensors and
    constants: what the conditioning holds beside the text; weights: what the class reads from a checkpoint.
    """

    model: str
    config: Mapping[str, Any]
    latent: Shape | tuple[Shape, ...]
    text: Shape = TEXT
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    weights: Callable[[], dict[str, torch.Tensor]] = dict

    def patcher(self) -> Any:
        """A ModelPatcher."""
        import comfy.model_patcher
        import comfy.supported_models

        device = torch.device("cpu")
        with torch.inference_mode(False):
            with nan_where_empty():
                model = self._model(getattr(comfy.supported_models, self.model), dict(self.config))
            randomize(model.diffusion_model)
        return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)

    def _model(self, cls: Any, config: dict[str, Any]) -> Any:
        """The host's class, without the arguments that an older host's class does not know."""
        while True:
            made = cls({**config, "dtype": torch.float32})
            made.unet_config.update(config)  # the class knows the sizes of its checkpoints better
            try:
                return made.get_model(self.weights(), device=torch.device("cpu"))
            except TypeError as error:
                unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if unknown is None or unknown[1] not in config:
                    raise
                del config[unknown[1]]

    def conditioning(self, seed: int) -> list[Any]:
        """Random conditioning; the seed tells one prompt from another."""
        generator = torch.Generator().manual_seed(seed)
        made = {name: torch.randn(shape, generator=generator) for name, shape in self.tensors.items()}
        return [[torch.randn(self.text, generator=generator), {**made, **self.constants}]]

    def empty(self) -> torch.Tensor:
        """An empty latent."""
        if isinstance(self.latent[0], int):
            return torch.zeros(self.latent)
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([torch.zeros(shape) for shape in self.latent])


@contextlib.contextmanager
def nan_where_empty() -> Iterator[None]:
    """While open, torch.empty gives NaN instead of what the memory held before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def randomize(module: torch.nn.Module) -> None:
    """Small random weights everywhere, the zero-initialised ones too, so that the output depends on everything.

    Some classes have buffers that only a checkpoint fills (the places of SD 3.5, the frequencies of Stable Audio). They
    are NaN where the module was made under nan_where_empty, and would otherwise be what the memory held before: mostly
    zeros, in one process of some dozen not a finite number.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        mean = 1.0 if "norm" in name and parameter.dim() == 1 and not name.endswith("bias") else 0.0
        parameter.data = mean + torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.05
    for buffer in module.buffers():
        if buffer.isnan().any():
            buffer.normal_(std=0.05, generator=generator)


UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "image_size": 32,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 64,
    "num_heads": 8,
    "adm_in_channels": None,
}
SDXL = UNET | {
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 32,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD3 = {
    "input_size": None,
    "in_channels": 16,
    "depth": 3,
    "adm_in_channels": 64,
    "num_patches": 16 * 16,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 192}},
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
}
FLUX1 = FLUX | {"guidance_embed": True, "txt_ids_dims": []}
FLUX2 = FLUX1 | {
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "axes_dim": [16, 16, 16, 16],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
}
CHROMA = FLUX | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 64,
    "n_layers": 1,
    "txt_ids_dims": [],
}
RADIANCE = CHROMA | {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 0,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
HUNYUAN_VIDEO = FLUX | {
    "patch_size": [1, 2, 2],
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
    "guidance_embed": True,
}
HUNYUAN_VIDEO_15 = HUNYUAN_VIDEO | {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "guidance_embed": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 64,
    "byt5": True,
    "meanflow_sum": True,
}
HUNYUAN_IMAGE = HUNYUAN_VIDEO | {
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [32, 32],
    "vec_in_dim": None,
    "guidance_embed": False,
    "byt5": True,
}
WAN = {
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 128,
    "text_dim": 64,
    "num_heads": 1,
    "num_layers": 3,
}
LTXV = {
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": 64,
    "num_layers": 3,
}
LUMINA = {
    "in_channels": 16,
    "dim": 96,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [16, 16, 16],
    "axes_lens": [300, 512, 512],
    "cap_feat_dim": 64,
    "qk_norm": True,
}
COSMOS = {
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 8,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 1,
    "crossattn_emb_channels": 64,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}
KANDINSKY = {
    "in_text_dim": 64,
    "in_text_dim2": 64,
    "time_dim": 64,
    "model_dim": 64,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (16, 24, 24),
}
POOLED = {"pooled_output": (1, 64)}
UNPOOLED = {"pooled_output": None}
"""What encoders without a pooled embedding give, and older hosts look up."""
WHOLE = torch.ones(1, 8, dtype=torch.int64)
"""The mask of a prompt without padding."""


def _seconds() -> dict[str, torch.Tensor]:
    """The embedders of a length in seconds, which Stable Audio reads from its checkpoint."""
    from comfy.ldm.audio.embedders import NumberConditioner

    generator = torch.Generator().manual_seed(1)
    state = NumberConditioner(768, min_val=0, max_val=512).state_dict()
    made = {key: torch.randn(value.shape, generator=generator) * 0.05 for key, value in state.items()}
    names = ("seconds_start", "seconds_total")
    return {f"conditioner.conditioners.{name}.{key}": value for name in names for key, value in made.items()}


FAMILIES = {
    "SD 1.5": Family("SD15", UNET, (1, 4, 8, 8)),
    "SD 2": Family(
        "SD20",
        UNET | {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 32},
        (1, 4, 8, 8),
    ),
    "SDXL": Family("SDXL", SDXL, (1, 4, 8, 8), tensors={"pooled_output": (1, 1280)}),
    "SD 1.5 InstructPix2Pix (concatenated channels)": Family(
        "SD15_instructpix2pix", UNET | {"in_channels": 8}, (1, 4, 8, 8), tensors={"concat_latent_image": (1, 4, 8, 8)}
    ),
    "Stable Cascade": Family(
        "Stable_Cascade_C",
        {"c_cond": 64, "c_hidden": [64, 64], "nhead": [1, 1], "blocks": [[1, 1], [1, 1]], "c_clip_text": 64}
        | {"c_clip_text_pooled": 64, "stable_cascade_stage": "c"},
        (1, 16, 8, 8),
        tensors=POOLED,
    ),
    "SD 3.5": Family("SD3", SD3, (1, 16, 8, 8), tensors=POOLED),
    "FLUX.1": Family("Flux", FLUX1, (1, 16, 8, 8), tensors=POOLED),
    "FLUX.1 Fill (concatenated channels)": Family(
        "FluxInpaint",
        FLUX1 | {"in_channels": 96},
        (1, 16, 8, 8),
        tensors=POOLED | {"concat_latent_image": (1, 16, 8, 8), "concat_mask": (1, 1, 8, 8)},
    ),
    "FLUX.2": Family("Flux2", FLUX2, (1, 128, 4, 6), constants=UNPOOLED),
    "LongCat-Image": Family(
        "LongCatImage", FLUX1 | {"vec_in_dim": None, "guidance_embed": False}, (1, 16, 8, 8), constants=UNPOOLED
    ),
    "Chroma": Family("Chroma", CHROMA, (1, 16, 8, 8), constants=UNPOOLED),
    "Chroma Radiance": Family("ChromaRadiance", RADIANCE, (1, 3, 64, 64), constants=UNPOOLED),
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN_VIDEO, (1, 16, 2, 8, 8), tensors=POOLED),
    "HunyuanVideo image to video (concatenated channels)": Family(
        "HunyuanVideoI2V",
        HUNYUAN_VIDEO | {"in_channels": 33},
        (1, 16, 2, 8, 8),
        tensors=POOLED | {"concat_latent_image": (1, 16, 2, 8, 8), "concat_mask": (1, 1, 2, 8, 8)},
    ),
    "HunyuanVideo 1.5": Family(
        "HunyuanVideo15",
        HUNYUAN_VIDEO_15,
        (1, 32, 2, 4, 4),
        tensors=POOLED | {"conditioning_byt5small": (1, 4, 1472)},
    ),
    "HunyuanImage 2.1": Family(
        "HunyuanImage21", HUNYUAN_IMAGE, (1, 64, 4, 4), tensors=POOLED | {"conditioning_byt5small": (1, 4, 1472)}
    ),
    "Wan 2.1": Family("WAN21_T2V", WAN, (1, 16, 2, 8, 8)),
    "Wan 2.1 image to video (concatenated channels)": Family(
        "WAN21_I2V",
        WAN | {"model_type": "i2v", "in_dim": 36},
        (1, 16, 2, 8, 8),
        tensors={"concat_latent_image": (1, 16, 2, 8, 8), "concat_mask": (1, 4, 2, 8, 8)},
        constants={"clip_vision_output": SEEN},
    ),
    "Wan 2.1 VACE": Family(
        "WAN21_Vace", WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, (1, 16, 2, 8, 8)
    ),
    "Wan 2.2 5B": Family("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, (1, 48, 2, 4, 4)),
    "LTX-Video": Family("LTXV", LTXV, (1, 128, 2, 4, 4), constants={"attention_mask": WHOLE}),
    "LTX-2 (audio and video)": Family(
        "LTXAV",
        LTXV
        | {"audio_cross_attention_dim": 64, "audio_attention_head_dim": 32, "audio_num_attention_heads": 2}
        | {"connector_attention_head_dim": 32, "connector_num_attention_heads": 2, "connector_num_layers": 1},
        ((1, 128, 2, 4, 4), (1, 8, 6, 16)),
        text=(1, 128, 128),
    ),
    "Lumina 2": Family("Lumina2", LUMINA, (1, 16, 8, 8)),
    "Z-Image": Family(
        "ZImage",
        LUMINA
        | {"dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0}
        | {"pad_tokens_multiple": 32},
        (1, 16, 8, 8),
    ),
    "HiDream": Family(
        "HiDream",
        {"attention_head_dim": 64, "axes_dims_rope": [32, 16, 16], "caption_channels": [64, 64], "in_channels": 16}
        | {"llama_layers": [0, 1], "num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1}
        | {"out_channels": 16, "patch_size": 2, "text_emb_dim": 64},
        (1, 16, 8, 8),
        tensors=POOLED | {"conditioning_llama3": (1, 2, 8, 64)},
    ),
    "AuraFlow": Family(
        "AuraFlow",
        {"dim": 64, "n_layers": 3, "n_double_layers": 1, "n_heads": 1, "global_conddim": 64, "cond_seq_dim": 64}
        | {"max_seq": 64},
        (1, 4, 8, 8),
    ),
    "PixArt-alpha": Family(
        "PixArtAlpha",
        {"hidden_size": 72, "depth": 2, "num_heads": 2, "caption_channels": 64, "micro_condition": True}
        | {"input_size": 64, "pe_interpolation": 1},
        (1, 4, 40, 32),
        constants={"width": 320, "height": 256},
    ),
    "PixArt-Sigma": Family(
        "PixArtSigma",
        {"hidden_size": 72, "depth": 2, "num_heads": 2, "caption_channels": 64, "micro_condition": False}
        | {"input_size": 64, "pe_interpolation": 1},
        (1, 4, 40, 32),
    ),
    "HunyuanDiT": Family(
        "HunyuanDiT",
        {"hidden_size": 64, "depth": 4, "num_heads": 2, "text_states_dim": 64, "text_states_dim_t5": 64},
        (1, 4, 8, 8),
        text=(1, 77, 64),
        tensors={"conditioning_mt5xl": (1, 256, 64)},
        constants={"attention_mask": torch.ones(1, 77), "attention_mask_mt5xl": torch.ones(1, 256)},
    ),
    "Cosmos": Family(
        "CosmosT2V",
        COSMOS
        | {"block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True}
        | {"extra_per_block_abs_pos_emb_type": "learnable"},
        (1, 16, 2, 8, 8),
    ),
    "Cosmos Predict2": Family("CosmosT2IPredict2", COSMOS, (1, 16, 1, 8, 8)),
    "Cosmos Predict2 image to video (concatenated channels)": Family(
        "CosmosI2VPredict2",
        COSMOS | {"in_channels": 17},
        (1, 16, 2, 8, 8),
        tensors={"concat_mask": (1, 1, 2, 8, 8)},
    ),
    "Mochi": Family(
        "GenmoMochi",
        {"hidden_size_x": 64, "hidden_size_y": 32, "depth": 2, "num_heads": 1, "mlp_ratio_y": 2.0}
        | {"mlp_ratio_x": 192.0}
        | {"learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True}
        | {"timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 64, "t5_token_length": 16},
        (1, 12, 2, 8, 8),
        text=(1, 16, 64),
        constants={"attention_mask": torch.ones(1, 16, dtype=torch.int64)},
    ),
    "ACE-Step": Family(
        "ACEStep",
        {"attention_head_dim": 32, "inner_dim": 64, "num_attention_heads": 2, "num_layers": 2, "mlp_ratio": 2.0}
        | {"text_embedding_dim": 64, "lyric_encoder_vocab_size": 32, "max_position": 64}
        | {"max_width": 64, "ssl_latent_dims": [16, 16]},
        (1, 8, 16, 16),
        constants={"conditioning_lyrics": torch.arange(8)[None]},
    ),
    "ACE-Step 1.5": Family(
        "ACEStep15",
        {"hidden_size": 64, "text_hidden_dim": 64, "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1}
        | {"num_tokenizer_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 64, "intermediate_size": 64}
        | {"encoder_hidden_size": 64, "encoder_intermediate_size": 64, "encoder_num_heads": 1, "fsq_dim": 64},
        (1, 64, 16),
        tensors={"conditioning_lyrics": (1, 8, 64)},
    ),
    "Stable Audio": Family(
        "StableAudio",
        {"audio_model": "dit1.0", "global_cond_dim": 1536, "embed_dim": 64, "depth": 2, "num_heads": 1}
        | {"cond_token_dim": 768, "project_cond_tokens": True},
        (1, 64, 16),
        text=(1, 8, 768),
        weights=_seconds,
    ),
    "Hunyuan3D 2": Family(
        "Hunyuan3Dv2",
        {"context_in_dim": 64, "hidden_size": 64, "num_heads": 1, "depth": 1, "depth_single_blocks": 2},
        (1, 64, 16),
    ),
    "Hunyuan3D 2.1": Family(
        "Hunyuan3Dv2_1",
        {"hidden_size": 64, "context_dim": 64, "depth": 4, "num_heads": 1, "num_moe_layers": 1}
        | {"guidance_cond_proj_dim": None, "num_experts": 2},
        (1, 64, 16),
    ),
    "OmniGen2": Family(
        "Omnigen2",
        {"hidden_size": 96, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"axes_dim_rope": [16, 16, 16], "text_feat_dim": 64, "timestep_scale": 1000.0, "multiple_of": 16},
        (1, 16, 8, 8),
        constants={"attention_mask": WHOLE},
    ),
    "Boogu-Image": Family(
        "Boogu",
        {"hidden_size": 96, "num_layers": 2, "num_double_stream_layers": 1, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (16, 16, 16), "instruction_feat_dim": 64}
        | {"multiple_of": 16},
        (1, 16, 8, 8),
        constants={"attention_mask": WHOLE},
    ),
    "Qwen-Image": Family(
        "QwenImage",
        {"num_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1, "joint_attention_dim": 64},
        (1, 16, 1, 8, 8),
    ),
    "Mage-Flow": Family(
        "MageFlow",
        {"num_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1, "joint_attention_dim": 64},
        (1, 128, 4, 4),
    ),
    "JoyImage": Family(
        "JoyImage",
        {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 64, "num_layers": 2, "mlp_width_ratio": 2.0},
        (1, 16, 1, 8, 8),
    ),
    "Lens": Family(
        "Lens",
        {"num_layers": 2, "num_attention_heads": 1, "enc_hidden_dim": 64, "multi_layer_encoder_feature": False}
        | {"selected_layer_index": (0,)},
        (1, 128, 4, 4),
    ),
    "Krea 2": Family(
        "Krea2",
        {"features": 128, "tdim": 64, "txtdim": 64, "heads": 1, "kvheads": 1, "multiplier": 2, "layers": 2}
        | {"txtlayers": 1, "txtheads": 1, "txtkvheads": 1},
        (1, 16, 8, 8),
    ),
    "Ideogram 4": Family(
        "Ideogram4",
        {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 64, "intermediate_size": 64}
        | {"adaln_dim": 32, "llm_features_dim": 64, "mrope_section": (12, 10, 10)},
        (1, 128, 4, 4),
    ),
    "Kandinsky 5": Family("Kandinsky5", KANDINSKY | {"visual_embed_dim": 132}, (1, 16, 2, 8, 8), tensors=POOLED),
    "Kandinsky 5 Image": Family(
        "Kandinsky5Image", KANDINSKY | {"visual_embed_dim": 64}, (1, 16, 1, 8, 8), tensors=POOLED
    ),
    "ERNIE-Image": Family(
        "ErnieImage",
        {"hidden_size": 64, "num_attention_heads": 1, "num_layers": 2, "ffn_hidden_size": 64, "text_in_dim": 64}
        | {"rope_axes_dim": (16, 24, 24)},
        (1, 128, 4, 4),
    ),
    "CogVideoX": Family(
        "CogVideoX_T2V",
        {"num_attention_heads": 1, "time_embed_dim": 32, "text_embed_dim": 64, "num_layers": 2}
        | {"max_text_seq_length": 8, "use_rotary_positional_embeddings": True},
        (1, 16, 2, 8, 8),
    ),
    "CogVideoX image to video (concatenated channels)": Family(
        "CogVideoX_I2V",
        {"num_attention_heads": 1, "time_embed_dim": 32, "text_embed_dim": 64, "num_layers": 2, "in_channels": 32}
        | {"max_text_seq_length": 8, "use_rotary_positional_embeddings": True},
        (1, 16, 2, 8, 8),
        tensors={"concat_latent_image": (1, 16, 2, 8, 8)},
    ),
    "PixelDiT": Family(
        "PixelDiTT2I",
        {"num_groups": 1, "hidden_size": 64, "pixel_attn_hidden_size": 64, "pixel_num_groups": 1, "patch_depth": 2}
        | {"pixel_depth": 1, "txt_embed_dim": 64, "txt_max_length": 8},
        (1, 3, 64, 64),
    ),
}
