"""`bench mine` without ComfyUI: families, settings, what is run and kept however it ends, page and contact sheet."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from bench.lab.arms import Arm, On, Plain
from bench.lab.grid import Group
from bench.lab.pairs import Pair
from bench.lab.presets import auto, fewer
from bench.lab.store import Outcome
from bench.lab.table import read_csv, write_csv
from bench.tables import mine
from bench.tables.mine import grid, making
from bench.tables.mine.families import FAMILIES, SMALL, SMALL_GUIDED, family_of
from bench.tables.mine.loading import Unusable
from bench.tables.mine.making import Made, Progress, duration, make, records
from bench.tables.mine.report import report
from bench.tables.mine.sheet import CELL, CLOSEST, Column, sheet

# what is measured -----------------------------------------------------------------------------------------------------


def model_of(*names: str, width: int = 4096, guided: bool = False) -> Any:
    """A ModelPatcher's shape: the class of its model_config, named from the most to the least derived."""
    cls: type = object
    for name in reversed(names):
        cls = type(name, (cls,), {})
    text = SimpleNamespace(weight=torch.zeros(1, width))
    inner = SimpleNamespace(txt_in=text, params=SimpleNamespace(guidance_embed=guided))
    return SimpleNamespace(model=SimpleNamespace(model_config=cls(), diffusion_model=inner))


def test_a_family_is_the_hosts_class_or_the_nearest_above_it() -> None:
    assert family_of(model_of("Flux")).name == "FLUX.1"
    assert family_of(model_of("Flux2", "Flux")).guidance == 4.0
    assert family_of(model_of("FluxSchnell", "Flux")).steps == 4
    assert family_of(model_of("ZImage", "Lumina2")).name == "Z-Image"
    assert family_of(model_of("WAN22_T2V", "WAN21_T2V")).clip == "wan"
    assert family_of(model_of("FluxSchnell", "Flux", width=64)) is SMALL
    student = family_of(model_of("Flux", width=64, guided=True))
    assert (student.cfg, student.guidance, student.shift) == (1.0, 3.0, SMALL.shift)
    unknown = family_of(model_of("Tomorrow"))
    assert unknown.name.startswith("Tomorrow") and "guessed" in unknown.name and not unknown.clip
    assert len({family.host for family in FAMILIES}) == len(FAMILIES)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    mine.add_arguments(parser)
    return parser.parse_args(arguments)


def test_what_the_command_line_says_wins_over_the_family() -> None:
    flux = FAMILIES[0]
    assert mine.settings(flux, options()) == flux
    made = mine.settings(flux, options("--steps", "20", "--size", "768x512", "--guidance", "2.5", "--cfg", "1"))
    assert (made.steps, made.size, made.guidance, made.cfg) == (20, (768, 512), 2.5, 1.0)
    for wrong in (("--size", "big"), ("--steps", "1")):
        with pytest.raises(Unusable, match=r"1024x1024|give 2 steps"):
            mine.settings(flux, options(*wrong))


def test_prompts_are_the_users_or_ours_each_with_a_seed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n two \n", "utf-8")
    flux = FAMILIES[0]
    assert [(p.prompt, p.seed) for p in mine.pairs_of(options("--prompts", str(file)), flux)] == [
        ("one", 1000), ("two", 1001),
    ]  # fmt: skip
    more = mine.pairs_of(options("--prompts", str(file), "--pairs", "3"), flux)
    assert [p.prompt for p in more] == ["one", "two", "one"] and len({p.seed for p in more}) == 3
    assert len(mine.pairs_of(options(), flux)) == 4 and len(mine.pairs_of(options("--quick"), flux)) == 1
    assert "on" in mine.pairs_of(options(), SMALL)[0].prompt  # a caption that it knows
    other = mine.settings(SMALL, options("--cfg", "1", "--steps", "20"))
    assert mine.pairs_of(options(), other)[0].prompt == mine.pairs_of(options(), SMALL)[0].prompt
    assert mine.pairs_of(options(), SMALL_GUIDED)[0].prompt == mine.pairs_of(options(), SMALL)[0].prompt
    with pytest.raises(Unusable, match="--prompts"):
        mine.pairs_of(options("--prompts", str(tmp_path / "absent")), flux)


@pytest.mark.parametrize("steps", [4, 8, 20, 28, 50])
def test_every_way_has_a_name_of_its_own_and_stays_inside_the_run(steps: int) -> None:
    every = grid.arms(steps)
    assert len({arm.name for arm in every}) == len(every) == len({arm.key() for arm in every})
    families = {arm.family for arm in every}
    assert {"fewer steps", grid.SOLVERS, "SpectralCache Auto", "SpectralCache", "FreqCa", "EasyCache"} <= families
    quick = grid.arms(steps, quick=True)
    assert {arm.name for arm in quick} <= {arm.name for arm in every} and len(quick) < len(every) / 1.5
    assert all(1 <= grid.expected(arm, steps) <= 1.5 * steps for arm in every)
    assert grid.evaluations(every, steps, 50) == grid.evaluations(every, steps, 0) + 100


