"""What changed since an earlier evaluation: small scalars, computed on the device and not read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .spectrum import content
from .types import CacheError, Figures, Grid, Past, Probe, Signal, Step


def _band_sums(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Sum of absolute values over the first `width` channels and over the others: b n d -> two float32 scalars."""
    return (
        values[..., :width].abs().sum(dtype=torch.float32),
        values[..., width:].abs().sum(dtype=torch.float32),
    )


def _ratio(change: Tensor, before: Tensor) -> Tensor:
    """change / before, with 0 / 0 = 0 (a band without channels); NaN stays NaN, so that it computes."""
    return torch.where(change == 0, change, change / before)


@dataclass(frozen=True, slots=True)
class ModulatedL1(Signal):
    """Relative L1 change of the first block's modulated input, as a whole and in two channel bands.

    d = ||M_t - M_{t-1}||_1 / ||M_{t-1}||_1 over all image tokens (TeaCache 2411.19108; SpectralCache 2603.05315 sec.
    4.5, Algorithm 1 line 2), reference tokens included, since Kontext's polynomial was fitted so; low, high: the same
    over the first floor(r·D) channels and over the others of the target's tokens (sec. 4.4). Sums run over the rows and
    tokens of one lane. `split` is r, in (0, 1). Figures: "d", "low", "high".
    """

    split: float = 0.5
    needs = frozenset({"modulated"})
    reference = "previous"

    def look(self, probe: Probe) -> Past:
        modulated = probe.modulated
        if modulated is None:
            raise CacheError("ModulatedL1 needs the modulated input; the architecture file did not provide it")
        target = modulated if probe.targets is None else modulated[:, : probe.targets]
        low, high = _band_sums(target, self._width(target))
        past = {"target": target, "low": low, "high": high}
        if probe.targets is not None and probe.targets < modulated.shape[1]:
            references = modulated[:, probe.targets :]
            past |= {"references": references, "rest": references.abs().sum(dtype=torch.float32)}
        return past

    def score(self, now: Past, before: Past) -> Figures:
        change = now["target"].float() - before["target"].float()
        low, high = _band_sums(change, self._width(change))
        whole, whole_before = low + high, before["low"] + before["high"]
        if "references" in before:
            whole = whole + (now["references"].float() - before["references"].float()).abs().sum()
            whole_before = whole_before + before["rest"]
        return {
            "d": _ratio(whole, whole_before),
            "low": _ratio(low, before["low"]),
            "high": _ratio(high, before["high"]),
        }

    def _width(self, values: Tensor) -> int:
        """Channels in the low band: floor(r·D), at least one and not all (none where there is only one channel)."""
        return min(max(int(values.shape[-1] * self.split), 1), values.shape[-1] - 1)


@dataclass(frozen=True, slots=True)
class ContentL1(Signal):
    """Relative L1 change of the modulated input's content: each capture behind `spectrum.content` at its own noise
    level (SeaCache 2602.18993), target tokens only. Without a token grid nothing is filtered. Figure: "d".
    """

    needs = frozenset({"modulated", "sigma", "grid"})

    def look(self, probe: Probe) -> Past:
        if probe.modulated is None or probe.sigma is None:
            raise CacheError("ContentL1 needs the modulated input and the noise level; use it at a described trunk")
        target = probe.modulated[:, : probe.targets]
        return {"content": target if probe.grid is None else content(target, probe.grid, probe.sigma).to(target.dtype)}

    def score(self, now: Past, before: Past) -> Figures:
        return {"d": _change(now["content"], before["content"])}


def _change(now: Tensor, before: Tensor) -> Tensor:
    """Relative L1 change, a 0-dim float32 scalar."""
    return _ratio((now.float() - before.float()).abs().mean(), before.float().abs().mean())


@dataclass(frozen=True, slots=True)
class EmbeddingL1(Signal):
    """Relative L1 change of the vector that modulates the blocks, which the noise level alone moves (PromptTea
    2507.06739). Figure: "embedding".

    prompt: how many text tokens say something of their own besides, tr(C)² / tr(C²) of their covariance C. Figure:
    "prompt".
    """

    prompt: bool = False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"embedding", "text"} if self.prompt else {"embedding"})

    def look(self, probe: Probe) -> Past:
        if probe.embedding is None:
            raise CacheError("EmbeddingL1 looks at what modulates the blocks; use it at a described trunk")
        told = {} if probe.text is None else {PROMPT: _own_tokens(probe.text)}
        return {"embedding": probe.embedding, **told}

    def score(self, now: Past, before: Past) -> Figures:
        told = {name: now[name] for name in (PROMPT,) if name in now}
        return {"embedding": _change(now["embedding"], before["embedding"]), **told}


