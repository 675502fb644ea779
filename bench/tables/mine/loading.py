"""The user's own files through the host's own loader nodes, and from them a Painter."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.host.provision import say
from bench.tables.mine.families import OWN, Family, family_of
from cache_core import __file__ as core
from cache_core.metrics import WINDOW

if TYPE_CHECKING:
    from bench.lab import Lab
    from bench.lab.painter import Encode, Painter

DUAL, TRIPLE = 2, 3
END = 1 << 20
"""Bytes of a file's beginning and end that tell it from others, with its size: whole ones have gigabytes."""


class Unusable(Exception):
    """What was asked for cannot be measured. The message names the option and the way out."""


@dataclass(frozen=True, slots=True)
class Files:
    """What the command line names: files, or names as the host's loaders list them."""

    unet: str = ""
    clip: tuple[str, ...] = ()
    vae: str = ""
    checkpoint: str = ""
    clip_type: str = ""
    weight_dtype: str = "default"


class Loaders:
    """The host's loader nodes, with the user's folders."""

    def __init__(self) -> None:
        self.nodes: Any = importlib.import_module("nodes")
        self.paths: Any = importlib.import_module("folder_paths")
        self.host = Path(os.environ["COMFYUI_PATH"])
        extra = self.host / "extra_model_paths.yaml"
        if extra.exists():
            importlib.import_module("utils.extra_config").load_extra_path_config(str(extra))
        self.found: list[Path] = []

    def name(self, option: str, kind: str, given: str) -> str:
        """The name by which a loader knows a file, wherever it lies."""
        path = Path(given).expanduser()
        if path.is_file():
            self.paths.add_model_folder_path(kind, str(path.resolve().parent), is_default=True)
            self.found.append(path.resolve())
            return path.name
        full = self.paths.get_full_path(kind, given)
        if full is None:
            there = ", ".join(self.paths.get_filename_list(kind)[:12]) or "nothing"
            raise Unusable(
                f"--{option}: {given} is no file, and none of {kind} in {self.host} (there: {there}); give a path"
            )
        self.found.append(Path(full))
        return given

    def load(self, files: Files) -> tuple[Any, Any, Any]:
        """(model, clip, vae); clip and vae may be None."""
        model = clip = vae = None
        if files.checkpoint:
            name = self.name("checkpoint", "checkpoints", files.checkpoint)
            model, clip, vae = self.nodes.CheckpointLoaderSimple().load_checkpoint(name)[:3]
        if files.unet:
            name = self.name("unet", "diffusion_models", files.unet)
            (model,) = self.nodes.UNETLoader().load_unet(name, files.weight_dtype)
        if files.vae:
            (vae,) = self.nodes.VAELoader().load_vae(self.name("vae", "vae", files.vae))
        return model, clip, vae

    def text_encoder(self, given: Sequence[str], kind: str) -> Any:
        """One, two or three files, as the host's loaders take them."""
        names = [self.name("clip", "text_encoders", each) for each in given]
        if len(names) == 1:
            return self.nodes.CLIPLoader().load_clip(names[0], type=kind)[0]
        if len(names) == DUAL:
            return self.nodes.DualCLIPLoader().load_clip(*names, type=kind)[0]
        if len(names) == TRIPLE:
            triple = importlib.import_module("comfy_extras.nodes_sd3").TripleCLIPLoader
            return triple.execute(*names).args[0]
        raise Unusable(f"--clip: {len(names)} files; ComfyUI's loaders take one, two or three")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The user's model and what goes with it, before anything is encoded."""

    family: Family
    model: Any
    clip: Any
    vae: Any
    files: tuple[Path, ...]


