"""The demo without ComfyUI: graphs, means, sentences, contact sheet, and the conditioning of the stand-in model."""

import hashlib
import importlib.util
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from bench.demo import command as demo
from bench.demo import files as demo_files
from bench.demo import sheet as demo_sheet
from bench.demo import table as demo_table
from bench.demo.table import Fewer, Quality, Result, Variant
from bench.host.graphs import APPLY, Picture, cached, defaults, uncached
from bench.host.server import HostError

OFF = Variant("uncached", {"threshold": 0.0})
ON = Variant("SpectralCache 0.6", {"threshold": 0.6})
SAME = Quality(math.inf, 1.0)
CIRCLE = [-0.424547, -0.038765, -0.451939, 0.627187]  # the first four of 64


def png(colour: tuple[int, int, int], size: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


BLUE, RED = png((0, 0, 200)), png((200, 0, 0))


def trace(actions: str, seconds: float = 0.5, wall: float | None = 2.0, state: str = "done") -> dict[str, Any]:
    names = {"c": "computed", "s": "skipped", "p": "partial"}
    counts = {name: actions.count(letter) for letter, name in names.items()}
    evaluations = [{"action": names[letter], "seconds": seconds} for letter in actions]
    return {"state": state, "notes": ["why"], "evaluations": evaluations, "speedup": {"wall": wall}, **counts}


def result(variant: Variant, actions: str, psnr: float = math.inf, fewer: float | None = None, **kw: Any) -> Result:
    picture = Picture(kw.pop("prompt", "a cat"), cfg=kw.pop("cfg", 1.0))
    control = None if fewer is None else Fewer(actions.count("c"), RED, Quality(fewer, 0.5))
    quality = SAME if psnr == math.inf else Quality(psnr, 0.75)
    return Result(picture, variant, BLUE, trace(actions, **kw), quality, control)


# --- conditioning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words() -> ModuleType:
    path = Path(__file__).parents[1] / "packs" / "stand_in" / "words.py"
    spec = importlib.util.spec_from_file_location("stand_in_words", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(word: str) -> torch.Tensor:
    seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


def test_conditioning_is_what_the_weights_were_trained_with(words: ModuleType) -> None:
    tokens, pooled = words.conditioning("A Cat")
    first, second = normal("a") + 0.3 * normal("pos0"), normal("cat") + 0.3 * normal("pos1")
    assert tokens.shape == (1, 12, 64) and pooled.shape == (1, 64)
    torch.testing.assert_close(tokens[0, :2], torch.stack([first, second]))
    assert not tokens[0, 2:].any()
    torch.testing.assert_close(pooled[0], (first + second) / math.sqrt(2))


def test_vectors_of_words_never_change(words: ModuleType) -> None:
    """Golden values: another generator would agree with itself, but the weights would not understand it."""
    torch.testing.assert_close(words.vector("circle")[:4], torch.tensor(CIRCLE), atol=1e-6, rtol=0)


def test_no_words_are_the_unconditional_prompt(words: ModuleType) -> None:
    tokens, pooled = words.conditioning("  ")
    assert tokens.shape == (1, 12, 64) and not tokens.any() and not pooled.any()


def test_words_after_the_twelfth_do_not_count(words: ModuleType) -> None:
    twelve = "one two three four five six seven eight nine ten eleven twelve"
    for long, short in zip(words.conditioning(twelve + " thirteen"), words.conditioning(twelve), strict=True):
        assert torch.equal(long, short)


# --- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [uncached(Picture("a cat")), cached(Picture("a cat"))], ids=["uncached", "cached"])
def test_every_link_of_a_graph_leads_to_one_of_its_nodes(graph: dict[str, Any]) -> None:
    links = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert links and all(source in graph for source, _ in links)


def test_cached_graph_differs_only_by_the_two_nodes() -> None:
    plain, graph = uncached(Picture("a cat", cfg=3.0)), cached(Picture("a cat", cfg=3.0), {"threshold": 0.4})
    assert graph["apply"]["inputs"] == {**defaults(APPLY), "threshold": 0.4, "model": ["shift", 0]}
    assert graph["stats"]["inputs"] == {"model": ["apply", 0], "after": ["sampler", 0]}
    assert graph["sampler"]["inputs"].pop("model") == ["apply", 0]
    assert plain["sampler"]["inputs"].pop("model") == ["shift", 0]
    assert {k: v for k, v in graph.items() if k not in ("apply", "stats")} == plain


# --- means ----------------------------------------------------------------------------------------------------------


def test_quality_is_the_mean_over_the_pictures_that_skipped() -> None:
    group = [result(ON, "ccss", 30.0, 20.0), result(ON, "csss", 40.0, 36.0), result(ON, "cccc")]
    _, row = demo_table.summarize([result(OFF, "cccc"), *group], "uncached")
    assert (row.pictures, row.skipping) == (3, 2)
    assert row.quality == Quality(35.0, 0.75) and row.fewer == Quality(28.0, 0.5)
    assert row.difference == Quality(7.0, 0.25)
    assert (row.computed, row.skipped) == (7 / 3, 5 / 3)


def test_speedup_is_seconds_over_seconds_of_the_same_guidance() -> None:
    results = [
        result(OFF, "cccc", seconds=1.0, wall=0.9),
        result(ON, "cscs", 30.0, 30.0, seconds=0.25, wall=3.0),
        result(OFF, "cccc", cfg=3.0, seconds=2.0),
        result(ON, "cscs", 30.0, 30.0, cfg=3.0, seconds=1.0, wall=None),
    ]
    rows = demo_table.summarize(results, "uncached")
    assert [(row.cfg, row.seconds, row.speedup) for row in rows] == [(1, 4, 1), (1, 1, 4), (3, 8, 1), (3, 4, 2)]
    assert [row.stats_speedup for row in rows] == [None, 3.0, None, None]


def test_one_disturbed_run_does_not_change_the_times() -> None:
    disturbed = [result(ON, "cs", 30.0, 30.0, seconds=seconds, wall=1 / seconds) for seconds in (0.5, 9.0, 0.5)]
    off = [result(OFF, "cc", seconds=seconds) for seconds in (1.0, 9.0, 1.0)]
    _, row = demo_table.summarize([*off, *disturbed], "uncached")
    assert (row.seconds, row.speedup, row.stats_speedup) == (1.0, 2.0, 2.0)


def test_times_are_called_unsteady_if_other_programs_took_a_tenth() -> None:
    """Also where whole runs were slow, as on a processor with more threads than cores."""
    calm = [result(OFF, "cccc", seconds=1.0), result(ON, "cscs", 30.0, 30.0, seconds=1.0)]
    slow_guidance = [result(OFF, "cccc", cfg=3.0, seconds=2.5), result(ON, "cscs", 30.0, 30.0, cfg=3.0, seconds=2.5)]
    assert demo_table.steadiness(demo_table.lost_time([*calm, *slow_guidance])) == "Times were steady."
    disturbed = [*calm, result(OFF, "cccc", seconds=9.0), result(OFF, "cccc", seconds=9.0)]
    assert demo_table.lost_time(disturbed) == pytest.approx(8 * 7.75 / (8 + 72))
    assert "NOT steady, 78% was lost" in demo_table.steadiness(demo_table.lost_time(disturbed))


def test_partial_evaluations_count_as_computed() -> None:
    assert result(ON, "cpsc").computed == 3


def test_an_attached_node_that_changes_the_picture_shows() -> None:
    """Nothing was skipped, and yet the picture moved: the row must not say identical."""
    (row,) = demo_table.summarize([result(OFF, "cccc", 40.0)], "uncached")
    assert row.quality == Quality(40.0, 0.75) and "identical" not in demo_table.as_text([row])
    assert "in 0 of 1 pictures" in demo_table.untouched([result(OFF, "cccc", 40.0)], "uncached")
    assert "in 1 of 1 pictures" in demo_table.untouched([result(OFF, "cccc")], "uncached")


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> list[demo_table.Row]:
    draft = Variant("draft", {})
    results = [
        result(OFF, "cccc"), result(ON, "csss", 30.0, 31.0, seconds=0.25), result(draft, "csss", 25.0, 20.0),
        result(OFF, "cccc", cfg=3.0), result(ON, "ccss", 22.0, 22.04, cfg=3.0),
        result(draft, "csss", 2.0, 6.0, cfg=3.0), result(draft, "csss", 9.0, 8.0, cfg=3.0),
        result(Variant("even", {}), "csss", 12.04, 12.0, cfg=3.0),
    ]  # fmt: skip
    return demo_table.summarize(results, "uncached")


def test_sentences_name_where_fewer_steps_are_better_and_leave_out_draws(rows: list[demo_table.Row]) -> None:
    sentence = demo_table.cost(rows, ON.name)
    assert "against the uncached picture 30.0 dB at CFG 1 and 22.0 dB at CFG 3" in sentence
    assert "caching comes closer in 1 of 5 rows and 2 of 6 pictures" in sentence
    assert "fewer steps in 2 rows (CFG 1: SpectralCache 0.6; CFG 3: draft) and 2 pictures." in sentence
    gained = demo_table.gained(rows, ON.name, 4, lost=0.0)
    assert "2.00x at CFG 1 (3.0 of 4 steps skipped) and 1.00x at CFG 3 (2.0 of 4 steps skipped)." in gained
    assert "disturbed" in demo_table.gained(rows, ON.name, 4, lost=0.2)


def test_a_default_that_skipped_nothing_costs_nothing() -> None:
    rows = demo_table.summarize([result(OFF, "cccc"), result(ON, "cccc")], "uncached")
    sentence = demo_table.cost(rows, ON.name)
    assert "PSNR against the uncached picture identical at CFG 1;" in sentence and "in 0 of 0 rows" in sentence


def test_tables_are_aligned_and_complete(rows: list[demo_table.Row]) -> None:
    lines = demo_table.as_text(rows[:3]).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[2].split()[:3] == ["uncached", "4.0", "0.0"] and lines[2].count("identical") == 2
    assert lines[3].startswith("SpectralCache 0.6   ") and lines[3].split()[-2:] == ["-1.0", "+0.250"]
    markdown = demo_table.as_markdown(rows[:3]).splitlines()
    assert len(markdown) == 5 and len({line.count("|") for line in markdown}) == 1


def test_a_row_says_if_only_some_pictures_skipped() -> None:
    results = [result(OFF, "cccc"), result(ON, "cccc"), result(ON, "csss", 30.0, 30.0)]
    assert "SpectralCache 0.6 (1 of 2 skipped)" in demo_table.as_text(demo_table.summarize(results, "uncached"))


def test_json_has_null_where_pictures_are_identical(rows: list[demo_table.Row]) -> None:
    results = [result(OFF, "cccc"), result(ON, "csss", 30.0, 31.0)]
    tree = json.loads(demo_files.as_json(results, rows, {"machine": {}}))
    off, on = tree["pictures"]
    assert off["quality"]["psnr"] is None and off["fewer"] is None
    assert on["fewer"] == {"steps": 1, "quality": {"psnr": 31.0, "ssim": 0.5}}
    assert on["settings"] == {**defaults(APPLY), "threshold": 0.6} and len(on["trace"]["evaluations"]) == 4
    assert tree["rows"][1]["difference"]["psnr"] == -1.0


# --- contact sheet --------------------------------------------------------------------------------------------------


def test_strip_shows_each_evaluation() -> None:
    picture = demo_sheet.strip(trace("cscp"), 80)
    seen = [picture.getpixel((x, 4)) for x in (10, 30, 50, 70)]
    assert seen == [demo_sheet.SHADES[name] for name in ("computed", "skipped", "computed", "partial")]
    assert demo_sheet.strip(trace(""), 80).getpixel((10, 4)) == demo_sheet.PAPER


def test_sheet_has_the_cached_picture_above_its_control() -> None:
    results = [
        result(OFF, "cccc"), result(ON, "csss", 30.0, 31.0),
        result(OFF, "cccc", prompt="a dog"), result(ON, "cccc", prompt="a dog"),
    ]  # fmt: skip
    canvas = demo_sheet.sheet(results, demo_table.summarize(results, "uncached"), "heading")
    pasted: dict[tuple[int, int, int], list[tuple[int, int]]] = {(0, 0, 200): [], (200, 0, 0): []}
    for y in range(canvas.height):
        for colour, found in pasted.items():
            found += [(x, y) for x in (11, 11 + 32 + demo_sheet.GAP) if canvas.getpixel((x, y)) == colour]
    assert len(pasted[0, 0, 200]) == 4 * 32 and len(pasted[200, 0, 0]) == 32
    (control,) = {x for x, _ in pasted[200, 0, 0]}
    above = [y for x, y in pasted[0, 0, 200] if x == control]
    assert max(above[:32]) < min(y for _, y in pasted[200, 0, 0]) and above[32] > max(y for _, y in pasted[200, 0, 0])


@pytest.mark.parametrize("fewer", [29.0, 31.0])
def test_sheet_marks_the_closer_picture(fewer: float) -> None:
    results = [result(OFF, "cccc"), result(ON, "csss", 30.0, fewer)]
    canvas = demo_sheet.sheet(results, demo_table.summarize(results, "uncached"), "heading")
    control = [y for y in range(canvas.height) if canvas.getpixel((53, y)) == (200, 0, 0)]
    pixels = ((x, y) for y in range(canvas.height) for x in range(canvas.width))
    green = {y for x, y in pixels if canvas.getpixel((x, y)) == demo_sheet.CLOSER}
    assert green and ((min(green) > max(control)) if fewer > 30.0 else (max(green) < min(control)))


@pytest.mark.parametrize(
    ("psnr", "fewer", "closer"), [(30.0, 29.0, 1), (30.0, 31.0, -1), (30.0, 30.04, 0), (math.inf, None, 0)]
)
def test_closer_is_who_has_the_higher_psnr(psnr: float, fewer: float | None, closer: int) -> None:
    assert result(ON, "cs", psnr, fewer).closer == closer


# --- making pictures ------------------------------------------------------------------------------------------------


class FakeServer:
    """Answers each graph with a picture that depends on its steps; cached runs skip every second step."""

    def __init__(self, state: str = "done") -> None:
        self.state = state
        self.graphs: list[dict[str, Any]] = []

    def run(self, graph: dict[str, Any], on_progress: Any) -> dict[str, Any]:
        self.graphs.append(graph)
        steps = graph["sampler"]["inputs"]["steps"]
        on_progress(steps, steps)
        outputs: dict[str, Any] = {"save": {"images": [{"filename": f"{steps}"}]}}
        if "stats" in graph:
            threshold = graph["apply"]["inputs"]["threshold"]
            actions = ("c" if threshold == 0 else "cs") * steps
            outputs["stats"] = {"trace": [json.dumps(trace(actions[:steps], state=self.state))]}
        return {"outputs": outputs}

    def image(self, reference: dict[str, str]) -> bytes:
        return png((0, 0, 255 if reference["filename"] == "28" else 250))


def studio(server: Any) -> demo.Studio:
    return demo.Studio(server, demo.Progress(1))


def test_control_has_as_many_steps_as_were_computed_and_is_made_once() -> None:
    server = FakeServer()
    maker = studio(server)
    picture = Picture("a cat", cfg=3.0, steps=28, seed=9)
    first = demo.make(maker, picture, ON)
    second = demo.make(maker, picture, replace(ON, name="again"))
    assert first.fewer is not None and first.fewer.steps == 14 and first.quality == SAME
    assert first.fewer.quality.psnr == pytest.approx(-10 * math.log10((5 / 255) ** 2 / 3))
    plain = [graph["sampler"]["inputs"] for graph in server.graphs if "apply" not in graph]
    assert [(node["steps"], node["cfg"], node["seed"]) for node in plain] == [(28, 3.0, 9), (14, 3.0, 9)]
    assert second.fewer is not None and second.fewer.png is first.fewer.png


def test_nothing_skipped_needs_no_control() -> None:
    server = FakeServer()
    made = demo.make(studio(server), Picture("a cat"), OFF)
    assert made.fewer is None and len(server.graphs) == 2


def test_a_cache_that_stood_down_ends_the_demo() -> None:
    with pytest.raises(HostError, match=r"SpectralCache 0.6 did not run on 'a cat': stood down \(why\)"):
        studio(FakeServer("stood down")).cached(Picture("a cat"), ON)


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = demo.Progress(2)
    progress.prompt(Picture("a cat", cfg=3.0))
    progress.show("step 1/28")
    progress.clear()
    assert capsys.readouterr().out == "[1/2] CFG 3, a cat (0 s so far)\n"


def test_progress_keeps_to_one_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    progress = demo.Progress(2)
    progress.prompt(Picture("a cat", cfg=3.0))
    progress.show("uncached, 28 steps, step 1/28")
    progress.show("short")
    written = capsys.readouterr().out
    assert "\n" not in written and [len(part) for part in written.split("\r")] == [0, 29, 29]
    assert written.endswith("[1/2] CFG 3, a cat: short    ")
