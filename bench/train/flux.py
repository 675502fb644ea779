"""FLUX.1's transformer for training, in plain torch.

ComfyUI's own class cannot be trained: its blocks write in place over what autograd needs. This one computes the same
(tests/host/test_train.py compares them) and has the same parameters; `exported` names them as diffusers does, which
every ComfyUI loads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH, THETA, AXES = 2, 10000, (16, 56, 56)
HEAD = sum(AXES)


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one transformer. guidance: a FLUX.1-dev, which gets the guidance scale as a number."""

    hidden: int = 256
    double: int = 2
    single: int = 4
    text: int = 64
    channels: int = 16
    guidance: bool = False


def rotation(positions: Tensor, axes: tuple[int, ...] = AXES) -> tuple[Tensor, Tensor]:
    """Positions (n axis) to cosine and sine, each n (head/2)."""
    angles = []
    for axis, width in enumerate(axes):
        omega = THETA ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(positions[:, axis, None].double().cpu() * omega)
    angle = torch.cat(angles, dim=1).to(torch.float32).to(positions.device)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angle: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of b head n d, in pairs of neighbours."""
    cosine, sine = angle
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2).to(x.dtype)


def frequencies(t: Tensor, width: int = 256) -> Tensor:
    """Sinusoids of 1000 t: b -> b d."""
    omega = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = 1000 * t.float()[:, None] * omega
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def patches(x: Tensor) -> Tensor:
    """b c (h 2) (w 2) -> b (h w) (c 2 2)."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // PATCH**2, c * PATCH**2)