def test_another_solver_changes_sampler_and_noise_levels_and_nothing_else() -> None:
    def sigmas(steps: int, scheduler: str) -> torch.Tensor:
        return torch.full((steps + 1,), float(len(scheduler)))

    studio: Any = SimpleNamespace(model="model", sigmas=sigmas)
    plain, other = fewer(7), On("", "", fewer(7), "ipndm", "beta")
    assert (plain.solver, other.solver, other.sampler) == ("euler", "ipndm", "euler")
    model, steps, sigmas = other.set_up(studio, 28)
    assert (model, steps) == ("model", 7) and sigmas.tolist() == [4.0] * 8
    assert On("", "", auto(7), "ipndm").version() == auto(7).version()
    assert len({arm.key() for arm in (plain, other, On("", "", fewer(7), "ipndm"), On("", "", fewer(8), "ipndm"))}) == 4


# runs -----------------------------------------------------------------------------------------------------------------


class OutOfMemory(Exception):
    """The host's."""


class FakeRunner:
    """Remembers what it made; `stops` says at which run what happens."""

    exact = 0

    def __init__(self, stops: dict[str, BaseException] | None = None) -> None:
        self.stops = stops or {}
        self.known: dict[tuple[str, Pair], Outcome] = {}
        self.made: list[str] = []
        self.freed = 0
        management = SimpleNamespace(
            OOM_EXCEPTION=OutOfMemory, unload_all_models=self.free, soft_empty_cache=lambda: None
        )
        self.studio = SimpleNamespace(lab=SimpleNamespace(comfy=SimpleNamespace(model_management=management)))

    def free(self) -> None:
        self.freed += 1

    def missing(self, arm: Arm, pair: Pair, steps: int) -> bool:
        return (arm.key(), pair) not in self.known

    def reference(self, pair: Pair, steps: int) -> None:
        self.made.append("full")
        if "full" in self.stops:
            raise self.stops["full"]

    def outcome(self, arm: Arm, pair: Pair, steps: int) -> Outcome:
        if self.missing(arm, pair, steps):
            if arm.name in self.stops:
                raise self.stops[arm.name]
            self.made.append(arm.name)
            count = arm.count if isinstance(arm, Plain) else 4
            psnr = math.inf if count >= steps else 20.0 + count + (10 if arm.name.startswith("Auto") else 0)
            self.known[arm.key(), pair] = Outcome(count, steps, 1.0, steps / count, 1000, psnr, 0.9, 1, 1, None, psnr)
        return self.known[arm.key(), pair]


PAIRS = (Pair("a lighthouse", 1000, 1.0), Pair("a cat", 1001, 1.0))
ARMS: tuple[Arm, ...] = (Plain(grid.FULL, grid.FULL, 8), fewer(4), auto(4, 8))
GROUP = Group(8, 1.0, PAIRS, ARMS)


def made_by(runner: FakeRunner, said: list[str] | None = None) -> tuple[Made, list[Made]]:
    seen: list[Made] = []
    kept: Any = runner
    return make(kept, GROUP, 0.5, (said if said is not None else []).append, seen.append), seen


def test_every_way_is_made_pair_by_pair_and_the_time_left_is_told() -> None:
    runner, said = FakeRunner(), list[str]()
    made, seen = made_by(runner, said)
    assert made.done == list(PAIRS) and not made.failed and not made.stopped and len(seen) == 2
    assert runner.made == ["full", *(arm.name for arm in ARMS)] * 2
    assert sum("left" in line for line in said) == 6 and "28" not in said[0]
    assert len(records(_kept(runner), GROUP, made)) == 3


def _kept(runner: FakeRunner) -> Any:
    return runner


def test_what_is_stopped_keeps_what_it_has_and_goes_on_there() -> None:
    runner = FakeRunner({"Auto 2x": KeyboardInterrupt()})
    made, seen = made_by(runner)
    assert made.stopped and not made.done and len(seen) == 1
    assert [row["name"] for row in records(_kept(runner), GROUP, made)] == [grid.FULL, "4 steps"]
    before, runner.stops, runner.made = dict(runner.known), {}, []
    made, _ = made_by(runner)
    assert runner.made == ["full", "Auto 2x", "full", *(arm.name for arm in ARMS)] and len(made.done) == 2
    assert all(runner.known[key] is outcome for key, outcome in before.items())
    runner.made = []
    made_by(runner)
    assert not runner.made, "nothing is left to make, not even a full run"


