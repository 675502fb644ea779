"""The trainer at toy sizes: what it paints and asks for, its latent space, flow and optimiser, and that it resumes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.host.provision import SetupError
from bench.train import (
    autoencoder,
    captions,
    checks,
    command,
    conditioning,
    distil,
    export,
    files,
    flow,
    flux,
    optimiser,
    qwen,
    recipes,
)
from bench.train import text_to_picture as module_of_tasks
from bench.train.ahead import Ahead
from bench.train.captions import COLOURS, Caption, draw
from bench.train.latents import Space
from bench.train.loop import Run, Settings
from bench.train.pictures import Painter, sheet
from bench.train.source import Source, Stage, sides
from bench.train.text_to_picture import Text2Image, latents_of

WEIGHTS = Path(__file__).resolve().parents[2] / "bench" / "weights"
OBJECTS = {"hot pepper": (200, 20, 20), "fox": (240, 130, 30), "whale": (30, 80, 220), "pear": (120, 200, 60)}
TINY = flux.Shape(hidden=flux.HEAD, double=1, single=1)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    """Objects are discs of one colour, photos are noise."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for name, colour in OBJECTS.items():
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[x**2 + y**2 < 0.8] = (*colour, 255)
        Image.fromarray(pixels).save(folder / f"{name}.webp", lossless=True)
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    for file in (*captions.PHOTOS.values(), "grass.png", "gravel.png", "brick.png"):
        Image.fromarray(noise).save(folder / file)
    return Painter({name: folder / f"{name}.webp" for name in OBJECTS}, folder)


@pytest.fixture(autouse=True)
def two_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets of two captions."""
    two = [Caption(("fox",), ("red",)), Caption(("pear",), ("blue",))]
    monkeypatch.setattr(module_of_tasks, "shown_captions", lambda _: two)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- captions and pictures ------------------------------------------------------------------------------------------


def test_captions_have_at_most_twelve_words_and_held_out_ones_are_never_drawn() -> None:
    known = [f"thing{i} part{i}" for i in range(40)]
    shown = [draw(rng(seed), known) for seed in range(600)]
    assert max(len(str(caption).split()) for caption in shown) == 12
    assert not any(caption.held_out for caption in shown)
    assert all(draw(rng(seed), known, held_out=True).held_out for seed in range(50))
    for part in ("small", "large", "at the left", "at the top", "left of", "below", " to ", "grass", "a photo of"):
        assert any(part in str(caption) for caption in shown), part


def test_both_halves_of_a_held_out_combination_are_trained() -> None:
    combinations = [(name, colour) for name in ("fox", "pear", "whale", "bus", "jar") for colour in COLOURS]
    held = [pair for pair in combinations if Caption((pair[0],), (pair[1],)).held_out]
    assert 1 <= len(held) <= 15
    seen = [pair for pair in combinations if pair not in held]
    assert {name for name, _ in held} <= {name for name, _ in seen}
    assert {colour for _, colour in held} <= {colour for _, colour in seen}
    first = Caption(("fox", "bus"), ("red", "blue"), relation="above")
    assert first.held_out == replace(first, names=("bus", "fox")).held_out, "whichever is named first"


def test_names_are_plain_objects_with_a_picture(tmp_path: Path) -> None:
    groups = [{"order": 1, "key": "animal-mammal"}, {"order": 2, "key": "keycap"}]
    items = [("1F98A", "fox", 1), ("1F434", "horse face", 1), ("31-FE0F", "keycap: 1", 2), ("1F40E", "no picture", 1),
             ("1F43B-200D", "polar bear", 1), ("1F436", "a dog of three", 1), ("2708", "plane", 1)]  # fmt: skip
    data = [{"hexcode": code, "label": label, "subgroup": group} for code, label, group in items]
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "messages.json").write_text(json.dumps({"subgroups": groups}))
    for stem in ("1f98a", "1f434", "31-fe0f", "1f43b-200d", "1f436", "2708-fe0f"):
        (tmp_path / f"{stem}.webp").touch()
    found = captions.names(tmp_path, tmp_path)
    assert {name: path.stem for name, path in found.items()} == {
        "fox": "1f98a", "horse face": "1f434", "plane": "2708-fe0f"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "row", "column"), [("left", 0, -1), ("right", 0, 1), ("top", -1, 0), ("bottom", 1, 0)]
)
def test_an_object_lies_where_the_caption_says(painter: Painter, place: str, row: int, column: int) -> None:
    y, x = middle_of(painter.paint(Caption(("whale",), ("white",), "small", place), rng(), 96, 128))
    assert (np.sign(round(y / 8)), np.sign(round(x / 8))) == (row, column)


def test_two_objects_lie_as_related(painter: Painter) -> None:
    caption = Caption(("fox", "whale"), ("white",), relation="left of")
    picture = painter.paint(caption, rng(), 96, 96)
    blue = picture[..., 2] - picture[..., 0]
    columns = np.arange(96) - 47.5
    assert (np.clip(blue, 0, 1).sum(0) * columns).sum() > 0 > (np.clip(-blue, 0, 1).sum(0) * columns).sum()


def middle_of(picture: np.ndarray) -> tuple[float, float]:
    """Where the coloured pixels lie, from the picture's middle, in pixels."""
    weight = (picture.max(axis=2) - picture.min(axis=2)) > 0.3
    y, x = np.nonzero(weight)
    return float(y.mean() - (picture.shape[0] - 1) / 2), float(x.mean() - (picture.shape[1] - 1) / 2)


