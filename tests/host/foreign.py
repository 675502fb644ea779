"""Stand-ins for what other packs put around a model: forwards, patches, wrappers, samplers, guiders.

Needs the host on `sys.path`. None is a copy of a pack's code: each has the shape of a fault that users have reported
(test_report_*.py), in words of our own.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

EAGER = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
"""SpectralCache Apply: skips two of three steps."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Apply": ("apply", EAGER),
    "FreqCa": ("freqca", {"interval": 3}),
    "Auto": ("auto", {"speedup": 2.0}),
    "Auto, trunk": ("auto", {"speedup": 2.0, "site": "trunk"}),
}
"""name: how the host fixture attaches it, settings that skip much."""


def attached(host: Any, method: str, model: Any = None) -> Any:
    """A clone of `model` (the small FLUX) with a method that skips much."""
    name, params = METHODS[method]
    return getattr(host, name)(model, **params)


# runs and figures -----------------------------------------------------------------------------------------------------


def simple(host: Any, model: Any, steps: int, scheduler: str = "simple") -> Tensor:
    """The noise levels of a scheduler."""
    sigmas: Tensor = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    return sigmas


def run(
    host: Any,
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    *,
    cfg: float = 1.0,
    positive: Any = None,
    negative: Any = None,
    latent: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    callback: Any = None,
) -> Tensor:
    """One run of a SAMPLER object on these noise levels, as SamplerCustom makes it."""
    latent = torch.zeros(1, 16, 12, 16) if latent is None else latent
    out: Tensor = host.comfy.sample.sample_custom(
        model,
        host.comfy.sample.prepare_noise(latent, seed) if noise is None else noise,
        cfg,
        sampler if hasattr(sampler, "sample") else host.comfy.samplers.KSAMPLER(sampler),
        sigmas,
        positive or host.conditioning(1),
        negative or host.conditioning(2),
        latent,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return out


def guided(host: Any, guider: Any, steps: int, *, sampler: str = "euler", latent: Tensor | None = None) -> Tensor:
    """One run of a guider, as SamplerCustomAdvanced makes it."""
    latent = torch.zeros(1, 16, 12, 16) if latent is None else latent
    noise = host.comfy.sample.prepare_noise(latent, 0)
    sigmas = simple(host, guider.model_patcher, steps)
    out: Tensor = guider.sample(noise, latent, host.comfy.samplers.sampler_object(sampler), sigmas, seed=0)
    return out


def error(out: Tensor, full: Tensor) -> float:
    """Relative distance to the full run."""
    return float((out - full).norm() / full.norm())


def decibels(out: Tensor, full: Tensor) -> float:
    """PSNR of a latent to the full run's, its spread as the peak."""
    worst = float((out - full).square().mean())
    return 200.0 if worst == 0 else float(10 * torch.log10((full.max() - full.min()).square() / worst))


# another pack's forward of FLUX ---------------------------------------------------------------------------------------


class Forward:
    """A pack's own `forward_orig` for FLUX.1 without guidance: the same numbers, block hooks called in its own way.

    call: how it hands a slot's arguments to a hook. between, behind: what it does to the image tokens before the single
    blocks and behind them (extra rows, extra tokens).
    """

    def __init__(
        self,
        call: Callable[..., dict[str, Tensor]],
        between: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
        behind: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.call, self.between, self.behind = call, between, behind

    def __call__(
        self,
        model: Any,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        *_: Any,
        transformer_options: dict[str, Any],
        **__: Any,
    ) -> Tensor:
        from comfy.ldm.flux.layers import timestep_embedding

        hooks = transformer_options.get("patches_replace", {}).get("dit", {})
        img, txt = model.img_in(img), model.txt_in(txt)
        vec = model.time_in(timestep_embedding(timesteps, 256).to(img.dtype)) + model.vector_in(y)
        pe = model.pe_embedder(torch.cat((txt_ids, img_ids), dim=1))
        for i, block in enumerate(model.double_blocks):

            def double(args: dict[str, Any], block: Any = block, txt: Tensor = txt, vec: Tensor = vec) -> Any:
                out = block(img=args["img"], txt=args.get("txt", txt), vec=args.get("vec", vec), pe=pe)
                return {"img": out[0], "txt": out[1]}

            args = {"img": img, "txt": txt, "vec": vec, "pe": pe, "attn_mask": None}
            hook = hooks.get(("double_block", i))
            out = self.call(hook, args, double, transformer_options, "double") if hook else double(args)
            img, txt = out["img"], out["txt"]
        rows = img.shape[0]
        if self.between:
            img, txt, vec = self.between(img, txt, vec)
        ids = torch.cat([pe] * (img.shape[0] // pe.shape[0]))
        if img.shape[1] > ids.shape[2] - txt.shape[1]:  # extra tokens sit where the first ones do
            extra = img.shape[1] + txt.shape[1] - ids.shape[2]
            ids = torch.cat((ids, ids[:, :, :extra]), dim=2)
        joint = torch.cat((txt, img), dim=1)
        for i, block in enumerate(model.single_blocks):

            def single(args: dict[str, Any], block: Any = block, vec: Tensor = vec) -> Any:
                return {"img": block(args["img"], vec=args.get("vec", vec), pe=ids)}

            args = {"img": joint, "vec": vec, "pe": ids, "attn_mask": None}
            hook = hooks.get(("single_block", i))
            joint = (self.call(hook, args, single, transformer_options, "single") if hook else single(args))["img"]
        img = joint[:, txt.shape[1] :]
        if self.behind:
            img = self.behind(img)
        out_: Tensor = model.final_layer(img[:rows], vec[:rows])
        return out_


def modern(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """As the host calls a hook."""
    return hook({**args, "transformer_options": options}, {"original_block": original})


def second_dict(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """As PuLID's newer copies do: the options are in the second dict."""
    return hook(dict(args), {"original_block": original, "transformer_options": options})


def nowhere(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """As older copies do: no options at all."""
    return hook(dict(args), {"original_block": original})


def bare(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """Only the tokens."""
    return hook({"img": args["img"]}, {"original_block": original})


def other_options(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """Options of the pack's own making."""
    mine = {"sigmas": options.get("sigmas"), "block_type": kind}
    return hook({**args, "transformer_options": mine}, {"original_block": original})


def no_options(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """The key is there, and empty."""
    return hook({**args, "transformer_options": None}, {"original_block": original})


def late(hook: Any, args: Any, original: Any, options: Any, kind: str) -> Any:
    """The host's way in the double blocks, the old way in the single ones."""
    return (modern if kind == "double" else nowhere)(hook, args, original, options, kind)


CALLS = {f.__name__: f for f in (second_dict, nowhere, bare, other_options, no_options, late)}


@contextlib.contextmanager
def replaced(model: Any, forward: Forward) -> Iterator[None]:
    """While open, the diffusion model runs this forward."""

    def forward_orig(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **kwargs)

    model.forward_orig = types.MethodType(forward_orig, model)
    try:
        yield
    finally:
        del model.forward_orig


def twice_the_rows(img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Extra rows behind the picture's, as normalised attention guidance has them."""
    return torch.cat((img, img * 0.5)), torch.cat((txt, txt * 0.5)), torch.cat((vec, vec))


def more_tokens(img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Extra tokens behind the picture's, as register or identity tokens are."""
    return torch.cat((img, img[:, :4] * 0.5), dim=1), txt, vec


def guidance_of_rows(img: Tensor) -> Tensor:
    """Uses the extra rows, then they are dropped."""
    first, extra = img.chunk(2)
    return torch.cat((first + 0.1 * (first - extra), extra))


def names(evaluations: Sequence[dict[str, Any]], key: str = "action") -> list[Any]:
    """One column of a trace's evaluations."""
    return [e[key] for e in evaluations]


# pictures that the small FLUX was trained on --------------------------------------------------------------------------


SHIFT = 1.62
"""Of the schedule that the bench samples the small models on."""


def trained(host: Any, count: int, model: Any = None) -> tuple[Any, list[tuple[Any, Tensor]]]:
    """The small FLUX, or another small model, on its shifted schedule, and conditionings of captions that it knows,
    each with its noise.
    """
    from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow

    (model,) = ModelSamplingAuraFlow().patch_aura(model or host.model, SHIFT)
    captions = ("a large strawberry on green", "a bus on gray", "a pear on brick", "a photo of coffee")
    shape = host.comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 16, 24, 24)).shape  # with its frames
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(100 + i)) for i in range(count)]
    return model, [(host.caption(text), noise) for text, noise in zip(captions, noises, strict=False)]
