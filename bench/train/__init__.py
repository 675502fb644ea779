"""The trainer of the small models. `python dev.py train` starts it; nothing of the pack imports it.

Read in this order: captions and pictures (what is shown), latents and autoencoder (in which space), flux and qwen (the
transformers), flow (what they learn), optimiser and loop (how), recipes (how long), checks (what came of it).
"""