def test_sizes_differ_and_grounds_have_their_colour(painter: Painter) -> None:
    areas = []
    for size in ("small", "", "large"):
        picture = painter.paint(Caption(("whale",), ("white",), size), rng(), 96, 96)
        areas.append(int(((picture.max(axis=2) - picture.min(axis=2)) > 0.3).sum()))
    assert areas[0] * 1.5 < areas[1] and areas[1] * 1.3 < areas[2]
    for colour in COLOURS:
        picture = torch.from_numpy(painter.paint(Caption(("pear",), (colour,)), rng(), 64, 64)).permute(2, 0, 1)
        assert checks.nearest_colour(picture) == colour
    ramp = painter.paint(Caption(("pear",), ("black", "white")), rng(), 64, 64)[:, 0, 0]
    assert ramp[0] < 0.2 and ramp[-1] > 0.8 and (np.diff(ramp) > 0).all()


def test_a_photo_fills_the_picture_in_any_aspect(painter: Painter) -> None:
    picture = painter.paint(Caption(photo="cat"), rng(), 48, 112)
    assert picture.shape == (48, 112, 3) and picture.std() > 0.05
    assert sheet([picture] * 3, 2).size == (224, 96)


@pytest.mark.parametrize("side", [96, 128, 192])
def test_every_aspect_has_about_as_many_tokens_as_the_square(side: int) -> None:
    for seed in range(30):
        height, width = sides(side, rng(seed))
        assert height % 16 == width % 16 == 0
        assert 0.8 < height * width / side**2 < 1.1


# --- conditioning ---------------------------------------------------------------------------------------------------


def test_twelve_words_are_told_and_eight_are_as_before() -> None:
    tokens, pooled = conditioning.conditioning(["a polar bear left of a hot pepper on red to blue", ""])
    assert tokens.shape == (2, 12, 64) and pooled.shape == (2, 64)
    assert tokens[0].abs().amax(dim=1).min() > 0 and not tokens[1].any()
    short, short_pooled = conditioning._rule().conditioning("a large red circle on grass", 8)
    assert short.shape == (1, 8, 64)
    longer, longer_pooled = conditioning.conditioning(["a large red circle on grass"])
    assert torch.equal(longer[:, :8], short) and torch.equal(longer_pooled, short_pooled) and not longer[:, 8:].any()


