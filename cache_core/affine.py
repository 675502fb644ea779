"""A block as one affine map for each channel: what FastCache puts in its place, in closed form.

y = a·x + c with a = cov(x, y) / var(x) and c = mean(y) - a·mean(x) over the tokens of a row: the least squares fit to
what entered and what left the block. 2·d numbers a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12
"""A channel whose tokens are all alike has no slope: c alone stands for it."""


def fitted(entered: Tensor, left: Tensor) -> Tensor:
    """Slopes and offsets of each channel: b n d, b n d -> b 2 d in the dtype of `left`, fitted in float32."""
    x, y = entered.float(), left.float()
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - mean_x, y - mean_y
    spread = x.square().sum(1, keepdim=True)
    slope = torch.where(spread > LEAST, (x * y).sum(1, keepdim=True) / spread.clamp(min=LEAST), 0.0)
    return torch.cat((slope, mean_y - slope * mean_x), dim=1).to(left.dtype)


def applied(map_: Tensor, entered: Tensor) -> Tensor:
    """The map on what enters now: b 2 d, b n d -> b n d, a new tensor."""
    slope, offset = map_.float().chunk(2, dim=1)
    return torch.addcmul(offset, entered.float(), slope).to(entered.dtype)
