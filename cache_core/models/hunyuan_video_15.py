"""HunyuanVideo 1.5: HunyuanVideo's blocks, a token a latent pixel.

Tencent, https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5.
"""

from __future__ import annotations

from ..coefficients import Calibration, unfitted
from .hunyuan_video import HunyuanVideo


class HunyuanVideo15(HunyuanVideo):
    """See the module docstring."""

    name = "HunyuanVideo 1.5"
    patch: tuple[int, ...] = (1, 1, 1)

    def calibration(self, references: bool) -> Calibration:
        return unfitted(self.name)


ARCHITECTURE = HunyuanVideo15()
