"""TeaCache's fitted polynomials, one row per model: how far the output moves when the signal moves by d.

From TeaCache, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (Liu et al. 2024,
https://arxiv.org/abs/2411.19108): P is a degree-4 fit of the relative L1 change of the output (y) over the relative L1
change of the signal (x) between consecutive steps, 70 prompts. The figures come from the authors' repository
(ali-vilab/TeaCache, 7c10efc) and from its port (welltop-cn/ComfyUI-TeaCache, 91dff8e); each row names its file.

Rule: A += P(d) at every evaluation, with d = mean|S_t - S_(t-1)| / mean|S_(t-1)|; the evaluation may be skipped while
A < threshold.

Caveats. A threshold is comparable only within one (signal, polynomial) pair: 0.6 for FLUX does what 0.05 does for
LTX-Video; `unit` makes them alike. P holds only in the range of d it was fitted on, which other step counts,
schedulers and resolutions leave: several fits turn negative inside 0 < d < 0.5, and FLUX's never falls below 0.1803.
The fits are loose, and the claimed speeds are their authors': none was checked here.

Differs from the original: the authors let a negative P lower A. Here it counts 0 unless the row is `absolute`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import torch

Distance = TypeVar("Distance", float, "torch.Tensor")
Signal = Literal["modulated", "timestep embedding", "timestep projection", "hidden"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one model's raw relative L1 becomes TeaCache's rescaled distance, and what a threshold means on it.

    polynomial: highest power first; () is the identity.
    unit: tau_eff = threshold * unit * s(t). It is the published threshold whose claimed speed is nearest 2x (of two as
        near, the lower one), divided by FLUX's 0.6, so that a threshold in FLUX units means about the same everywhere.
    absolute: abs(P(d)) where it was published so; elsewhere a negative P(d) counts 0.
    signal: "modulated" (first block's norm with shift and scale), "timestep embedding", "timestep projection" (of all
        six modulations) or "hidden" (embedded patches, not modulated). The middle two see only the schedule.
    thresholds: published (threshold, claimed speed-up), of the implementation that `source` names first.
    domain: the d that the polynomial was fitted on, where that is known; beyond it goes on in proportion to d.
    """

    name: str
    polynomial: tuple[float, ...]
    unit: float
    absolute: bool
    signal: Signal
    thresholds: tuple[tuple[float, float], ...]
    source: str
    domain: tuple[float, float] | None = None


def rescale(polynomial: Sequence[float], d: Distance) -> Distance:
    """P(d) by Horner's rule; d itself for an empty polynomial. Python floats and float64 tensors agree to the bit."""
    if not polynomial:
        return d
    value = d * 0.0
    for coefficient in polynomial:
        value = value * d + coefficient
    return value


def rescaled(calibration: Calibration, d: Distance) -> Distance:
    """P(d) of a calibration."""
    if calibration.domain is None:
        return rescale(calibration.polynomial, d)
    low, high = calibration.domain
    inside = min(max(d, low), high) if isinstance(d, float) else d.clamp(low, high)
    return rescale(calibration.polynomial, inside) * (d / inside)


_FLUX = (4.98651651e2, -2.83781631e2, 5.58554382e1, -3.82021401e0, 2.64230861e-1)
_FLUX_THRESHOLD = 0.6
_LUMINA_NEXT = (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344)
_TEACACHE = "ali-vilab/TeaCache"
_COMFY = "welltop-cn/ComfyUI-TeaCache"
_WAN = f"{_TEACACHE}: TeaCache4Wan2.1/teacache_generate.py, speeds from the seconds in TeaCache4Wan2.1/README.md"
_WAN_RET = f"{_WAN}, --use_ret_steps (first 5 steps computed, last not forced)"
_PAPER = "the file states no speed: 0.1 is the paper's slow and 0.2 its fast variant, speeds from its table 1"