# --- latents and autoencoder ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(painter: Painter) -> Space:
    shown = [painter.paint(draw(rng(i), painter.names), rng(i), 48, 64) for i in range(40)]
    return Space.fit(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2))


def test_the_space_keeps_what_matters_and_weighs_structure_most(painter: Painter, space: Space) -> None:
    picture = torch.from_numpy(painter.paint(Caption(("fox",), ("red", "blue")), rng(), 64, 64)).permute(2, 0, 1)[None]
    latents = space.encode(picture)
    assert latents.shape == (1, 16, 8, 8)
    assert (space.decode(latents) - picture).square().mean() < 0.05 * picture.var()
    assert torch.allclose(space.encode(space.decode(latents)), latents, atol=1e-4)
    spread = (space.matrix.norm(dim=1)).reciprocal()  # 1 / gain: grows with the root of the deviation
    assert (spread.diff() < 1e-6).all() and spread[0] > 2 * spread[-1]


def test_the_space_has_unit_variance_and_is_kept(space: Space, painter: Painter, tmp_path: Path) -> None:
    shown = [painter.paint(draw(rng(i), painter.names), rng(i), 48, 64) for i in range(40)]
    latents = space.encode(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2))
    assert latents.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, rel=0.02)
    space.save(tmp_path / "space.safetensors")
    assert torch.equal(Space.load(tmp_path / "space.safetensors").matrix, space.matrix)


def test_the_encoder_computes_exactly_the_space(space: Space) -> None:
    pictures = torch.rand(2, 3, 40, 64)
    with torch.no_grad():
        assert torch.allclose(autoencoder.linear_encoder(space)(pictures), space.encode(pictures), atol=1e-4)


def test_the_autoencoders_file_has_the_formats_tensors(space: Space) -> None:
    ours, theirs = (
        autoencoder.exported(space, autoencoder.decoder().state_dict()),
        load_file(WEIGHTS / "emoji_taef1.safetensors"),
    )
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert ours["vae_scale"] == theirs["vae_scale"] and ours["vae_shift"] == theirs["vae_shift"]


def test_the_decoder_learns(painter: Painter, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "CROP", 16)
    monkeypatch.setattr(autoencoder, "BATCH", 1)
    torch.manual_seed(0)
    source = autoencoder.Crops(painter, space)
    task = autoencoder.Decoding("autoencoder", autoencoder.decoder(), source, Ahead(source.batch, 0))
    run = Run(task, Settings(steps=1000, muon=False, average=0.5, warmup=1), tmp_path)
    figures = [run.one_step()["psnr"] for _ in range(6)]
    with torch.no_grad():
        assert task.loss(0)[1]["psnr"] > figures[0] + 0.5
    assert autoencoder.quality(space, run.average.weights, painter, count=1, side=64) > 3


# --- flow -----------------------------------------------------------------------------------------------------------


def test_sampling_a_single_picture_finds_it() -> None:
    """Where all data is one point, the velocity is (x − point) / t, and Euler is exact."""
    point = torch.randn(1, 16, 4, 4)
    noise = torch.randn(3, 16, 4, 4)
    found = flow.sample(lambda x, t: (x - point) / t.reshape(-1, 1, 1, 1), noise, 5)
    assert torch.allclose(found, point.expand_as(noise), atol=1e-5)


def test_noised_latents_move_along_the_velocity() -> None:
    x, noise, t = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.tensor([0.0, 0.3, 0.7, 1.0])
    noisy, velocity = flow.noised(x, noise, t)
    assert torch.allclose(noisy - t.reshape(-1, 1, 1, 1) * velocity, x, atol=1e-6)
    assert torch.equal(noisy[0], x[0]) and torch.equal(noisy[3], noise[3])


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (144, 0.481)])
def test_times_and_levels_follow_fluxs_shift(tokens: int, mu: float) -> None:
    assert flow.shift(tokens) == pytest.approx(mu, abs=1e-3)
    t = flow.times(4096, tokens, torch.Generator().manual_seed(0))
    logits = torch.logit(t)
    assert logits.mean().item() == pytest.approx(mu, abs=0.02) and logits.std().item() == pytest.approx(1, abs=0.02)
    levels = flow.sigmas(8, tokens)
    assert levels[0] == 1 and levels[-1] == 0 and (levels.diff() < 0).all()
    assert levels[4].item() == pytest.approx(1 / (1 + math.exp(-mu)), abs=1e-4)


