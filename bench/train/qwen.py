"""Qwen-Image's transformer for training, in plain torch, with the parameters of ComfyUI's class by the same names.

Unlike FLUX: double blocks only, no pooled prompt, the text normalised first, and positions that count from the
picture's middle, with the text's along the diagonal beyond its corner.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train.flux import HEAD, PATCH, Norm, attend, frequencies, grid, normed, patches, rotation, unpatched

UNREAD = ("txt_mlp", "attn.to_add_out")
"""Of the last block."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one transformer."""

    hidden: int = 256
    blocks: int = 4
    text: int = 64
    channels: int = 16
    guidance: bool = False


class TimeEmbedder(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(256, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Projection(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Projection(hidden), nn.Identity(), nn.Linear(4 * hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Attention(nn.Module):
    """Joint attention; `add` are the text's parameters."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(hidden, hidden) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(hidden, hidden) for _ in range(3))
        self.to_out, self.to_add_out = nn.ModuleList((nn.Linear(hidden, hidden),)), nn.Linear(hidden, hidden)
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (Norm(HEAD) for _ in range(4))

    def forward(self, img: Tensor, txt: Tensor, angle: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q = torch.cat((self.norm_added_q(heads(self.add_q_proj(txt))), self.norm_q(heads(self.to_q(img)))), dim=2)
        k = torch.cat((self.norm_added_k(heads(self.add_k_proj(txt))), self.norm_k(heads(self.to_k(img)))), dim=2)
        v = torch.cat((heads(self.add_v_proj(txt)), heads(self.to_v(img))), dim=2)
        joint = attend(q, k, v, angle)
        words = txt.shape[1]
        return self.to_out[0](joint[:, words:]), self.to_add_out(joint[:, :words])


def heads(x: Tensor) -> Tensor:
    """b n (head d) -> b head n d."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.img_mlp, self.txt_mlp, self.attn = FeedForward(hidden), FeedForward(hidden), Attention(hidden)

    def forward(self, img: Tensor, txt: Tensor, time: Tensor, angle: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, text = (mod(time)[:, None].chunk(6, dim=-1) for mod in (self.img_mod, self.txt_mod))
        seen, read = self.attn(normed(img, image[1], image[0]), normed(txt, text[1], text[0]), angle)
        img, txt = torch.addcmul(img, image[2], seen), torch.addcmul(txt, text[2], read)
        img = torch.addcmul(img, image[5], self.img_mlp(normed(img, image[4], image[3])))
        return img, torch.addcmul(txt, text[5], self.txt_mlp(normed(txt, text[4], text[3])))


def exported(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what only makes the text that the last block returns: nothing reads it, and no loss ever moved it."""
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    unread = tuple(f"transformer_blocks.{last}.{part}." for part in UNREAD)
    return {name: value for name, value in weights.items() if not name.startswith(unread)}


def imported(file: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: what the file leaves out stays as it is in `like`."""
    return {name: file[name].float() if name in file else value for name, value in like.items()}


class QwenImage(nn.Module):
    """x b c h w, t b, context b m d -> velocity b c h w. The pooled prompt and the guidance are not used."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape, hidden, width = shape, shape.hidden, shape.channels * PATCH**2
        self.time_text_embed = nn.ModuleDict({"timestep_embedder": TimeEmbedder(hidden)})
        self.txt_norm = Norm(shape.text)
        self.img_in, self.txt_in = nn.Linear(width, hidden), nn.Linear(shape.text, hidden)
        self.transformer_blocks = nn.ModuleList(Block(hidden) for _ in range(shape.blocks))
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(hidden, 2 * hidden)})
        self.proj_out = nn.Linear(hidden, width)
        for name, parameter in self.named_parameters():
            if "_mod." in name or name.startswith(("norm_out", "proj_out")) or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.7)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, guidance: Tensor | None = None,
        spread: float = 1.0,
    ) -> Tensor:  # fmt: skip
        height, width = x.shape[-2:]
        rows, columns = height // PATCH, width // PATCH
        time = self.time_text_embed["timestep_embedder"](frequencies(t).to(x.dtype))
        img, txt = self.img_in(patches(x)), self.txt_in(self.txt_norm(context))
        middle = torch.tensor((0.0, rows // 2 * spread, columns // 2 * spread), device=x.device)
        places = grid(rows, columns, spread, x.device) - middle
        first = round(max(columns // 2, rows // 2) * spread)
        words = torch.arange(first, first + txt.shape[1], device=x.device, dtype=torch.float32)[:, None].repeat(1, 3)
        angle = rotation(torch.cat((words, places)))
        for block in self.transformer_blocks:
            img, txt = block(img, txt, time, angle)
        scale, shift = self.norm_out["linear"](F.silu(time))[:, None].chunk(2, dim=-1)
        return unpatched(self.proj_out(normed(img, scale, shift)), height, width)
