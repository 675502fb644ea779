"""Test-only node pack: a prompt for the stand-in model of ``bench/weights``, which has no text encoder."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .words import conditioning


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
                    default="a large red circle on grass",
                    tooltip="A caption the test model knows (bench/weights/README.md). Empty: unconditional.",
                )
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        tokens, pooled = conditioning(text)
        return io.NodeOutput([[tokens, {"pooled_output": pooled}]])


class StandInExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [StandInPrompt]


async def comfy_entrypoint() -> StandInExtension:
    return StandInExtension()