def test_guidance_pushes_away_from_the_unconditional() -> None:
    one, two = (lambda x, t: x + 1), (lambda x, t: x)
    x = torch.zeros(2)
    assert torch.equal(flow.guided(one, two, 3.0)(x, x), torch.full((2,), 3.0))
    assert flow.guided(one, two, 1) is one


# --- transformers ---------------------------------------------------------------------------------------------------


def wake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights where a new model has zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_exported_names_are_those_of_the_present_weights() -> None:
    """Block 0 of each kind, and everything outside blocks."""

    def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in tensors.items() if not re.search(r"blocks\.[1-9]", name)}

    ours = flux.exported(flux.Flux(flux.Shape(double=1, single=1)).state_dict())
    assert shapes(ours) == shapes(load_file(WEIGHTS / "emoji_flux.safetensors"))


@pytest.mark.parametrize("model", [flux.Flux(TINY), qwen.QwenImage(qwen.Shape(hidden=flux.HEAD, blocks=2))])
def test_a_transformer_starts_at_zero_and_depends_on_everything(model: Any) -> None:
    x, t, (context, pooled) = torch.randn(1, 16, 4, 6), torch.tensor([0.5]), conditioning.conditioning(["a fox on red"])
    with torch.no_grad():
        assert not model(x, t, context, pooled).any()
        wake(model)
        out = model(x, t, context, pooled)
        assert out.shape == x.shape
        assert not torch.allclose(out, model(x, t + 0.2, context, pooled))
        assert not torch.allclose(out, model(x, t, context * 0, pooled * 0))
        assert not torch.allclose(out, model(x, t, context, pooled, spread=2.0)), "positions"
        turned = model(x.flip(-1), t, context, pooled).flip(-1)
        assert not torch.allclose(out, turned)


@pytest.mark.parametrize("model", [flux.Flux(TINY), qwen.QwenImage(qwen.Shape(hidden=flux.HEAD, blocks=1))])
def test_bfloat16_computes_nearly_the_same(model: Any) -> None:
    """What machines with units for it train in."""
    wake(model)
    x, t, (context, pooled) = torch.randn(1, 16, 4, 4), torch.tensor([0.5]), conditioning.conditioning(["a fox on red"])
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(x, t, context, pooled).float().square().mean().backward()
        found = [parameter.grad for parameter in model.parameters()]  # Qwen-Image's last text goes nowhere
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95 and not torch.equal(*gradients)


def test_the_guidance_is_told_as_a_number() -> None:
    model = wake(flux.Flux(replace(TINY, guidance=True)))
    x, t, (context, pooled) = torch.randn(1, 16, 4, 4), torch.tensor([0.5]), conditioning.conditioning(["a fox"])
    with torch.no_grad():
        low, high = (model(x, t, context, pooled, torch.tensor([scale])) for scale in (1.0, 4.0))
    assert not torch.allclose(low, high)


# --- the optimiser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_muon_makes_a_matrix_nearly_orthonormal(shape: tuple[int, int], kind: torch.dtype | None) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = optimiser.orthogonal(matrices, kind=kind)
    assert found.dtype == matrices.dtype
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices / matrices.norm(dim=(1, 2), keepdim=True)).min() < 0.2, "it was not before"


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [((768, 256), 3), ((1792, 256), 4), ((256, 1280), 2), ((256, 256), 1), ((1024, 256), 1), ((256, 1024), 1)],
)
def test_fused_matrices_are_taken_apart(shape: tuple[int, int], pieces: int) -> None:
    matrix = torch.zeros(shape)
    found = optimiser.parts(matrix)
    assert len(found) == pieces
    for part in found:
        part.add_(1)
    assert (matrix == 1).all(), "views that cover it once"


