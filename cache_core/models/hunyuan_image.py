"""HunyuanImage 2.1: HunyuanVideo's blocks on one picture, a token a latent pixel.

Tencent, https://github.com/Tencent-Hunyuan/HunyuanImage-2.1.
"""

from __future__ import annotations

from .hunyuan_video_15 import HunyuanVideo15


class HunyuanImage(HunyuanVideo15):
    """See the module docstring."""

    name = "HunyuanImage 2.1"
    patch = (1, 1)


ARCHITECTURE = HunyuanImage()