PROMPT = "prompt"


def _own_tokens(text: Tensor) -> Tensor:
    """The effective rank of b m d tokens around their mean, by their inner products: 0-dim float32, mean over rows."""
    apart = text.float() - text.float().mean(1, keepdim=True)
    products = apart @ apart.mT  # b m m
    whole = products.diagonal(dim1=1, dim2=2).sum(1).square()
    return (whole / products.square().sum((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)).mean()


@dataclass(frozen=True, slots=True)
class HeadL1(Signal):
    """What the head layers have added to the target's tokens, against the last computed evaluation (First-Block Cache,
    DBCache). Figure: "d".
    """

    needs = frozenset({"head"})
    reference = "computed"

    def look(self, probe: Probe) -> Past:
        return {"head": _head(probe)}

    def score(self, now: Past, before: Past) -> Figures:
        return {"d": _change(now["head"], before["head"])}


@dataclass(frozen=True, slots=True)
class ProbeL1(Signal):
    """Relative L1 change of the stream behind the head against the previous evaluation, computed or not (DiCache
    2508.17356), and how far what the head adds has come: |h - h_b| / |h_a - h_b| with a the newest and b the last but
    one computed evaluation. Figures: "d", "gamma".
    """

    needs = frozenset({"head", "entered"})

    def look(self, probe: Probe) -> Past:
        return {"head": _head(probe), "stream": _entered(probe)}

    def score(self, now: Past, before: Past) -> Figures:
        figures = {"d": _change(now["stream"], before["stream"])}
        if "earlier" in before:
            base = before["earlier"].float()
            figures["gamma"] = _ratio(
                (now["head"].float() - base).abs().mean(), (before["anchor"].float() - base).abs().mean()
            )
        return figures

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        earlier = {"earlier": past["anchor"]} if "anchor" in past else {}
        return {**past, **earlier, "anchor": past["head"]}


@dataclass(frozen=True, slots=True)
class BlockChange(Signal):
    """How much what enters a block has changed: relative Frobenius norm over the target's tokens (FastCache
    2505.20353), against the previous evaluation or the last one in which this block was computed. Figure: "d".
    """

    reference: Literal["previous", "computed"] = "previous"
    needs = frozenset({"entered"})

    def look(self, probe: Probe) -> Past:
        return {"entered": _entered(probe)}

    def score(self, now: Past, before: Past) -> Figures:
        earlier = before["entered"].float()
        return {"d": _ratio((now["entered"].float() - earlier).norm(), earlier.norm())}


def _entered(probe: Probe) -> Tensor:
    if probe.entered is None:
        raise CacheError("this signal looks at what enters a block; use it at a place of single blocks or with a head")
    return probe.entered


@dataclass(frozen=True, slots=True)
class BlockRate(Signal):
    """How fast what enters a block changes, and how much of it the block leaves as it was: both of the last computed
    evaluation, and so known before the next one begins. Over every `stride`th of the target's tokens. For places of
    single blocks whose feature is what they add.

    rate: |h_a - h_b|_1 / |h_a|_1 / (a - b) between the last two computed evaluations a and b; alike: the cosine between
    what entered and what left.
    """

    stride: int = 8
    needs = frozenset({"entered"})

    def look(self, probe: Probe) -> Past:
        if probe.entered is None:
            raise CacheError("BlockRate looks at what enters a block; use it at a place of single blocks")
        return {"entered": probe.entered[:, :: self.stride]}

    def score(self, now: Past, before: Past) -> Figures:
        return {name: before[name] for name in ("rate", "alike") if name in before}

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        entered = past["entered"].float()
        at = torch.full((), float(step.index), device=entered.device)
        steps = at - past.get("at", at - 1)
        if "at" in past and past["anchor"].shape == past["entered"].shape:
            rate = _change(past["anchor"], past["entered"]) / steps.clamp(min=1)
            rate = torch.where(steps > 0, rate, past.get("rate", torch.full_like(rate, torch.inf)))
        else:
            rate = None
        added = feature[:, :: self.stride][:, : entered.shape[1]].float()
        kept = {**past, "anchor": past["entered"], "at": at}
        if added.shape == entered.shape:
            left = entered + added
            alike = (entered * left).sum() / (entered.norm() * left.norm())
            kept["alike"] = torch.where(steps > 0, alike, past.get("alike", alike))
        return kept if rate is None else {**kept, "rate": rate}


def _head(probe: Probe) -> Tensor:
    if probe.head is None:
        raise CacheError("this signal looks at what the head layers add; use it at a place with a head")
    return probe.head


@dataclass(frozen=True, slots=True)
class MiddleRate(Signal):
    """How much the stream in the middle of the trunk changes per step, between the last two computed evaluations
    (AdaCache 2411.02397, eq. 4): |p_a - p_b|_1 / |p_b|_1 / steps, b the earlier one. Known before the next evaluation
    begins. Figure: "rate".

    motion: times m + |10 · (m_a - m_b) / steps| between a tenth and nine tenths of the run, m = (v / 0.385)^8 and v the
    difference of neighbouring frames over their sum, both L1 (sec. 3.3); only where the grid has frames.
    """

    motion: bool = False
    tap = 0.5

    def score(self, now: Past, before: Past) -> Figures:
        return {"rate": before["rate"]} if "rate" in before else {}

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        if tap is None:
            return past
        at = torch.full((), float(step.index), device=tap.device)
        kept = {**past, "middle": tap, "at": at}
        steps = (at - past.get("at", at)).clamp(min=1)
        if "middle" in past:
            kept["rate"] = _change(tap, past["middle"]) / steps
        if self.motion and grid is not None and len(grid) == 3 and grid[0] > 1:
            kept["motion"] = _motion(tap.float().unflatten(1, grid))
            if "motion" in past and "rate" in kept and 0.1 <= step.progress <= 0.9:
                turn = 10 * (kept["motion"] - past["motion"]) / steps
                kept["rate"] = kept["rate"] * (kept["motion"] + turn.abs())
        return kept


def _motion(frames: Tensor) -> Tensor:
    """How much neighbouring frames differ (b t h w d), as AdaCache scales it."""
    after, before = frames[:, 1:], frames[:, :-1]
    return ((after - before).abs().sum() / (after + before).abs().sum() / 0.385) ** 8


@dataclass(frozen=True, slots=True)
class InputChange(Signal):
    """How much the output should have changed: EasyCache (2507.02860). For rules whose feature is an output minus the
    input x, at places that skip whole calls.

    k = mean|dOut| / mean|dx| over the last two computed evaluations; d = k · mean|x - x'| / mean|Out|, where x' is the
    previous input or, `anchored`, that of the last computed evaluation. Changes are taken over every `stride`th latent
    pixel. Figure: "d", once two evaluations were computed.
    """

    anchored: bool = False
    stride: int = 8
    needs = frozenset({"modulated"})

    def look(self, probe: Probe) -> Past:
        if probe.modulated is None:
            raise CacheError("InputChange needs the model's input; use it at a place that skips whole calls")
        return {"input": probe.modulated}

    def score(self, now: Past, before: Past) -> Figures:
        if "rate" not in before:
            return {}
        since = before["anchor"] if self.anchored else before["input"]
        return {"d": before["rate"] * self._moved(now["input"], since) / before["size"]}

    def observe(
        self, step: Step, feature: Tensor, past: Past, tap: Tensor | None = None, grid: Grid | None = None
    ) -> Past:
        x = past["input"]
        out = feature.unflatten(1, x.shape[1:-1]) + x
        kept = {**past, "anchor": x, "output": self._sparse(out), "size": out.float().abs().mean()}
        if "output" in past:
            kept["rate"] = (kept["output"].float() - past["output"].float()).abs().mean() / self._moved(
                x, past["anchor"]
            )
        return kept

    def _moved(self, now: Tensor, before: Tensor) -> Tensor:
        return (self._sparse(now).float() - self._sparse(before).float()).abs().mean()

    def _sparse(self, x: Tensor) -> Tensor:
        """Every `stride`th pixel of the last two dimensions before the channels; a latent without a grid as it is."""
        return x[..., :: self.stride, :: self.stride, :] if x.ndim > 3 else x
