"""The bench's commands on the real host, at a size of seconds, each in a fork of a process that has ComfyUI imported
(warm_bench.py); one in a process of its own, as `dev.py bench` starts it.

What they measure is judged nowhere here: only that every arm runs, computes what its name says, and is written down.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Output and store of this module: nothing of an earlier run is reused."""
    yield tmp_path_factory.mktemp("bench")
    if warm.cache_info().currsize:
        with warm():  # its input ends, and so does it
            warm.cache_clear()


@cache
def warm() -> subprocess.Popen[str]:
    """The process whose forks carry out commands."""
    line = [sys.executable, str(Path(__file__).with_name("warm_bench.py"))]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """bench/run.py with these arguments."""
    if not hasattr(os, "fork"):
        return alone(folder, *arguments)
    process = warm()
    assert process.stdin is not None and process.stdout is not None
    job = {"arguments": arguments, "environment": environment(folder), "folder": str(folder)}
    print(json.dumps(job), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline())
    return subprocess.CompletedProcess(arguments, answer["code"], answer["output"], answer["errors"])


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    line = [sys.executable, str(ROOT / "bench" / "run.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment(folder), check=False, cwd=folder)


def printed(folder: Path, code: str) -> str:
    """What code on the bench's modules prints, in a process of its own."""
    begin = "import os, sys\nsys.path.insert(0, os.environ['ROOT'])\nfrom bench import run\nrun.find_modules()\n"
    line = [sys.executable, "-c", begin + textwrap.dedent(code)]
    own = {**environment(folder), "ROOT": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, env=own, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "SPECTRALCACHE_CACHE": str(folder / "cache")}


def bench(folder: Path, *arguments: str) -> str:
    done = command(folder, *arguments, "--out", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# runs of the small FLUX -----------------------------------------------------------------------------------------------

SMALLER = ("--quick", "--side", "12")
QUALITY = ("quality", *SMALLER, "--pairs", "1", "--steps", "8")


@pytest.fixture(scope="module")
def quality(folder: Path) -> str:
    """What the command prints."""
    return bench(folder, *QUALITY)


def test_quality_measures_every_kind_of_row_and_is_resumed(folder: Path, quality: str) -> None:
    rows = {row["name"]: row for row in table(folder / "quality.csv")}
    families = {"fewer steps", "SpectralCache", "SpectralCache Auto", "FreqCa", "EasyCache"}
    assert {row["family"] for row in rows.values()} == families
    assert float(rows["5 steps"]["computed"]) == 5
    freqca = rows["FreqCa N=3"]  # 8 steps: 0, 1, 2, 5 and the last
    assert float(freqca["computed"]) == 5 and 10 < float(freqca["psnr"]) < 100 and int(freqca["cache_bytes"]) > 0
    assert "## 8 steps, CFG 3" in quality and (folder / "quality.md").read_text("utf-8") in quality
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cache" / "bench").iterdir()}
    assert alone(folder, *QUALITY, "--out", str(folder)).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "cache" / "bench").iterdir()} == before


def test_auto_measures_its_parts_beside_the_controls(folder: Path) -> None:
    bench(folder, "auto", *SMALLER)
    rows = {row["name"]: row for row in table(folder / "auto.csv")}
    auto = [row for row in rows.values() if row["family"] == "SpectralCache Auto"]
    assert [(row["sampler"], float(row["computed"])) for row in auto] == [
        ("euler", 12), ("euler", 10), ("euler", 8), ("heun", 7),  # heun: 4 steps, evaluated twice but the last
    ]  # fmt: skip
    for name in ("8 steps", "8 steps where Auto's are", "without the corrector, 8", "site trunk, 8"):
        assert float(rows[name]["computed"]) == 8, name
    # At site model a held derivative is a longer Euler step, so this is the control on the same noise levels.
    assert rows["placement alone, 8"]["psnr"] == rows["8 steps where Auto's are"]["psnr"]
    assert len({row["psnr"] for row in rows.values() if float(row["computed"]) == 8}) == 5
    assert {"FreqCa", "EasyCache"} <= {row["family"] for row in rows.values()}
    page = (folder / "auto.md").read_text("utf-8")
    assert "## euler, 28 steps, CFG 1, 1 pairs" in page and "## heun, 8 steps" in page


def test_the_unet_is_trained_once_and_deepcache_leaves_out_its_depth(folder: Path) -> None:
    bench(folder, "unet", "--quick")
    rows = {row["name"]: row for row in table(folder / "unet.csv")}
    work = {name: float(row["computed"]) for name, row in rows.items()}
    assert work["5 steps"] == work["Auto, 5 of 50"] == 5 and 3 < work["DeepCache, quadratic 4"] < 8
    assert 5 < work["DeepCache 3"] < 8, "five steps in full, and the outermost blocks of the others"
    assert len({row["psnr"] for row in rows.values()}) == len(rows)
    (weights,) = (folder / "cache" / "unet").iterdir()
    before = weights.stat().st_mtime_ns
    bench(folder, "unet", "--quick")
    assert weights.stat().st_mtime_ns == before


def test_estimate_computes_every_skipped_evaluation_as_well(folder: Path) -> None:
    bench(folder, "estimate", *SMALLER)
    rows = table(folder / "estimate.csv")
    for count in (14, 10, 7):
        own = [row for row in rows if int(row["computed"]) == count]
        steps = [int(row["step"]) for row in own]
        assert len(own) == 28 - count and steps == sorted(set(steps)) and {0, 27}.isdisjoint(steps)
        assert all(0 < float(row["error"]) < 1 for row in own)
        late = [row for row in own if int(row["step"]) > 5]
        assert all(0 < float(row["estimate"]) < 1 for row in late)
    assert "| CFG 1, 10 of 28 computed | 17 of 18 |" in (folder / "estimate.md").read_text("utf-8")


def test_estimate_takes_latents_with_a_frame(folder: Path) -> None:
    """Of Qwen-Image's class, with guidance: two rows in one call."""
    code = """
        from bench.lab import Lab, Pair, Studio
        from bench.lab.presets import auto
        from bench.tables.estimate import Ruler
        import torch
        with torch.inference_mode():
            studio = Studio(Lab(), 8, "qwen")
            ruler = Ruler(studio.lab)
            studio.make(ruler.attach(studio.model, auto(7).made()), Pair("a goat on green", 5, 3.0), 28)
        errors = [record["error"] for record in ruler.found]
        assert len(errors) == 21 and all(0 < error < 1 for error in errors), errors
        print("found")
    """
    assert "found" in printed(folder, code)


def test_ablation_measures_all_eight_combinations(folder: Path) -> None:
    bench(folder, "ablation", *SMALLER)
    rows = table(folder / "ablation.csv")
    parts = ("TADS", "CEB", "FDC", "TADS + CEB", "TADS + FDC", "CEB + FDC", "TADS + CEB + FDC")
    assert {row["family"] for row in rows} == {"fewer steps", "none (TeaCache)", *parts}
    plain = {row["name"]: float(row["computed"]) for row in rows if row["family"] == "fewer steps"}
    assert plain == {"6 steps": 6, "10 steps": 10, "16 steps": 16}
    computed = {row["family"]: float(row["computed"]) for row in rows if row["name"].endswith(", 0.6")}
    assert len(computed) == 8 and all(2 < count < 20 for count in computed.values())
    assert all(7 <= computed[name] for name in parts if "CEB" in name)  # at most two skipped in a row, of 20
    for name, base in (("CEB", "none (TeaCache)"), ("TADS + CEB", "TADS"), ("TADS + CEB + FDC", "TADS + FDC")):
        assert computed[name] >= computed[base], "a limit on skips made more of them"
    page = (folder / "ablation.md").read_text("utf-8")
    assert "| TADS + CEB + FDC, 0.6 |" in page and "At the paper's threshold 0.6" in page


def test_fitted_measures_both_polynomials_beside_the_control(folder: Path) -> None:
    bench(folder, "fitted", *SMALLER)
    rows = {row["name"]: row for row in table(folder / "fitted.csv")}
    assert len(rows) == 6 and {row["family"] for row in rows.values()} > {"TeaCache, FLUX.1's", "SpectralCache, fitted"}
    published, fitted = (rows[f"TeaCache, {kind}, 0.5"] for kind in ("FLUX.1's", "fitted"))
    assert (published["computed"], published["psnr"]) != (fitted["computed"], fitted["psnr"])
    page = (folder / "fitted.md").read_text("utf-8")
    assert "## CFG 1" in page and "| TeaCache, fitted, 0.5 |" in page


def test_predictors_measures_forecasts_beside_the_controls(folder: Path) -> None:
    bench(folder, "predictors", *SMALLER)
    rows = {(row["family"], row["name"]): row for row in table(folder / "predictors.csv")}
    assert all(float(row["computed"]) == 10 for row in rows.values()) and len(rows) == 11
    psnr = {family: row["psnr"] for (family, _), row in rows.items()}
    # Holding the model's output is a longer Euler step: the plain sampler on the same noise levels.
    assert psnr["output | early-dense p=1.3 | hold"] == psnr["fewer steps, early-dense p=1.3"]
    assert psnr["residual | early-dense p=1.3 | hold"] != psnr["residual | warm-up, every N | hold"]
    for place in ("warm-up, every N", "early-dense p=1.3"):
        kinds = ("hold", "linear in sigma × 1", "back-tested, 3 bands")
        assert len({psnr[f"residual | {place} | {kind}"] for kind in kinds}) == 3
    assert "10 computed: best" in (folder / "predictors.md").read_text("utf-8")


def test_schedules_compares_runs_on_one_curve(folder: Path) -> None:
    bench(folder, "schedules", *SMALLER)
    rows = {(row["sampler"], row["way"]): row for row in table(folder / "schedules.csv")}
    assert {sampler for sampler, _ in rows} == {"euler", "dpmpp_2m"}
    for sampler in ("euler", "dpmpp_2m"):
        ours, fewer = rows[sampler, "Auto"], rows[sampler, "fewer steps"]
        assert ours["computed"] == fewer["computed"] == "10" and ours["psnr"] != fewer["psnr"]
    assert "simple, shift 3" in (folder / "schedules.md").read_text("utf-8")


def test_partial_compares_parts_of_a_run(folder: Path) -> None:
    bench(folder, "partial", *SMALLER)
    rows = {(row["part"], row["count"], row["way"]): row for row in table(folder / "partial.csv")}
    assert {part for part, _, _ in rows} == {"image to image, denoise 0.5", "two nodes, 6 + 14 steps"}
    for part, count, way in rows:
        assert rows[part, count, way]["computed"] == count  # of both nodes together, the plain ones too
        assert rows[part, count, "Auto"]["psnr"] != rows[part, count, "fewer steps"]["psnr"] != "inf"
    assert "## CFG 1" in (folder / "partial.md").read_text("utf-8")


IN_PARTS = """
import torch
from bench.lab import Lab, Studio
from bench.lab.pairs import cases
from bench.tables.partial import STEPS, Part, Partial
with torch.inference_mode():
    easel = Partial(Studio(Lab(), 8))
    (pair,) = cases(1, 1.0)
    whole = easel.studio.make(easel.studio.model, pair, STEPS, easel.studio.sigmas(STEPS)).latent
    shared, ran = easel.run(pair, "euler", Part(first=6), STEPS, 0)
    assert ran == STEPS and torch.allclose(shared, whole, atol=1e-4), (shared - whole).abs().max()
    image, source = easel.run(pair, "euler", Part(denoise=0.3), STEPS, 0)[0], easel.source(pair)
    assert 0.1 < (image - source).std() < 0.5 * (whole - source).std()
    print("in parts")
"""


def test_a_run_in_two_nodes_is_the_run_in_one(folder: Path) -> None:
    """Euler remembers nothing, so the second one needs only what the first one leaves; and with little noise over it
    most of a picture stays.
    """
    assert "in parts" in printed(folder, IN_PARTS)


def test_stochastic_compares_runs_on_one_path_of_noise(folder: Path) -> None:
    bench(folder, "stochastic", *SMALLER)
    rows = {(row["sampler"], row["way"]): row for row in table(folder / "stochastic.csv")}
    assert {way for _, way in rows} == {"Auto", "without the corrector", "fewer steps"}
    for way in ("Auto", "fewer steps"):  # on other noise a run would be nowhere near (5 to 15 dB)
        row = rows["euler_ancestral", way]
        assert float(row["computed"]) == 14 and 20 < float(row["psnr"]) < 100
    psnr = {way: row["psnr"] for (sampler, way), row in rows.items() if sampler == "euler_ancestral"}
    assert psnr["Auto"] != psnr["without the corrector"]
    lcm = rows["lcm", "Auto"]
    assert "fresh noise" in lcm["note"] and lcm["psnr"] == "inf" and float(lcm["computed"]) == 28
    assert "stood down" in (folder / "stochastic.md").read_text("utf-8")


def test_controlnet_counts_the_runs_of_the_net(folder: Path) -> None:
    bench(folder, "controlnet", "--side", "12", "--pairs", "1")
    rows = {(row["cfg"], row["way"]): row for row in table(folder / "controlnet.csv")}
    for cfg in ("1", "3"):
        full, calls, whole = (rows[cfg, way] for way in ("no cache", "Auto, whole model calls", "Auto"))
        assert [row["computed"] for row in (full, calls, whole)] == ["20", "10", "10"]
        assert full["nets"] == calls["nets"] == "20" and whole["nets"] == "10"
        assert 20 < float(whole["psnr"]) < 100 and full["psnr"] == "inf"
    assert "## CFG 3" in (folder / "controlnet.md").read_text("utf-8")


# speed ----------------------------------------------------------------------------------------------------------------

SMALL = ("--double", "1", "--side", "16", "--rounds", "9", "--minutes", "0.001", "--idle-rounds", "1")
"""One round: its end comes before a second begins."""


def speeds(folder: Path, name: str, *arguments: str) -> dict[tuple[str, str], dict[str, str]]:
    """Rows by steps ("": of no number of steps) and figure."""
    bench(folder, "speed", *SMALL, *arguments)
    return {(row["steps"], row["figure"]): row for row in table(folder / f"{name}.csv")}


def value(row: dict[str, str]) -> float:
    return float(row["value"])


def check_common(rows: dict[tuple[str, str], dict[str, str]], steps: str, kept: float = 5.0) -> None:
    """What must hold of any model. kept: features of Auto's; with three computed steps no bend is known yet."""
    computed, floor, least = (
        value(rows[steps, name])
        for name in ("computed evaluation, no node", "evaluation without any block", "evaluation without the model")
    )
    assert computed > floor > least > 0
    assert value(rows["", "features kept a lane, SpectralCache"]) == pytest.approx(2.0, rel=0.01)
    assert value(rows["", "features kept a lane, FreqCa, DCT"]) == pytest.approx(3.0, rel=0.01)
    assert value(rows["", "features kept a lane, SpectralCache Auto"]) == pytest.approx(kept, rel=0.01)
    for arm in ("SpectralCache", "FreqCa, DCT"):
        assert value(rows["", f"device waits, an evaluation, {arm}"]) == 1.0


def test_speed_times_every_arm(folder: Path) -> None:
    rows = speeds(folder, "speed-128", "--hidden", "128", "--single", "1", "--steps", "10", "7")
    for steps in ("10", "7"):
        check_common(rows, steps)
        for arm in ("SpectralCache", "SpectralCache Auto", "FreqCa, DCT", "FreqCa, FFT", "FreqCa, no transform"):
            assert value(rows[steps, f"skipped evaluation, {arm}"]) > 0
            row = rows[steps, f"skipped in computed, {arm}"]
            assert row["target"] == "1" and row["verdict"] == "undecided"  # one round judges nothing
    assert rows["", "run with gate never over no node"]["target"] == "0.5"
    idle = rows["", "gate never, own time an evaluation"]
    assert idle["unit"] == "ms" and abs(value(idle)) < 50
    page = (folder / "speed-128.md").read_text("utf-8")
    assert "not FLUX.1 on a GPU" in page and "10 and 7 steps, euler, 1 round " in page
    assert page.index("## 10 steps") < page.index("## 7 steps") < page.index("## Whatever the steps")


NARROW = ("--hidden", "256", "--steps", "6")
"""With blocks as wide as the real ones a run takes minutes here."""


def test_speed_runs_flux1_in_half_precision(folder: Path) -> None:
    rows = speeds(folder, "speed-flux1-reduced", "--model", "flux1", "--single", "1", *NARROW)
    check_common(rows, "6", kept=4.0)
    page = (folder / "speed-flux1-reduced.md").read_text("utf-8")
    assert "FLUX.1 at width 256, 1 double + 1 single blocks of 19 + 38, random weights, bfloat16; 64 image" in page
    assert not (folder / "speed-flux1.csv").exists()


def test_speed_runs_qwen_image_in_half_precision(folder: Path) -> None:
    rows = speeds(folder, "speed-qwen-image-reduced", "--model", "qwen-image", *NARROW)
    check_common(rows, "6", kept=4.0)
    page = (folder / "speed-qwen-image-reduced.md").read_text("utf-8")
    assert "Qwen-Image at width 256, 1 of 60 blocks, random weights, bfloat16; 64 image tokens" in page


def test_speed_refuses_a_whole_real_model_on_a_cpu(folder: Path) -> None:
    done = command(folder, "speed", "--model", "qwen-image", "--out", str(folder))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "41 GB" in done.stderr and "--device cuda" in done.stderr and "--double 2" in done.stderr


def test_exact_measures_solvers_and_auto_against_the_converged_picture_and_goes_on(folder: Path) -> None:
    bench(folder, "exact", *SMALLER)
    rows = [row for row in table(folder / "exact.csv") if row["stage"] == "main"]
    names = {"dpmpp_2m + simple", "heunpp2 + simple", "dpmpp_2m + Auto's places", "heunpp2 + Auto's places"}
    for cfg in ("1", "3"):
        own = {row["name"]: row for row in rows if row["cfg"] == cfg}
        assert len(own) == 3 and own.keys() - names == {"Auto on dpmpp_2m, 20 steps"}
        assert all(float(row["computed"]) == 6 and 5 < float(row["psnr"]) < 100 for row in own.values())
        rival = own[own["Auto on dpmpp_2m, 20 steps"]["rival"]]
        auto, best = (float(row["psnr"]) for row in (own["Auto on dpmpp_2m, 20 steps"], rival))
        assert float(own["Auto on dpmpp_2m, 20 steps"]["margin"]) == pytest.approx(auto - best, abs=1e-3)
    page = (folder / "exact.md").read_text("utf-8")
    assert "heun's on 11 steps" in page and "## CFG 3, 1 prompt and seed pairs" in page
    readme = folder / "README.md"
    readme.write_text("before\n<!-- bench:begin -->\n<!-- bench:end -->\nafter\n", "utf-8")
    arguments = ("readme", "--readme", str(readme), "--csv", str(folder / "exact.csv"))
    assert [command(folder, *arguments, *check).returncode for check in (("--check",), (), ("--check",))] == [1, 0, 0]
    assert f"| Auto on dpmpp_2m, 20 steps | {auto:.1f} |" in readme.read_text("utf-8")
    done = command(folder, "exact", "--side", "8", "--quick", "--minutes", "0.0001", "--out", str(folder))
    assert done.returncode == 0 and "stopped by --minutes" in done.stderr
    assert (folder / "exact.md").read_text("utf-8") == page  # too short for a table: the old one stays


def test_exact_takes_the_other_models(folder: Path) -> None:
    """Their own weights, guidance, latents and pages, beside the first one's."""
    found = {}
    for model, name in (("flux", "exact"), ("flux-guided", "exact-flux-guided"), ("qwen", "exact-qwen")):
        bench(folder, "exact", "--side", "8", "--quick", "--model", model)
        rows = table(folder / f"{name}.csv")
        assert {row["model"] for row in rows} == {model}
        found[model] = next(row for row in rows if row["stage"] == "main" and row["kind"] == "Auto")
        assert float(found[model]["computed"]) == 6 and 5 < float(found[model]["psnr"]) < 100
    assert len({row["psnr"] for row in found.values()}) == len(found)  # the weights are others too
    page = (folder / "exact-flux-guided.md").read_text("utf-8")
    assert "takes its guidance as a number" in page and "CFG 1" in page and "CFG 3" not in page
    page = (folder / "exact-qwen.md").read_text("utf-8")
    assert "small Qwen-Image" in page and "CFG 1" in page and "CFG 3" in page


TOGETHER = """
import torch
from bench.lab import Lab, Pair, Studio
from bench.tables.exact.grid import SAMPLERS, Size
from bench.tables.exact.measure import Canvas
with torch.inference_mode():
    easel = Canvas(Studio(Lab(), 8), Size.quick(), None, None)
    for cfg in (1.0, 3.0):
        pairs = [Pair("a photo of cat", 3, cfg), Pair("a goat on green", 5, cfg)]
        for sampler in SAMPLERS if cfg == 1 else SAMPLERS[-2:]:
            levels = easel.studio.sigmas(4)
            both, computed = easel.draw(pairs, sampler, levels)
            for pair, row in zip(pairs, both):
                alone, count = easel.draw([pair], sampler, levels)
                assert count == computed >= 4, (sampler, count, computed)
                assert (alone[0] - row).norm() < 1e-4 * row.norm(), (sampler, cfg, (alone[0] - row).norm())
    print("together")
"""


def test_exact_samples_several_pairs_at_once_as_one_by_one(folder: Path) -> None:
    assert "together" in printed(folder, TOGETHER)


def test_cost_counts_what_half_a_step_multiplies(folder: Path) -> None:
    """Only the counts are judged: seconds of so small a model say nothing."""
    bench(folder, "cost", "--hidden", "256", "--side", "16", "--rounds", "1")
    rows = {row["state"]: row for row in table(folder / "cost.csv")}
    work, flops = ({name: float(row[what]) for name, row in rows.items()} for what in ("work", "flops"))
    assert work["both reused"] == 0 and work["attention reused"] + work["the MLP reused"] == pytest.approx(1)
    rest = flops["both reused"]  # what is neither attention nor MLP
    for name in ("attention reused", "the MLP reused"):
        assert flops[name] == pytest.approx(rest + (1 - rest) * work[name], abs=0.05)
    assert 1 < float(rows["both reused"]["kept"]) < 1.1  # FLUX's joint layers are taken apart once more
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert "within 10%" in (folder / "cost.md").read_text("utf-8")


def test_gains_are_learned_from_other_pairs(folder: Path) -> None:
    """One method of the table, at so few steps that nothing is worth reading."""
    bench(folder, "gains", "--quick", "--side", "12", "--pairs", "1")
    rows = table(folder / "gains.csv")
    for cfg in (1, 3):
        plain, noise, channels = (row for row in rows if float(row["cfg"]) == cfg)
        assert [row["name"].rpartition(", ")[2] for row in (noise, channels)] == ["noise", "channels"]
        assert plain["computed"] == noise["computed"] == channels["computed"]  # a fixed schedule
        assert len({plain["psnr"], noise["psnr"], channels["psnr"]}) == 3
    assert "gain of each channel" in (folder / "gains.md").read_text("utf-8")
