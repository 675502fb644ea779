"""The picture of Cache Stats, read back pixel by pixel, and never an error whatever the trace lacks."""

import ast
import copy
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor, ImageFont

FILE = Path(__file__).parents[2] / "nodes" / "timeline.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spectralcache_timeline", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawing = load()
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CODES = {"c": "computed", "s": "skipped", "p": "partial"}


def evaluation(step: int, action: str, score: float | None = 0.3, limit: float | None = 0.6) -> dict[str, Any]:
    return {
        "step": step,
        "stage": 0,
        "action": action,
        "skip": action != "computed",
        "reason": "",
        "scores": {"d": 0.1, "low": 0.1, "high": 0.1, "consecutive": 0.0, "rescaled": 0.2, "distance": score},
        "limits": {"consecutive": 2.0, "low": 0.5, "high": 0.9, "distance": limit},
    }


def trace(actions: str, **changes: Any) -> dict[str, Any]:
    """A run whose evaluations are given by letters: computed, skipped, partial."""
    evaluations = [evaluation(step, CODES[letter]) for step, letter in enumerate(actions)]
    whole = {
        "version": 1,
        "method": "SpectralCache",
        "state": "done",
        "steps": len(actions),
        "evaluations": evaluations,
        "speedup": {"evaluations": 1.87, "wall": 1.79},
        "cache_bytes": 50_331_648,
        "notes": [],
    }
    return {**whole, **changes}


def pixels(run: dict[str, Any] | None) -> Pixels:
    picture = drawing.timeline(run)
    return np.asarray((picture[0] * 255).round().to(torch.uint8).numpy())


def places(picture: Pixels, colour: str) -> tuple[Any, Any]:
    """Rows and columns of the pixels that have exactly this colour."""
    rows, columns = np.nonzero((picture == ImageColor.getrgb(getattr(drawing, colour))).all(axis=-1))
    return rows, columns


def has(picture: Pixels, colour: str) -> bool:
    return bool((picture == ImageColor.getrgb(getattr(drawing, colour))).all(axis=-1).any())


