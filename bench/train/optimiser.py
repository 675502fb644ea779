"""How weights move: Muon for the matrices of the blocks, AdamW for the rest, an average of the weights, a schedule.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest matrix with orthonormal rows or columns, found
with five Newton-Schulz steps; scaled as in Liu et al. 2025 so that it shares AdamW's learning rate. Fused matrices
(query, key and value; FLUX's linear1 and linear2) are taken apart first: each part has a spectrum of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5, kind: torch.dtype | None = None) -> Tensor:
    """b r c -> nearly orthonormal rows or columns, whichever are fewer. kind: computed in this type, as in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).to(kind or matrices.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def parts(matrix: Tensor) -> list[Tensor]:
    """Views of a fused matrix's pieces. hidden is its shorter side."""
    rows, columns = matrix.shape
    hidden = min(rows, columns)
    for sizes, dim in (((1, 1, 1), 0), ((1, 1, 1, 4), 0), ((1, 4), 1)):
        if matrix.shape[dim] == sum(sizes) * hidden and matrix.shape[1 - dim] == hidden:
            return list(matrix.split([size * hidden for size in sizes], dim=dim))
    return [matrix]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; decoupled weight decay. kind: of the Newton-Schulz steps."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0,
        kind: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                parameter.mul_(1 - group["lr"] * group["decay"])
                for weight, piece in zip(parts(parameter), parts(update), strict=True):
                    alike[tuple(piece.shape)].append((weight, piece))
            for shape, pairs in alike.items():
                moves = orthogonal(torch.stack([piece for _, piece in pairs]), kind=self.kind)
                for (weight, _), move in zip(pairs, moves, strict=True):
                    weight.add_(move, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))


def optimisers(
    model: nn.Module, rate: float, muon: bool, kind: torch.dtype | None = None
) -> list[torch.optim.Optimizer]:
    """What moves which parameter. Modulation, embeddings, biases and the output are AdamW's. kind: of Muon's steps."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "blocks." in name and "mod" not in name
        (matrices if inner and muon else rest).append(parameter)
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]
    return [*found, Muon(matrices, lr=rate, kind=kind)] if matrices else found


class Average:
    """Exponential moving average of the weights; young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        now = model.state_dict()
        torch._foreach_lerp_([self.weights[name] for name in now], list(now.values()), share)


def schedule(step: int, goal: int, warmup: int = 100, cool: float = 0.2, floor: float = 0.02) -> float:
    """The share of the learning rate at this step: up, level, and down a cosine over the last fifth.

    The level part does not know the goal, so a run continues unchanged when the goal is raised before it cools; a
    cooled one goes back up to the level and on.
    """
    start = goal * (1 - cool)
    if step < warmup:
        return (step + 1) / warmup
    if step < start:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / (goal - start))))