def test_each_parameter_has_one_optimiser() -> None:
    model = flux.Flux(TINY)
    movers = optimiser.optimisers(model, 1e-3, muon=True)
    owned = [id(parameter) for mover in movers for group in mover.param_groups for parameter in group["params"]]
    assert sorted(owned) == sorted(map(id, model.parameters()))
    assert len(optimiser.optimisers(model, 1e-3, muon=False)) == 1


def test_the_schedule_is_level_until_it_cools_so_that_a_goal_can_be_raised() -> None:
    assert optimiser.schedule(0, 1000) == 0.01 and optimiser.schedule(99, 1000) == 1.0
    before = [optimiser.schedule(step, 1000) for step in range(800)]
    assert before == [optimiser.schedule(step, 5000) for step in range(800)]
    cooling = [optimiser.schedule(step, 1000) for step in range(800, 1001)]
    assert cooling == sorted(cooling, reverse=True) and cooling[0] == 1 and cooling[-1] == pytest.approx(0.02)


# --- the loop -------------------------------------------------------------------------------------------------------


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))})["blocks"]


def points(step: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


@dataclass
class Line:
    """A toy task: a line through noisy points, with a matrix that Muon moves."""

    name: str = "line"
    model: nn.Module = field(default_factory=seeded)
    interrupt_at: int = -1
    batches: Ahead[Tensor] = field(default_factory=lambda: Ahead(points, 0))
    shown: list[str] = field(default_factory=list)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = self.batches(step)
        return (self.model(x) - x.flip(1)).square().mean(), {"even": float(step % 2 == 0)}

    def show(self, weights: dict[str, Tensor], step: int, path: Path) -> None:
        self.shown.append(path.name)


def state(run: Run) -> list[Tensor]:
    return [*run.task.model.state_dict().values(), *run.average.weights.values()]


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_run_that_was_stopped_goes_the_way_of_one_that_was_not(tmp_path: Path) -> None:
    settings = Settings(steps=40, cool=0.5)
    whole = Run(Line(), settings, tmp_path / "whole")
    assert whole.train()
    stopped = Run(Line(interrupt_at=17), settings, tmp_path / "stopped")
    assert not stopped.train() and stopped.step == 18
    again = Run(Line(model=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))), settings, tmp_path / "stopped")
    assert again.step == 18 and same(state(again), state(stopped))
    assert again.train()
    assert same(state(again), state(whole)) and not same(state(again), state(stopped))
    assert again.task.shown == ["sheet-000040.png"]  # type: ignore[attr-defined]
    assert not list((tmp_path / "stopped").glob("*.part"))


