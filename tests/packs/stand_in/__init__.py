"""Test-only node pack: prompts for the stand-in models, which have no text encoder, and small Qwen-Images.

ComfyUI's loader fixes Qwen-Image's dimensions, so small ones have to come from nodes of their own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from .words import conditioning

WEIGHTS = Path(__file__).resolve().parents[3] / "bench" / "weights"
TINY = Path(__file__).resolve().parents[2] / "host" / "tiny.py"


class StandInPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralCacheStandInPrompt",
            display_name="Stand-in Prompt (tests only)",
            category="SpectralCache/tests",
            description="Conditioning for the small test model in bench/weights. Of no use with any other model.",
            inputs=[
                io.String.Input(
                    "text",
                    default="a light bulb on dusk",
                    tooltip="A caption the test model knows (bench/weights/README.md). Empty: unconditional.",
                )
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        tokens, pooled = conditioning(text)
        return io.NodeOutput([[tokens, {"pooled_output": pooled}]])


class StandInEditPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralCacheStandInEditPrompt",
            display_name="Stand-in Edit Prompt (tests only)",
            category="SpectralCache/tests",
            description="What TextEncodeQwenImageEditPlus gives: a prompt with its picture as reference latent.",
            inputs=[
                io.String.Input("text", default="", tooltip="A caption. Empty: unconditional."),
                io.Vae.Input("vae", tooltip="Encodes the picture."),
                io.Image.Input("image", tooltip="The picture to edit."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, vae: object, image: object) -> io.NodeOutput:
        tokens, _ = conditioning(text)
        reference = vae.encode(image[..., :3]).unsqueeze(2)  # b c 1 h w, as Qwen-Image's own autoencoder has it
        return io.NodeOutput([[tokens, {"reference_latents": [reference]}]])


class StandInQwen(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralCacheStandInQwen",
            display_name="Stand-in Qwen-Image (tests only)",
            category="SpectralCache/tests",
            description="Qwen-Image's own class at small dimensions with random weights. It makes noise, no pictures.",
            inputs=[
                io.Combo.Input(
                    "family",
                    options=["qwen_image", "qwen_image_2511", "qwen_image_layered"],
                    tooltip="Which member of the family.",
                )
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, family: str) -> io.NodeOutput:
        spec = importlib.util.spec_from_file_location("spectralcache_tiny", TINY)
        tiny = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tiny)
        return io.NodeOutput(tiny.load(family)[0])


class StandInTrainedQwen(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpectralCacheStandInTrainedQwen",
            display_name="Trained small Qwen-Image (tests only)",
            category="SpectralCache/tests",
            description="Qwen-Image's own class at small dimensions, trained by `python dev.py train qwen`.",
            inputs=[
                io.String.Input(
                    "file", default="emoji_qwen.safetensors", tooltip="Weights in bench/weights, or a whole path."
                )
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from . import trained_qwen

        return io.NodeOutput(trained_qwen.load(WEIGHTS / file))


class StandInExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [StandInPrompt, StandInEditPrompt, StandInQwen, StandInTrainedQwen]


async def comfy_entrypoint() -> StandInExtension:
    return StandInExtension()
