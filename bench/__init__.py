"""Developer tools: a real ComfyUI to run against, the demo, quality and speed tables. The pack never imports this."""