class Two(nn.Module):
    """Two layers of different shapes, in either order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {"a": nn.Linear(4, 8), "b": nn.Linear(8, 4)}
        self.blocks = nn.ModuleDict({name: layers[name] for name in order})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks["b"](self.blocks["a"](x))
        return out


def test_a_checkpoint_is_read_by_names_whatever_order_they_have_now(tmp_path: Path) -> None:
    settings = Settings(steps=6, warmup=1)
    Run(Line(model=Two("ab")), settings, tmp_path / "turned").train(until=3)
    turned = Run(Line(model=Two("ba")), settings, tmp_path / "turned")
    whole = Run(Line(model=Two("ba")), settings, tmp_path / "whole")
    assert turned.train() and whole.train()
    for name, value in whole.average.weights.items():
        assert torch.allclose(turned.average.weights[name], value, atol=1e-6), name


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    run, second = (Run(Line(), Settings(steps=2), tmp_path) for _ in range(2))
    with run.alone(), pytest.raises(SetupError, match="Another process trains"):
        second.train()
    assert (tmp_path / "pid").read_text() == str(os.getpid())
    assert run.train(), "the lock is given back"
    assert second.train() and same(state(second), state(run)), "it goes on where the other ended"


def test_the_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Run(Line(), Settings(steps=2), tmp_path).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_that_could_not_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Line(), Settings(steps=10), tmp_path)
    run.train(until=5)

    def full(_state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        run.train(until=8)
    monkeypatch.undo()
    assert Run(Line(), Settings(steps=10), tmp_path).step == 5


def test_a_raised_goal_goes_on_and_the_log_has_every_step_once(tmp_path: Path) -> None:
    assert Run(Line(), Settings(steps=20), tmp_path).train()
    run = Run(Line(), Settings(steps=60), tmp_path)
    assert not run.done and run.train() and run.done
    rows = export.read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["loss"] < rows[0]["loss"]


def test_steps_that_are_not_finite_move_nothing(tmp_path: Path) -> None:
    @dataclass
    class Bad(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            return super().loss(step)[0] * float("nan"), {}

    run = Run(Bad(), Settings(steps=2), tmp_path)
    before = [value.clone() for value in run.task.model.state_dict().values()]
    run.one_step()
    assert same(before, list(run.task.model.state_dict().values()))


def test_other_processes_make_the_same_batches(painter: Painter, space: Space) -> None:
    source = source_of(painter, space)
    ahead = Ahead(source.batch, 1)
    try:
        for step in (0, 1, 2, 7):
            assert torch.equal(ahead(step).x, source.batch(step).x)
    finally:
        ahead.close()


# --- the tasks ------------------------------------------------------------------------------------------------------


def source_of(painter: Painter, space: Space, dropped: float = 0.1) -> Source:
    return Source(painter, space, (Stage(5, 32, 4, 2), Stage(100, 64, 2, 4)), dropped=dropped)


def text_to_picture(painter: Painter, space: Space) -> Text2Image:
    source = source_of(painter, space)
    return Text2Image("flux", flux.Flux(TINY), source, Ahead(source.batch, 0))


def test_a_batch_comes_from_its_step_alone(painter: Painter, space: Space) -> None:
    task = source_of(painter, space)
    one, two = task.batch(3), task.batch(3)
    assert torch.equal(one.x, two.x) and torch.equal(one.noise, two.noise) and torch.equal(one.context, two.context)
    assert not torch.equal(one.noise, task.batch(4).noise)
    assert len(one.x) == 4 and one.spread == 6 and len(task.batch(50).x) == 2
    assert task.stage(10**6) is task.stages[-1], "a raised goal goes on in the last stage"


def test_a_tenth_of_the_captions_is_dropped(painter: Painter, space: Space) -> None:
    task, never = source_of(painter, space), source_of(painter, space, dropped=0.0)
    empty = [not pooled.any() for step in range(100) for pooled in task.batch(step % 5 + 1000 * (step // 5)).pooled]
    assert 0.04 < sum(empty) / len(empty) < 0.18
    assert all(pooled.any() for step in range(20) for pooled in never.batch(step).pooled)


def test_the_flow_of_one_caption_is_learned(painter: Painter, space: Space, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Run(text_to_picture(painter, space), Settings(steps=500, rate=1e-3, warmup=1), tmp_path)
    with torch.no_grad():
        before, figures = run.task.loss(0)
    assert {"low", "high"} <= set(figures)
    for _ in range(10):
        run.one_step()
    with torch.no_grad():
        assert run.task.loss(0)[0] < 0.97 * before
    run.show()
    assert Image.open(tmp_path / "sheet-000010.png").size == (2 * 64, 64)


def test_a_student_begins_as_its_teacher_and_learns_its_guidance(
    painter: Painter, space: Space, tmp_path: Path
) -> None:
    teacher = wake(flux.Flux(TINY))
    student = flux.Flux(replace(TINY, guidance=True))
    distil.from_teacher(student, teacher.state_dict())
    x, t, (context, pooled) = torch.randn(2, 16, 4, 4), torch.rand(2), conditioning.conditioning(["a fox", "a pear"])
    with torch.no_grad():
        assert torch.allclose(student(x, t, context, pooled, torch.tensor([1.0, 4.0])), teacher(x, t, context, pooled))
    teacher.requires_grad_(False)
    source = source_of(painter, space, dropped=0.0)
    task = distil.Distilled("flux-guided", student, teacher, source, Ahead(source.batch, 0))
    run = Run(task, Settings(steps=500, rate=2e-4, warmup=1), tmp_path)
    with torch.no_grad():
        before = task.loss(0)[0].item()
    for _ in range(4):
        run.one_step()
    with torch.no_grad():
        assert task.loss(0)[0].item() < before


def test_latents_of_a_student_take_one_call_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for guidance, expected in ((False, 2 * 3), (True, 3)):
        model, calls = wake(flux.Flux(replace(TINY, guidance=guidance))), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            assert latents_of(model, ["a fox"], 32, 6.0, 3.0, "cpu", steps=3).shape == (1, 16, 4, 4)  # type: ignore[arg-type]
        assert len(calls) == expected


# --- checks, cards, files -------------------------------------------------------------------------------------------


class ByColour:
    """A judge that sees the mean colour of the middle."""

    def features(self, pictures: Tensor) -> Tensor:
        side = pictures.shape[-1]
        return pictures[..., side // 3 : -(side // 3), side // 3 : -(side // 3)].mean(dim=(2, 3))


def test_checks_tell_good_pictures_from_wrong_ones(painter: Painter) -> None:
    bench = checks.Bench(painter, ByColour(), painter.names, 30, 96)  # type: ignore[arg-type]
    right = bench.score(bench.painted)
    assert right.object > 0.75 and right.ground == 1 and "of 30" in right.row("painted")
    others = {name: painter.names[index - 1] for index, name in enumerate(painter.names)}
    wrong = bench.score(lambda shown: bench.painted([replace(c, names=(others[c.names[0]],)) for c in shown]))
    assert wrong.object < 0.25 and wrong.ground == 1
    assert bench.score(lambda shown: bench.painted([replace(c, ground=("gray",)) for c in shown])).ground < 0.5
    assert all(caption.held_out for caption in bench.captions)


def test_a_card_says_what_was_done_and_weights_are_the_average(painter: Painter, space: Space, tmp_path: Path) -> None:
    run = Run(text_to_picture(painter, space), Settings(steps=100), tmp_path / "run")
    run.train(until=2)
    weights, card = export.write(run, tmp_path / "out")
    text = card.read_text("utf-8")
    assert weights.name == "emoji_flux.safetensors" and "2 of 100 steps" in text and "MIT" in text and "| 2 | " in text
    saved = load_file(weights)
    expected = flux.exported(run.average.weights)
    assert saved.keys() == expected.keys() and all(value.dtype == torch.float16 for value in saved.values())
    assert torch.allclose(saved["x_embedder.weight"].float(), expected["x_embedder.weight"], atol=1e-3)


@pytest.mark.parametrize("guidance", [False, True])
def test_weights_come_back_from_the_names_in_the_file(guidance: bool) -> None:
    own = wake(flux.Flux(flux.Shape(double=1, single=2, guidance=guidance))).state_dict()
    back = flux.imported(flux.exported(own), own)
    assert back.keys() == own.keys() and all(torch.equal(back[name], value) for name, value in own.items())


def test_the_qwen_image_leaves_out_what_nothing_reads() -> None:
    """The last block's text goes nowhere: its parameters are not shipped, and what is shipped gives the same output."""
    model = wake(qwen.QwenImage(qwen.Shape(hidden=flux.HEAD, blocks=2)))
    own, (context, pooled) = model.state_dict(), conditioning.conditioning(["a fox"])
    file = qwen.exported(own)
    left_out = {name.rpartition(".")[0] for name in own if name not in file}
    parts = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    assert left_out == {f"transformer_blocks.1.{part}" for part in parts}
    x, t = torch.randn(1, 16, 4, 4), torch.tensor([0.5])
    with torch.no_grad():
        before = model(x, t, context, pooled)
        fresh = qwen.QwenImage(qwen.Shape(hidden=flux.HEAD, blocks=2))
        fresh.load_state_dict(qwen.imported(file, fresh.state_dict()))
        assert torch.equal(fresh(x, t, context, pooled), before) and before.any()


