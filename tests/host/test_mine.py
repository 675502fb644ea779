"""`bench mine` and `bench dynamics` on the real host, in this process: the small models in a user's places, through the
host's own loaders, at a size of seconds. What they measure is judged nowhere here.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "bench" / "weights"
WIDTH, LAYERS, VOCABULARY, LONGEST = 64, 2, 49408, 77
"""Of a text encoder that the small FLUX understands, in CLIP-L's format."""
SMALL = ("--device", "cpu", "--steps", "6", "--size", "96x96", "--yes")
Bench = Callable[..., int]


@pytest.fixture
def bench(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`dev.py bench`, as far as this process is concerned."""
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    assert spec is not None and spec.loader is not None
    run: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    run.find_modules()

    def start(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        return int(run.main([*arguments, "--out", str(tmp_path / "out")]))

    return start


def rows(file: Path) -> dict[str, dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as handle:
        return {row["name"]: row for row in csv.DictReader(handle)}


def encoder(host: Any, file: Path) -> None:
    """CLIP-L's format at a width of 64: a word's first token is the vector that the small FLUX learned for it, all else
    nothing; its layers add nothing.
    """
    tokenizer = importlib.import_module("comfy.sd1_clip").SDTokenizer()
    table = torch.zeros(VOCABULARY, WIDTH)
    for word in "a photo of large small fox cloud on blue sky rocket cat".split():
        first = tokenizer.tokenize_with_weights(word)[0][1][0]
        table[first] = host.words.vector(word)
    places = torch.zeros(LONGEST, WIDTH)
    for i in range(host.words.TOKENS):  # behind the start token
        places[i + 1] = host.words.POSITION_SCALE * host.words.vector(f"pos{i}")
    square, row = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH)
    inside = [f"text_model.encoder.layers.{i}." for i in range(LAYERS)]
    parts = [*(f"self_attn.{part}_proj" for part in "qkv"), "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
    linear = [layer + part for layer in inside for part in parts]
    norms = [layer + part for layer in inside for part in ("layer_norm1", "layer_norm2")]
    norms.append("text_model.final_layer_norm")
    weights = {
        "text_model.embeddings.token_embedding.weight": table,
        "text_model.embeddings.position_embedding.weight": places,
        "text_projection.weight": torch.eye(WIDTH),
        **{f"{name}.weight": square.clone() for name in linear},
        **{f"{name}.weight": torch.ones(WIDTH) for name in norms},
        **{f"{name}.bias": row.clone() for name in [*linear, *norms]},
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, file)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host builds CLIP-L at that width, through its own seam: else its dimensions come from a file of its own."""
    sd = importlib.import_module("comfy.sd")
    own, sizes = sd.load_clip, {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
                                "intermediate_size": WIDTH}  # fmt: skip

    def load(*args: Any, **kwargs: Any) -> Any:
        options = {**kwargs.pop("model_options", {}), "model_config": dict(sizes)}
        return own(*args, **kwargs, model_options=options)

    monkeypatch.setattr(sd, "load_clip", load)


@pytest.mark.usefixtures("narrow")
def test_a_users_own_files_are_measured_and_resumed(
    bench: Bench, host: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder(host, tmp_path / "clip_l.safetensors")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of rocket\n\na large fox on blue\n", "utf-8")
    arguments = ("mine", "--unet", str(WEIGHTS / "emoji_flux.safetensors"), "--clip",
                 str(tmp_path / "clip_l.safetensors"), "--vae", str(WEIGHTS / "emoji_taef1.safetensors"),
                 "--prompts", str(prompts), "--pairs", "1", "--exact", "4", *SMALL)  # fmt: skip
    assert bench(*arguments) == 0
    out = tmp_path / "out"
    found = rows(out / "mine.csv")
    assert float(found["every step, again"]["psnr"]) == float("inf")
    assert float(found["Auto 2x"]["computed"]) == 3 == float(found["3 steps"]["computed"])
    on_dpmpp = found["3 steps, dpmpp_2m, simple"]
    assert on_dpmpp["psnr"] not in (found["3 steps"]["psnr"], found["3 steps, ipndm, beta"]["psnr"])
    assert all(row["exact"] and float(row["seconds"]) > 0 for row in found.values()) and len(found) > 20
    page = (out / "mine.md").read_text("utf-8")
    assert "| Auto 2x | 3.0 |" in page and "clip_l.safetensors" in page and "a photo of rocket" in page
    assert "6 steps, CFG 3, 96 x 96, shift 1.62" in page and "ComfyUI" in page and "| pack | code " in page
    assert Image.open(out / "sheet.jpg").width > 1000
    first = capsys.readouterr().err
    assert "about" in first and "Auto 2x: 3 of 6 computed" in first
    runs = {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert bench(*arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == runs
    assert "Auto 2x" not in capsys.readouterr().err, "nothing is made again"


def test_what_cannot_be_measured_is_said_with_the_way_out(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    unet, vae = (str(WEIGHTS / name) for name in ("emoji_flux.safetensors", "emoji_taef1.safetensors"))
    for arguments, said in (
        (("--vae", vae), "give --unet FILE"),
        (("--unet", "absent.safetensors"), "--unet: absent.safetensors is no file, and none of diffusion_models"),
        (("--unet", unet), "give --vae FILE"),
        (("--unet", vae, "--vae", vae), "ComfyUI's loaders"),
        (("--unet", unet, "--vae", vae, "--size", "big"), "--size: big is no size; write 1024x1024"),
        (("--unet", unet, "--vae", vae, "--size", "64x96"), "--size: too small to be compared with this model; give 8"),
        (("--unet", unet, "--vae", vae, "--clip", *"abcd"), "--clip: a is no file, and none of text_encoders"),
        (("--unet", unet, "--vae", vae, "--clip", *[vae] * 4), "--clip: 4 files; ComfyUI's loaders take one, two or"),
    ):
        assert bench("mine", *SMALL, *arguments) == 1
        assert said in capsys.readouterr().err, arguments


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_cuda_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("mine", "--device", "cuda", "--yes") == 1
    assert "--device cuda: torch sees no GPU; leave it out, or use the Python" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "place"),
    [(1, "nodes:CLIPLoader.load_clip"), (2, "nodes:DualCLIPLoader.load_clip"),
     (3, "comfy_extras.nodes_sd3:TripleCLIPLoader.execute")],
)  # fmt: skip
def test_text_encoders_go_to_the_hosts_loader_of_as_many(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int,
    place: str,
) -> None:  # fmt: skip
    """With the arguments that the host's own function takes, the files where it looks, and the family's type."""
    module, _, name = place.partition(":")
    cls, function = name.split(".")
    loader = getattr(importlib.import_module(module), cls)
    own, given = inspect.signature(getattr(loader, function)), {}

    def load(*args: Any, **kwargs: Any) -> Any:
        given.update(own.bind(*args, **kwargs).arguments)
        raise RuntimeError("far enough")

    monkeypatch.setattr(loader, function, load)
    files = [tmp_path / f"encoder {i}.safetensors" for i in range(count)]
    for file in files:
        file.write_bytes(b"")
    arguments = ("--unet", str(WEIGHTS / "emoji_flux.safetensors"), "--clip", *map(str, files))
    assert bench("mine", *SMALL, *arguments) == 1
    assert "far enough" in capsys.readouterr().err
    given.pop("self", None)
    assert given.pop("type", None) == (None if count == 3 else "flux")  # of three the host takes no type
    assert list(given.values()) == [file.name for file in files]
    paths = importlib.import_module("folder_paths")
    assert [paths.get_full_path("text_encoders", file.name) for file in files] == [*map(str, files)]


def test_a_checkpoint_is_its_parts_in_one_file(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the host itself writes one; without a decoder in it, one has to be named."""
    sd, vae = importlib.import_module("comfy.sd"), str(WEIGHTS / "emoji_taef1.safetensors")
    unet = str(WEIGHTS / "emoji_flux.safetensors")
    for name, decoder in (("whole", sd.VAE(sd=load_file(vae))), ("part", None)):
        sd.save_checkpoint(str(tmp_path / f"{name}.safetensors"), sd.load_diffusion_model(unet), vae=decoder)
    assert bench("mine", *SMALL, "--checkpoint", str(tmp_path / "part.safetensors")) == 1
    assert "no decoder: give --vae FILE" in capsys.readouterr().err
    figures = []
    for arguments in (
        ("--checkpoint", str(tmp_path / "whole.safetensors")),
        ("--unet", unet, "--vae", vae),
    ):
        assert bench("mine", *SMALL, "--size", "88x88", "--quick", *arguments) == 0
        found = rows(tmp_path / "out" / "mine.csv")
        figures.append({name: (row["computed"], row["psnr"]) for name, row in found.items()})
        assert ("whole.safetensors" in (tmp_path / "out" / "mine.md").read_text("utf-8")) == (len(figures) == 1)
    assert figures[0] == figures[1] and len(figures[0]) > 8


@pytest.mark.parametrize("model", ["flux-guided", "qwen"])
def test_dynamics_measures_every_part_and_leaves_the_model_as_it_was(
    bench: Bench, host: Any, tmp_path: Path, model: str
) -> None:
    assert bench("dynamics", "--quick", "--side", "12", "--model", model) == 0
    with open(tmp_path / "out" / f"dynamics-{model}.csv", encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    parts = {(row["part"], row["series"]) for row in found}
    assert {part for part, _ in parts} == {
        "sensitivity", "depth", "bands", "similarity", "continuity", "forecast", "relation",
    }  # fmt: skip
    assert all(float(row["value"]) > 0 for row in found if row["part"] in ("sensitivity", "depth", "bands"))
    assert all(-1.001 <= float(row["value"]) <= 1.001 for row in found if row["part"] in ("similarity", "continuity"))
    start = {int(row["x"]): float(row["value"]) for row in found if row["series"] == "from the start"}
    assert len(set(start.values())) == len(start) > 1  # each choice of blocks is another run
    page = (tmp_path / "out" / f"dynamics-{model}.md").read_text("utf-8")
    assert "published" in page and "§3.3" in page