@pytest.mark.parametrize(
    ("error", "reason"), [(OutOfMemory("CUDA"), "out of memory"), (RuntimeError("no\nmore"), "RuntimeError: no")]
)
def test_a_way_that_fails_is_left_out_and_the_others_go_on(error: Exception, reason: str) -> None:
    runner = FakeRunner({"4 steps": error})
    made, _ = made_by(runner)
    assert made.failed == {"4 steps": reason, "Auto 2x": reason}  # its control is those four steps
    assert runner.freed == 2 and made.done == list(PAIRS)
    assert [row["name"] for row in records(_kept(runner), GROUP, made)] == [grid.FULL]


def test_a_full_run_that_does_not_fit_ends_it_with_the_way_out() -> None:
    with pytest.raises(Unusable, match="smaller --size"):
        made_by(FakeRunner({"full": OutOfMemory()}))


def test_the_estimate_follows_what_was_measured() -> None:
    assert Progress(left=120, second=0.5).line() == "about 60 s left"
    assert Progress(left=120, second=0.5, made=10, seconds=20).line() == "about 4 min left"
    assert [duration(s) for s in (0.2, 89, 600, 7200)] == ["1 s", "89 s", "10 min", "2.0 hours"]


# what it leaves -------------------------------------------------------------------------------------------------------


def rows_of(tmp_path: Path, exact: bool = True) -> list[dict[str, str]]:
    runner = FakeRunner()
    every: Sequence[Arm] = grid.arms(8)
    group = Group(8, 1.0, PAIRS, tuple(every))
    made = make(_kept(runner), group, 0.5, lambda _: None, lambda _: None)
    if not exact:
        runner.known = {key: dataclasses.replace(outcome, exact=None) for key, outcome in runner.known.items()}
    write_csv(tmp_path / "mine.csv", records(_kept(runner), group, made))
    return read_csv(tmp_path / "mine.csv")


def test_the_page_has_table_machine_settings_and_command(tmp_path: Path) -> None:
    about = {"machine": "a GPU", "settings": "8 steps", "command": "`python dev.py bench mine`"}
    page = report(rows_of(tmp_path), "FLUX.1", about, ["a | b"], ["EasyCache 0.4: left out, out of memory"])
    assert "# SpectralCache on FLUX.1" in page and "(sheet.jpg)" in page
    assert "With 4 of 8 evaluations computed, Auto is 34.0 dB from the full run, 4 plain steps 24.0 dB." in page
    assert "From the converged picture: your full run" in page and "PSNR to the converged picture" in page
    assert "| every step, again | 8.0 | 1.0 | 1.00x | identical |" in page and "| Auto 2x | 4.0 |" in page
    assert "| PSNR at | 1.5x (5.3 computed)" in page and "| SpectralCache Auto |" in page
    for told in ("| machine | a GPU |", "| command | `python dev.py bench mine` |", "left out, out of memory", "*a"):
        assert told in page
    assert "2 prompt and seed pairs. With so few" in page
    plain = report(rows_of(tmp_path, exact=False), "FLUX.1", about, ["a"], [])
    assert "converged" not in plain
    single = report([{**row, "pairs": "1"} for row in rows_of(tmp_path)], "FLUX.1", about, ["a"], [])
    assert " to +" in page and " to +" not in single and "\n1 prompt and seed pair. With" in single


def test_the_contact_sheet_marks_the_closest_of_a_row(tmp_path: Path) -> None:
    Image.new("RGB", (120, 60), "#336699").save(tmp_path / "one.png")
    file = tmp_path / "one.png"
    columns = [Column("every step", "", [(file, math.inf), (file, math.inf)]), Column("Auto", "", [(file, 30.0), None])]
    picture = sheet("a model", ["a prompt", "another"], columns)
    assert picture.width > 2 * CELL and picture.height > CELL  # two rows of half a cell's height
    pixels = picture.tobytes()
    assert sum(pixels[i : i + 3] == bytes(CLOSEST) for i in range(0, len(pixels), 3)) > 20


def test_keys_of_kept_runs_depend_on_the_converged_picture(tmp_path: Path) -> None:
    lab = SimpleNamespace(about=lambda: {"versions": "x", "machine": "y"})
    studio: Any = SimpleNamespace(identity="one", lab=lab)
    with_, without = (making.Keeper(studio, tmp_path, exact) for exact in (50, 0))
    assert with_.key(ARMS[1], PAIRS[0], 8) != without.key(ARMS[1], PAIRS[0], 8)
    assert with_.file(ARMS[1], PAIRS[0], 8).suffix == ".png" and json.loads(ARMS[1].key())