def unpatched(x: Tensor, height: int, width: int) -> Tensor:
    """The way back; height and width in latents."""
    b, _, d = x.shape
    x = x.reshape(b, height // PATCH, width // PATCH, d // PATCH**2, PATCH, PATCH)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, d // PATCH**2, height, width)


def grid(height: int, width: int, spread: float, device: torch.device) -> Tensor:
    """Positions of image tokens, n 3. `spread` pulls a small picture over the positions of a large one."""
    rows = torch.linspace(0, (height - 1) * spread, height, device=device)
    columns = torch.linspace(0, (width - 1) * spread, width, device=device)
    zero = torch.zeros(height, width, device=device)
    return torch.stack((zero, *torch.meshgrid(rows, columns, indexing="ij")), dim=-1).reshape(-1, 3)


class Embedder(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(width, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    """The time and the prompt set shift, scale and gate: b d -> `parts` times b 1 d."""

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.parts, self.lin = parts, nn.Linear(hidden, parts * hidden)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.parts, dim=-1)


class Norm(nn.RMSNorm):
    """In float32 whatever autocast says: the fused kernel wants input and weight of one type."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class HeadNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = Norm(HEAD), Norm(HEAD)

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b n (3 head d) -> three of b head n d."""
        b, n, _ = qkv.shape
        q, k, v = qkv.reshape(b, n, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v


class Attention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.norm, self.proj = nn.Linear(hidden, 3 * hidden), HeadNorm(), nn.Linear(hidden, hidden)


def attend(q: Tensor, k: Tensor, v: Tensor, angle: tuple[Tensor, Tensor]) -> Tensor:
    """b head n d -> b n (head d)."""
    return F.scaled_dot_product_attention(rotate(q, angle), rotate(k, angle), v.to(q.dtype)).transpose(1, 2).flatten(2)


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class DoubleBlock(nn.Module):
    """Image and text have weights of their own and attend together."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = Modulation(hidden, 6), Modulation(hidden, 6)
        self.img_attn, self.txt_attn = Attention(hidden), Attention(hidden)
        self.img_mlp, self.txt_mlp = mlp(hidden), mlp(hidden)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, angle: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, text = self.img_mod(vec), self.txt_mod(vec)
        seen = self.img_attn.norm(self.img_attn.qkv(normed(img, image[1], image[0])))
        read = self.txt_attn.norm(self.txt_attn.qkv(normed(txt, text[1], text[0])))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(read, seen, strict=True))
        joint = attend(q, k, v, angle)
        words = txt.shape[1]
        img = torch.addcmul(img, image[2], self.img_attn.proj(joint[:, words:]))
        txt = torch.addcmul(txt, text[2], self.txt_attn.proj(joint[:, :words]))
        img = torch.addcmul(img, image[5], self.img_mlp(normed(img, image[4], image[3])))
        return img, torch.addcmul(txt, text[5], self.txt_mlp(normed(txt, text[4], text[3])))


def mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))


class SingleBlock(nn.Module):
    """One stream; attention and MLP side by side."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.modulation, self.norm = Modulation(hidden, 3), HeadNorm()
        self.linear1, self.linear2 = nn.Linear(hidden, 7 * hidden), nn.Linear(5 * hidden, hidden)

    def forward(self, x: Tensor, vec: Tensor, angle: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        hidden = x.shape[-1]
        qkv, inner = self.linear1(normed(x, scale, shift)).split((3 * hidden, 4 * hidden), dim=-1)
        q, k, v = self.norm(qkv)
        joint = torch.cat((attend(q, k, v, angle), F.gelu(inner, approximate="tanh")), dim=-1)
        return torch.addcmul(x, gate, self.linear2(joint))


class LastLayer(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(normed(x, scale, shift))


class Flux(nn.Module):
    """x b c h w, t b, context b m d, pooled b d, guidance b -> velocity b c h w."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape, hidden, width = shape, shape.hidden, shape.channels * PATCH**2
        self.img_in, self.txt_in = nn.Linear(width, hidden), nn.Linear(shape.text, hidden)
        self.time_in, self.vector_in = Embedder(256, hidden), Embedder(shape.text, hidden)
        self.guidance_in = Embedder(256, hidden) if shape.guidance else None
        self.double_blocks = nn.ModuleList(DoubleBlock(hidden) for _ in range(shape.double))
        self.single_blocks = nn.ModuleList(SingleBlock(hidden) for _ in range(shape.single))
        self.final_layer = LastLayer(hidden, width)
        self._start()

    def _start(self) -> None:
        """Every block begins as the identity, the output as zero."""
        for name, parameter in self.named_parameters():
            zero = "modulation" in name or "_mod." in name or name.startswith("final_layer.linear")
            if zero or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.7)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor | None = None, spread: float = 1.0
    ) -> Tensor:
        height, width = x.shape[-2:]
        vec = self.time_in(frequencies(t).to(x.dtype)) + self.vector_in(pooled)
        if self.guidance_in is not None:
            assert guidance is not None
            vec = vec + self.guidance_in(frequencies(guidance).to(x.dtype))
        img, txt = self.img_in(patches(x)), self.txt_in(context)
        places = grid(height // PATCH, width // PATCH, spread, x.device)
        angle = rotation(torch.cat((torch.zeros(txt.shape[1], 3, device=x.device), places)))
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, angle)
        stream = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            stream = block(stream, vec, angle)
        return unpatched(self.final_layer(stream[:, txt.shape[1] :], vec), height, width)


# --- names in the file ----------------------------------------------------------------------------------------------

TOP = {
    "img_in": "x_embedder", "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear",
}  # fmt: skip
DOUBLE = {
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
}  # fmt: skip
SWAPPED = "final_layer.adaLN_modulation.1"
"""Shift, then scale; diffusers keeps the scale first."""
SINGLE = {
    "modulation.lin": "norm.linear", "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp", "linear2": "proj_out",
}  # fmt: skip


def exported(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """This class's parameters under diffusers' names."""
    return dict(pair for name, value in weights.items() for pair in _renamed(name, value))


def imported(file: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: this class's parameters, named and shaped as in `like`, from a file of `exported`'s."""
    made = {}
    for name, value in like.items():
        pieces = torch.cat([file[theirs].float() for theirs, _ in _renamed(name, value)])
        made[name] = torch.cat(pieces.chunk(2)[::-1]) if name.startswith(SWAPPED) else pieces
    return made


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = name.rpartition(".")
    for prefix, table, theirs in (
        ("double_blocks", DOUBLE, "transformer_blocks"),
        ("single_blocks", SINGLE, "single_transformer_blocks"),
    ):
        if module.startswith(prefix):
            _, index, part = module.split(".", 2)
            names = table[part].split()
            hidden = value.shape[0] // len(names) if part != "linear1" else value.shape[0] // 7
            sizes = [hidden] * (len(names) - 1) + [value.shape[0] - hidden * (len(names) - 1)]
            for own, piece in zip(names, value.split(sizes), strict=True):
                yield f"{theirs}.{index}.{own}.{kind}", piece.contiguous()
            return
    if module == SWAPPED:
        shift, scale = value.chunk(2)
        value = torch.cat((scale, shift))
    yield f"{TOP[module]}.{kind}", value
