"""Graphs in ComfyUI's API format for the stand-in model: what the demo and the host tests send to ``/prompt``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]

MODEL_FILE = "emoji_flux.safetensors"
VAE_FILE = "emoji_taef1.safetensors"
TRAINED_SIZE, TRAINED_SHIFT = 192, 1.62

AUTO, APPLY, FREQCA_APPLY = "SpectralCacheAutoApply", "SpectralCacheApply", "SpectralCacheFreqCaApply"
FEB_APPLY = "SpectralCacheFEBApply"

METHODS = {AUTO: "auto", APPLY: "spectralcache", FREQCA_APPLY: "freqca", FEB_APPLY: "feb_cache"}


def defaults(apply: str) -> dict[str, Any]:
    """What an Apply node's inputs are set to, from its method's one statement. ComfyUI's API takes no defaults: a graph
    has to name every required input.
    """
    return dict(_core().methods()[METHODS[apply]].defaults)


def _core() -> Any:
    """`cache_core`, also where the repository's root is not on `sys.path`."""
    name = "cache_core"
    if name not in sys.modules:
        folder = Path(__file__).resolve().parents[2] / name
        places = [str(folder)]
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=places)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass(frozen=True)
class Picture:
    """One picture to make. Two equal ones give the same pixels, so it can key a table of what was already made."""

    prompt: str
    cfg: float = 1.0
    steps: int = 28
    seed: int = 1
    width: int = TRAINED_SIZE
    height: int = TRAINED_SIZE
    batch: int = 1
    sampler: str = "euler"
    scheduler: str = "simple"
    denoise: float = 1.0
    shift: float = TRAINED_SHIFT


def uncached(picture: Picture) -> Graph:
    """The plain graph, without any node of this pack. Node ids: model, shift, positive, ..., sampler, decode, save."""
    return {
        "model": node("UNETLoader", unet_name=MODEL_FILE, weight_dtype="default"),
        "shift": node("ModelSamplingAuraFlow", model=link("model"), shift=picture.shift),
        "positive": node("SpectralCacheStandInPrompt", text=picture.prompt),
        "negative": node("SpectralCacheStandInPrompt", text=""),
        "latent": node("EmptySD3LatentImage", width=picture.width, height=picture.height, batch_size=picture.batch),
        "sampler": node(
            "KSampler",
            model=link("shift"),
            positive=link("positive"),
            negative=link("negative"),
            latent_image=link("latent"),
            seed=picture.seed,
            steps=picture.steps,
            cfg=picture.cfg,
            sampler_name=picture.sampler,
            scheduler=picture.scheduler,
            denoise=picture.denoise,
        ),
        "vae": node("VAELoader", vae_name=VAE_FILE),
        "decode": node("VAEDecode", samples=link("sampler"), vae=link("vae")),
        "save": node("SaveImage", images=link("decode"), filename_prefix="spectralcache"),
    }


def cached(picture: Picture, settings: Mapping[str, Any] | None = None, apply: str = APPLY) -> Graph:
    """The plain graph with an Apply node (id apply) before the sampler and Cache Stats (id stats) after it."""
    graph = uncached(picture)
    graph["apply"] = node(apply, model=link("shift"), **{**defaults(apply), **(settings or {})})
    graph["sampler"]["inputs"]["model"] = link("apply")
    graph["stats"] = node("SpectralCacheStats", model=link("apply"), after=link("sampler"))
    return graph


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def link(source: str, output: int = 0) -> list[Any]:
    return [source, output]