def test_a_machine_that_has_trained_nothing_goes_on_from_the_shipped_weights(
    painter: Painter, space: Space, tmp_path: Path
) -> None:
    first = Run(text_to_picture(painter, space), Settings(steps=100), tmp_path / "first")
    first.train(until=2)
    export.write(first, tmp_path / "shipped")
    second = Run(text_to_picture(painter, space), Settings(steps=100), tmp_path / "second")
    export.go_on(second, tmp_path / "shipped")
    assert second.step == 2
    for weights in (second.task.model.state_dict(), second.average.weights):
        assert all(torch.allclose(weights[n], value, atol=1e-3) for n, value in first.average.weights.items())
    assert second.train(until=3) and second.step == 3
    third = Run(text_to_picture(painter, space), Settings(steps=100), tmp_path / "second")
    export.go_on(third, tmp_path / "shipped")
    assert third.step == 3, "what was trained here counts more"


@pytest.mark.parametrize("name", ["flux", "flux-guided", "qwen"])
def test_every_shipped_model_is_what_a_fresh_machine_checks(
    name: str, painter: Painter, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path))
    monkeypatch.setattr(recipes.Painter, "from_packages", lambda: painter)
    monkeypatch.setattr(recipes, "space", lambda _: space)
    run = recipes.MODELS[name]("cpu", 0)
    file = WEIGHTS / f"{export.FILES[name]}.safetensors"
    with safe_open(file, "pt") as opened:
        assert run.step == int(opened.metadata()[export.STEPS]) > 0
    shipped, ours = load_file(file), export.tensors(run)
    assert ours.keys() == shipped.keys()
    assert all(torch.equal(ours[each].half(), value) for each, value in shipped.items())


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package client that delivers one archive."""
    archive = tmp_path / "thing-1.0.whl"
    with zipfile.ZipFile(archive, "w") as target:
        for name in (
            "thing/data/a.png",
            "thing/data/deep/b.png",
            "thing/c.png",
            "../thing/data/d.png",
            "thing/data/e.py",
        ):
            target.writestr(name, name)
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path / "cache"))

    def deliver(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        (cwd / archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(files.subprocess, "run", deliver)
    yield archive


def test_only_the_wanted_files_of_a_pinned_package_are_kept(registry: Path) -> None:
    pin = hashlib.sha256(registry.read_bytes()).hexdigest()
    package = files.Package("pip", "thing", "1.0", pin, "thing/data", (".png",))
    folder = files.folder_of(package)
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    registry.unlink()
    assert files.folder_of(package) == folder, "the second time nothing is fetched"


def test_another_file_than_the_pinned_one_is_refused(registry: Path) -> None:
    with pytest.raises(SetupError, match="not the file we pinned"):
        files.folder_of(files.Package("pip", "thing", "1.0", "0" * 64, "thing/data", (".png",)))
    assert not list((files.training_folder() / "data").iterdir())


def test_a_missing_npm_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path))
    monkeypatch.setattr(files.shutil, "which", lambda _: None)
    with pytest.raises(SetupError, match=r"install Node\.js"):
        files.folder_of(files.EMOJI)


def test_the_command_says_what_there_is_to_train() -> None:
    told = command.parser().format_help()
    assert all(name in told for name in ("data", "autoencoder", "flux-guided", "qwen", "--check", "--export"))