def load(lab: Lab, files: Files) -> Loaded:
    """Through the host's loaders. Raises `Unusable` with the way out."""
    loaders = Loaders()
    try:
        model, clip, vae = loaders.load(files)
        if model is None:
            raise Unusable("no model: give --unet FILE, or --checkpoint FILE")
        family = family_of(model)
        if files.clip:
            kind = files.clip_type or family.clip
            if not kind:
                raise Unusable(f"--clip-type: say which, as in ComfyUI's CLIPLoader; unknown for {family.name}")
            clip = loaders.text_encoder(files.clip, kind)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise Unusable(f"ComfyUI's loaders: {files.unet or files.checkpoint}: {error}") from error
    if vae is None or vae.first_stage_model is None:  # the host's checkpoint loader gives an empty one
        raise Unusable("no decoder: give --vae FILE")
    if clip is None and family.name not in OWN:
        raise Unusable("no text encoder: give --clip FILE (FLUX.1: --clip clip_l.safetensors t5xxl_fp16.safetensors)")
    return Loaded(family, model, clip, vae, tuple(loaders.found))


def encoder(loaded: Loaded, guidance: float | None, prompts: Sequence[str]) -> Encode:
    """Every prompt is encoded now: the text encoder need not stay in memory."""
    from bench.lab.studio import captions

    if loaded.clip is None:
        return captions()
    nodes, helpers = importlib.import_module("nodes"), importlib.import_module("node_helpers")
    made = {}
    for text in dict.fromkeys([*prompts, ""]):
        (conditioning,) = nodes.CLIPTextEncode().encode(loaded.clip, text)
        if guidance is not None:
            conditioning = helpers.conditioning_set_values(conditioning, {"guidance": guidance})
        made[text] = conditioning
    return made.__getitem__


def painter(lab: Lab, loaded: Loaded, family: Family, prompts: Sequence[str]) -> Painter:
    """`family` carries the settings that are used, whatever the model's own are."""
    from bench.lab.painter import Painter

    latent = loaded.model.get_model_object("latent_format")
    if latent.latent_dimensions not in (2, 3):
        raise Unusable(f"{family.name} makes no pictures: its latents have {latent.latent_dimensions} dimension")
    scale = latent.spacial_downscale_ratio
    if min(family.size) < WINDOW * scale:
        raise Unusable(f"--size: too small to be compared with this model; give {WINDOW * scale} pixels a side or more")
    width, height = (side // scale for side in family.size)
    frames = (1,) * (latent.latent_dimensions - 2)
    shape = (1, latent.latent_channels, *frames, height, width)
    model = loaded.model if family.shift is None else shifted(loaded.model, family.shift)
    settings = repr((replace(family, steps=0, cfg=0.0), lab.about()["machine"], shape))
    identity = " ".join([*map(fingerprint, loaded.files), settings, models_code()])
    identity = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Painter(lab, model, loaded.vae, encoder(loaded, family.guidance, prompts), shape, identity)


def shifted(model: Any, shift: float) -> Any:
    """The flow schedule with this shift, as ModelSamplingAuraFlow and ModelSamplingSD3 set it."""
    flow = importlib.import_module("comfy.model_sampling")
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, flow.CONST):
        raise Unusable("--shift: this model's schedule has none; leave it out")
    multiplier = sampling.multiplier if isinstance(sampling, flow.ModelSamplingDiscreteFlow) else 1.0
    node = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3
    return node().patch(model, shift, multiplier)[0]


def fingerprint(file: Path) -> str:
    """Size and both ends."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        ends = handle.read(END)
        handle.seek(max(size - END, 0))
        ends += handle.read(END)
    return f"{size} {hashlib.sha256(ends).hexdigest()}"


def models_code() -> str:
    """How the pack looks at models: runs of a cache depend on it."""
    files = sorted((Path(core).parent / "models").glob("*.py"))
    return hashlib.sha256("\n".join(file.read_text("utf-8") for file in files).encode()).hexdigest()


def free(lab: Lab) -> None:
    """After a run that ended in the middle."""
    management = lab.comfy.model_management
    management.unload_all_models()
    management.soft_empty_cache()


def require(device: str) -> None:
    """Raises `Unusable` where the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda: torch sees no GPU; leave it out, or use the Python that runs your ComfyUI")
    if device == "cpu":
        say("On the processor: fine for small models, hopeless for large ones (--device cuda).")