def written(run: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(drawing, "_write", lambda draw, at, text, *rest: texts.append(text))
    drawing.timeline(run)
    return texts


@pytest.mark.parametrize("size", [(1024, 384), (400, 150), (2048, 768), (9, 5)])
@pytest.mark.parametrize("run", [None, trace("cssc")], ids=["none", "run"])
def test_it_is_an_image_of_comfyui(run: dict[str, Any] | None, size: tuple[int, int]) -> None:
    picture = drawing.timeline(run, *size)
    assert picture.shape == (1, size[1], size[0], 3)
    assert picture.dtype == torch.float32
    assert 0.0 <= picture.min() < picture.max() <= 1.0


def test_it_needs_nothing_of_the_host() -> None:
    nodes = list(ast.walk(ast.parse(FILE.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {f"{'.' * node.level}{node.module or ''}" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy", "torch", "PIL"}


def test_no_run_is_a_calm_panel_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(has(pixels(None), colour) for colour in ("BLUE", "PURPLE", "ORANGE", "RED"))
    assert has(pixels(None), "FAINT")
    assert written(None, monkeypatch) == ["No run to show"]
    assert written(trace("", notes=["dpm_adaptive:\nnothing is skipped"]), monkeypatch) == [
        "dpm_adaptive: nothing is skipped"
    ]


@pytest.mark.parametrize("actions", ["c", "cssc", "cscsspc" * 4, "cspsc" * 10, "cssps" * 20, "css" * 100])
def test_every_evaluation_has_its_cell(actions: str) -> None:
    """Computed is solid blue, skipped is not, partial is striped; each where its evaluation is."""
    picture = pixels(trace(actions))
    pitch = min(976 / len(actions), 160)
    for index, letter in enumerate(actions):
        column = picture[270:308, int(24 + (index + 0.4) * pitch)]
        blue, purple = (has(column, colour) for colour in ("BLUE", "PURPLE"))
        assert (blue, purple) == {"c": (True, False), "s": (False, False), "p": (False, True)}[letter], index
        if letter == "c":
            assert (column == column[0]).all()


def test_more_evaluations_than_pixels() -> None:
    picture = pixels(trace("cs" * 2000))
    assert has(picture[252:312, 24:60], "BLUE")
    assert has(picture[252:312, 960:1000], "BLUE")


def test_skipped_cells_are_hollow_where_there_is_room() -> None:
    assert has(pixels(trace("cs" * 14))[252:312], "FAINT")
    assert not has(pixels(trace("cs" * 50))[252:312], "FAINT")


def test_only_the_first_and_the_last_step_are_marked_as_forced() -> None:
    _, columns = places(pixels(trace("ccscc"))[252:312], "TEXT")
    assert set(((columns - 24) // 160).tolist()) == {0, 4}
    assert not has(pixels(trace("scsss"))[252:312], "TEXT"), "a skipped step was not forced"


def test_an_unfinished_run_leaves_the_rest_empty() -> None:
    run = {**trace("cscscsc"), "steps": 28}
    stopped, done = (
        pixels({**run, "state": state})[252:312, 24 + 976 // 4 + 2 : 1000] for state in ("interrupted", "done")
    )
    assert (stopped == ImageColor.getrgb(drawing.PANEL)).all()
    assert has(done, "BLUE")


def bell(count: int) -> list[float]:
    return [0.6 * (0.5 + (1 - math.cos(2 * math.pi * step / count)) / 2) for step in range(count)]


def test_the_bell_of_the_limit_is_drawn_to_scale() -> None:
    limits = bell(28)
    run = trace("c" * 28, evaluations=[evaluation(i, "computed", None, limit) for i, limit in enumerate(limits)])
    run["evaluations"][3]["scores"]["distance"] = 0.01
    picture = pixels(run)[68:240]
    heights = []
    for index in range(28):
        rows, _ = places(picture[:, int(24 + (index + 0.4) * 976 / 28)][:, None], "ORANGE")
        heights.append(172 - rows.mean())
    scale = heights[14] / limits[14]
    assert heights == pytest.approx([limit * scale for limit in limits], abs=1.5)


def test_the_limit_is_one_stepped_line_where_it_is_known() -> None:
    """Joined between evaluations that have one; open at those that have none."""
    run = trace(
        "cccc", evaluations=[evaluation(i, "computed", 0.0, limit) for i, limit in enumerate((0.1, 0.6, None, 0.3))]
    )
    picture = pixels(run)[68:240]
    joint = places(picture[:, 24 + 160][:, None], "ORANGE")[0]
    assert joint.max() - joint.min() + 1 == len(joint) > 100
    assert not has(picture[:, 24 + 2 * 160 + 5 : 24 + 3 * 160 - 5], "ORANGE")


@pytest.mark.parametrize(("score", "limit"), [(0.2, 0.6), (0.6, 0.6), (0.7, 0.6)])
def test_a_bar_is_as_high_as_its_score_against_the_limit(score: float, limit: float) -> None:
    run = trace("ccc", evaluations=[evaluation(i, "computed", score, limit) for i in range(3)])
    column = pixels(run)[68:240, 24 + 60][:, None]
    bar, line = 172 - places(column, "BLUE")[0].min(), 172 - places(column, "ORANGE")[0].mean()
    assert bar / line == pytest.approx(score / limit, abs=0.04)


def test_one_huge_score_does_not_flatten_the_rest() -> None:
    run = trace("cccc")
    run["evaluations"][1]["scores"]["distance"] = 1e9
    rows, _ = places(pixels(run)[68:240], "ORANGE")
    assert 172 - rows.mean() > 172 / 2


def test_other_methods_are_drawn_by_their_own_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trace("cscs")
    for item in run["evaluations"]:
        item["scores"] = {"free": 3.0, "second": 1.0, "consecutive": 1.0, "residual": 0.1}
        item["limits"] = {"consecutive": 2.0, "unscored": 1.0, "residual": 0.12, "second": 2.0}
    assert has(pixels(run), "ORANGE")
    assert "limit of residual" in written(run, monkeypatch)


def test_spectralcache_is_drawn_by_its_accumulated_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "limit of distance" in written(trace("cscs"), monkeypatch)


def test_without_scores_the_strip_stands_alone_under_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trace("cccc", state="stood down", notes=["EasyCache is on this model."])
    for item in run["evaluations"]:
        item["scores"] = item["limits"] = {}
    assert not has(pixels(run), "ORANGE")
    assert {"stood down", "EasyCache is on this model."} <= set(written(run, monkeypatch))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "SpectralCache · 5 steps · 2 skipped · 1.79x measured · 50 MB"),
        ({"cache_bytes": 1_250_000}, "SpectralCache · 5 steps · 2 skipped · 1.79x measured · 1.2 MB"),
        (
            {"speedup": {"evaluations": 1.87, "wall": None}},
            "SpectralCache · 5 steps · 2 skipped · 1.87x by count · 50 MB",
        ),
        ({"speedup": None, "cache_bytes": None, "method": None}, "Cache · 5 steps · 2 skipped"),
        ({"steps": 3}, "SpectralCache · 5 evaluations · 2 skipped · 1.79x measured · 50 MB"),
        ({"steps": 28, "state": "interrupted"}, "SpectralCache · 5 of 28 steps · 2 skipped"),
    ],
)
def test_the_header_says_what_happened(changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert says in written(trace("cscsc", **changes), monkeypatch)


@pytest.mark.parametrize("name", ["method", "state", "note", "score"])
def test_long_text_is_shortened_and_never_overflows(name: str) -> None:
    long = "A rather long text with WIDE letters, " * 30
    run = trace("cspsc", **{"note": {"notes": [long]}, "score": {}}.get(name, {name: long}))
    for item in run["evaluations"]:
        item["scores"], item["limits"] = ({long: 0.1}, {long: 0.2}) if name == "score" else ({}, {})
    picture = pixels(run)
    ground = np.array(ImageColor.getrgb(drawing.GROUND))
    assert (picture[:, :20] == ground).all()
    assert (picture[:, 1003:] == ground).all()


def test_state_and_header_keep_apart() -> None:
    picture = pixels(trace("cspsc", method="A long name of a method that is new", state="interrupted"))[:60]
    assert places(picture, "TEXT")[1].max() + 20 < places(picture, "RED")[1].min()


def test_shorten_keeps_what_fits() -> None:
    font = drawing.font(32)
    assert drawing.shorten("short", font, 500) == "short"
    assert drawing.shorten("two\nlines\tand \u2728 caf\u00e9", font, 900) == "two lines and  cafe"
    for room in range(0, 400, 7):
        text = drawing.shorten("The quick brown fox jumps", font, room)
        assert font.getlength(text) <= room
        assert text == "" or text.endswith(("...", "jumps"))


def test_a_pillow_without_scalable_default_font_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 10.1 load_default took no size and gave a bitmap font, which has no character beyond Latin-1."""
    old = ImageFont.load_default_imagefont()
    monkeypatch.setattr(drawing.ImageFont, "load_default", lambda: old)
    assert has(pixels(trace("cspsc", state="interrupted", notes=["\u2728"])), "TEXT")


def test_the_trace_is_only_read() -> None:
    run = trace("cspsc")
    before = copy.deepcopy(run)
    drawing.timeline(run)
    assert run == before


NOTHING: tuple[Any, ...] = (
    None,
    math.nan,
    math.inf,
    -math.inf,
    0,
    -1,
    1e-320,
    1e29,
    10**400,
    True,
    "",
    "x\n\u2728",
    [],
    {},
)
JUNK: st.SearchStrategy[Any] = st.sampled_from(NOTHING)
FIELDS: tuple[tuple[Any, ...], ...] = (
    *((key,) for key in trace("")),
    ("speedup", "wall"),
    ("speedup", "evaluations"),
    ("notes", 0),
    ("evaluations", 1),
    *(("evaluations", 1, key) for key in evaluation(0, "computed")),
    *(("evaluations", 1, part, "distance") for part in ("scores", "limits")),
)


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_it_never_raises_whatever_one_field_holds(field: tuple[Any, ...]) -> None:
    for value in NOTHING:
        run = trace("cspsc", notes=["note"], speedup={"wall": None, "evaluations": 1.87}, state="interrupted")
        holder: Any = run
        for key in field[:-1]:
            holder = holder[key]
        holder[field[-1]] = value
        assert drawing.timeline(run).isfinite().all()


NUMBER = st.one_of(st.floats(), st.integers(-3, 60), JUNK)
NUMBERS = st.one_of(st.dictionaries(st.sampled_from(["d", "distance", "low", ""]), NUMBER), JUNK)
EVALUATION = st.fixed_dictionaries(
    {},
    optional={
        "step": NUMBER,
        "action": st.one_of(st.sampled_from(["computed", "skipped", "partial"]), JUNK),
        "scores": NUMBERS,
        "limits": NUMBERS,
        "seconds": NUMBER,
    },
)
TRACE = st.fixed_dictionaries(
    {},
    optional={
        "method": st.one_of(st.text(), JUNK),
        "state": st.one_of(st.sampled_from(["done", "interrupted", "error", "stood down"]), JUNK),
        "steps": NUMBER,
        "evaluations": st.one_of(st.lists(st.one_of(EVALUATION, JUNK), max_size=40), JUNK),
        "speedup": st.one_of(st.fixed_dictionaries({}, optional={"evaluations": NUMBER, "wall": NUMBER}), JUNK),
        "cache_bytes": NUMBER,
        "notes": st.one_of(st.lists(st.one_of(st.text(), JUNK), max_size=2), JUNK),
    },
)


@settings(max_examples=60, deadline=None)
@given(TRACE)
def test_it_never_raises_whatever_is_missing(run: dict[str, Any]) -> None:
    picture = drawing.timeline(run)
    assert picture.shape == (1, 384, 1024, 3)
    assert 0.0 <= picture.min() <= picture.max() <= 1.0