_ROWS = {
    "flux": Calibration(
        name="FLUX.1",
        polynomial=_FLUX,
        unit=0.6 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.25, 1.5), (0.4, 1.8), (0.6, 2.0), (0.8, 2.25)),
        source=f"{_TEACACHE}: TeaCache4FLUX/teacache_flux.py; the port takes abs(), without effect: P > 0",
    ),
    "flux_kontext": Calibration(
        name="FLUX.1 Kontext",
        polynomial=(-1.04655119e3, 3.12563399e2, -1.69500694e1, 4.10995971e-1, 3.74537863e-2),
        unit=0.22 / _FLUX_THRESHOLD,
        absolute=True,
        signal="modulated",
        thresholds=((0.22, 2.0),),
        source=f"{_COMFY}: nodes.py 'flux-kontext', fitted over target and reference tokens; start 0.2, end 0.9",
    ),
    "tangoflux": Calibration(
        name="TangoFlux",
        polynomial=_FLUX,
        unit=0.4 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.25, 1.7), (0.4, 2.1)),
        source=f"{_TEACACHE}: TeaCache4TangoFlux/teacache_tango_flux.py, FLUX's polynomial",
    ),
    "hunyuan_video": Calibration(
        name="HunyuanVideo",
        polynomial=(7.33226126e2, -4.01131952e2, 6.75869174e1, -3.1498780e0, 9.61237896e-2),
        unit=0.15 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.1, 1.6), (0.15, 2.1)),
        source=f"{_TEACACHE}: TeaCache4HunyuanVideo/teacache_sample_video.py",
    ),
    "ltx_video": Calibration(
        name="LTX-Video 0.9.1",
        polynomial=(2.14700694e1, -1.28016453e1, 2.31279151e0, 7.92487521e-1, 9.69274326e-3),
        unit=0.05 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.03, 1.6), (0.05, 2.1)),
        source=f"{_TEACACHE}: TeaCache4LTX-Video/teacache_ltx.py",
    ),
    "mochi": Calibration(
        name="Mochi",
        polynomial=(-3.51241319e3, 8.11675948e2, -6.09400215e1, 2.42429681e0, 3.05291719e-3),
        unit=0.09 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.06, 1.5), (0.09, 2.1)),
        source=f"{_TEACACHE}: TeaCache4Mochi/teacache_mochi.py",
    ),
    "lumina_next": Calibration(
        name="Lumina-Next",
        polynomial=_LUMINA_NEXT,
        unit=0.3 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.2, 1.5), (0.3, 1.9), (0.4, 2.4), (0.5, 2.8)),
        source=f"{_TEACACHE}: TeaCache4Lumina-T2X/teacache_lumina_next.py",
    ),
    "lumina2_v1": Calibration(
        name="Lumina-Image-2.0, first fit",
        polynomial=_LUMINA_NEXT,
        unit=0.4 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.2, 1.25), (0.3, 1.56), (0.4, 2.08), (0.5, 2.5)),
        source=f"{_TEACACHE}: TeaCache4Lumina2/teacache_lumina2.py, Lumina-Next's polynomial, text and image sequence",
    ),
    "lumina2_v2": Calibration(
        name="Lumina-Image-2.0, second fit",
        polynomial=(225.7042019806413, -608.8453716535591, 304.1869942338369, 124.21267720116742, -1.4089066892956552),
        unit=1.1 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.2, 1.5), (0.3, 1.6), (0.5, 1.8), (1.1, 2.1)),
        source=f"{_TEACACHE}: TeaCache4Lumina2/teacache_lumina2.py (comment) and README.md, text and image sequence",
    ),
    "lumina2_comfy": Calibration(
        name="Lumina-Image-2.0, ComfyUI fit",
        polynomial=(-8.74643948e2, 4.66059906e2, -7.51559762e1, 5.32836175e0, -3.27258296e-2),
        unit=0.38 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.38, 1.7),),
        source=f"{_COMFY}: nodes.py 'lumina_2'; start 0.2, end 1",
    ),
    "hidream_full": Calibration(
        name="HiDream-I1-Full",
        polynomial=(-3.13605009e4, -7.12425503e2, 4.91363285e1, 8.2651549e0, 1.08053901e-1),
        unit=0.3 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.17, 1.5), (0.25, 1.7), (0.3, 2.0), (0.45, 2.6)),
        source=f"{_TEACACHE}: TeaCache4HiDream-I1/teacache_hidream_i1.py (first tenth computed, last not forced)",
    ),
    "hidream_dev": Calibration(
        name="HiDream-I1-Dev",
        polynomial=(1.39997273, -4.30130469, 5.01534416, -2.20504164, 0.93942874),
        unit=1.0 / _FLUX_THRESHOLD,
        absolute=False,
        signal="hidden",
        thresholds=((1.0, 2.0),),
        source=f"{_COMFY}: nodes.py 'hidream_i1_dev'; start 0, end 1",
    ),
    "hidream_fast": Calibration(
        name="HiDream-I1-Fast",
        polynomial=(2.26509623, -6.88864563, 7.61123826, -3.10849353, 0.99927602),
        unit=1.5 / _FLUX_THRESHOLD,
        absolute=False,
        signal="hidden",
        thresholds=((1.5, 1.7),),
        source=f"{_COMFY}: nodes.py 'hidream_i1_fast'; start 0, end 0.9",
    ),
    "cogvideox_2b": Calibration(
        name="CogVideoX-2b",
        polynomial=(-3.10658903e1, 2.54732368e1, -5.92380459e0, 1.75769064e0, -3.61568434e-3),
        unit=0.3 / _FLUX_THRESHOLD,
        absolute=True,
        signal="timestep embedding",
        thresholds=((0.3, 2.0),),
        source=f"{_COMFY}: nodes_diffusers.py, with abs(); {_TEACACHE}: eval/teacache/experiments/cogvideox.py has the "
        "same polynomial, thresholds 0.1 (slow) and 0.2 (fast), no abs() and no claimed speed",
    ),
    "cogvideox_5b": Calibration(
        name="CogVideoX-5b, CogVideoX-5b-I2V, ConsisID",
        polynomial=(-1.53880483e3, 8.43202495e2, -1.34363087e2, 7.97131516e0, -5.23162339e-2),
        unit=0.3 / _FLUX_THRESHOLD,
        absolute=True,
        signal="timestep embedding",
        thresholds=((0.3, 2.0),),
        source=f"{_COMFY}: nodes_diffusers.py, with abs(); {_TEACACHE}: TeaCache4ConsisID/teacache_sample_video.py has "
        "the same polynomial without abs(): 0.1 (1.6x), 0.15 (2.1x), 0.2 (2.7x in its README, 2.5x in the file)",
    ),
    "cogvideox1.5_5b": Calibration(
        name="CogVideoX1.5-5B",
        polynomial=(2.50210439e2, -1.65061612e2, 3.57804877e1, -7.81551492e-1, 3.58559703e-2),
        unit=0.3 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.1, 1.3), (0.2, 1.8), (0.3, 2.1)),
        source=f"{_TEACACHE}: TeaCache4CogVideoX1.5/teacache_sample_video.py, embedding includes ofs",
    ),
    "cogvideox1.5_5b_i2v": Calibration(
        name="CogVideoX1.5-5B-I2V",
        polynomial=(1.22842302e2, -1.04088754e2, 2.62981677e1, -3.06009921e-1, 3.7121322e-2),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.1, 1.5), (0.2, 2.2), (0.3, 2.7)),
        source=f"{_TEACACHE}: TeaCache4CogVideoX1.5/teacache_sample_video.py, embedding includes ofs",
    ),
    "cosmos_7b": Calibration(
        name="Cosmos 7B",
        polynomial=(2.71156237e2, -9.19775607e1, 2.2443725e0, 2.08355751e0, 1.4177633e-1),
        unit=0.4 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.3, 1.4), (0.4, 2.0)),
        source=f"{_TEACACHE}: TeaCache4Cosmos/teacache_sample_video_t2v.py and _i2v.py",
    ),
    "wan2.1_t2v_1.3b": Calibration(
        name="Wan2.1 T2V 1.3B",
        polynomial=(2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975e0, 1.37887774e-1),
        unit=0.08 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.05, 1.5), (0.07, 1.6), (0.08, 2.0)),
        source=_WAN,
    ),
    "wan2.1_t2v_14b": Calibration(
        name="Wan2.1 T2V 14B",
        polynomial=(-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.14, 1.45), (0.15, 1.8), (0.2, 2.0)),
        source=_WAN,
    ),
    "wan2.1_i2v_480p": Calibration(
        name="Wan2.1 I2V 480P",
        polynomial=(-3.0233167e2, 2.23948934e2, -5.25463970e1, 5.8734844e0, -2.01973289e-1),
        unit=0.19 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.13, 1.6), (0.19, 2.0), (0.26, 2.45)),
        source=_WAN,
    ),
    "wan2.1_i2v_720p": Calibration(
        name="Wan2.1 I2V 720P",
        polynomial=(-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep embedding",
        thresholds=((0.18, 1.7), (0.2, 1.9), (0.3, 2.4)),
        source=_WAN,
    ),
    "wan2.1_t2v_1.3b_ret": Calibration(
        name="Wan2.1 T2V 1.3B, retention steps",
        polynomial=(-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
        unit=0.05 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep projection",
        thresholds=((0.05, 1.6), (0.1, 2.4)),
        source=_WAN_RET,
    ),
    "wan2.1_t2v_14b_ret": Calibration(
        name="Wan2.1 T2V 14B, retention steps",
        polynomial=(-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
        unit=0.1 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep projection",
        thresholds=((0.1, 2.0), (0.2, 3.2)),
        source=_WAN_RET,
    ),
    "wan2.1_i2v_480p_ret": Calibration(
        name="Wan2.1 I2V 480P, retention steps",
        polynomial=(2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep projection",
        thresholds=((0.2, 1.8), (0.3, 2.35)),
        source=_WAN_RET,
    ),
    "wan2.1_i2v_720p_ret": Calibration(
        name="Wan2.1 I2V 720P, retention steps",
        polynomial=(8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="timestep projection",
        thresholds=((0.2, 2.1), (0.3, 2.7)),
        source=_WAN_RET,
    ),
    "open_sora": Calibration(
        name="Open-Sora 1.2",
        polynomial=(2.17546007e2, -1.18329252e2, 2.68662585e1, -4.59364272e-2, 4.8442624e-2),
        unit=0.2 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.1, 1.55), (0.2, 2.25)),
        source=f"{_TEACACHE}: eval/teacache/experiments/opensora.py; {_PAPER}",
    ),
    "open_sora_plan": Calibration(
        name="Open-Sora-Plan 1.1",
        polynomial=(2.05943668e5, -1.48759286e4, 3.06085986e2, 1.31418080e0, 2.39658469e-3),
        unit=0.1 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.1, 4.41), (0.2, 6.83)),
        source=f"{_TEACACHE}: eval/teacache/experiments/opensora_plan.py (150 steps); {_PAPER}",
    ),
    "latte": Calibration(
        name="Latte",
        polynomial=(-2.46434137e3, 3.08044764e2, 8.07447667e1, -4.11385132e0, 1.11001402e-1),
        unit=0.1 / _FLUX_THRESHOLD,
        absolute=False,
        signal="modulated",
        thresholds=((0.1, 1.86), (0.2, 3.28)),
        source=f"{_TEACACHE}: eval/teacache/experiments/latte.py; {_PAPER}",
    ),
}

TEACACHE: Mapping[str, Calibration] = MappingProxyType(_ROWS)

IDENTITY = Calibration(
    name="identity",
    polynomial=(),
    unit=0.25,
    absolute=False,
    signal="modulated",
    thresholds=(),
    source="no published fit: raw relative L1; the unit is a placeholder until the bench has measured one",
)


def unfitted(name: str) -> Calibration:
    """The row of a model that nobody has published a fit for: the relative L1 as it is."""
    source = "no published fit: raw relative L1 over the target's tokens; the unit has not been measured"
    return replace(IDENTITY, name=name, source=f"{source} on trained weights")
