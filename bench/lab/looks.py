"""How different two pictures look: FLIP, by NVIDIA's own evaluator."""

from __future__ import annotations

import torch


def flip(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """The mean over a picture (1 h w c, sRGB, 0 to 1) of FLIP's error, 0 (alike) to 1, seen at 67 pixels a degree; None
    where the evaluator is not installed.

    Andersson et al. 2020, "FLIP: A Difference Evaluator for Alternating Images", as in the package `flip-evaluator`.
    """
    try:
        import flip_evaluator
    except ImportError:
        return None
    reference, test = (picture[0].float().clamp(0, 1).contiguous().numpy() for picture in (other, one))
    return float(flip_evaluator.evaluate(reference, test, "LDR", applyMagma=False)[1])
