"""`bench dynamics` without ComfyUI: forced reuse on a toy model whose blocks add known numbers, and its statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.tables.dynamics import measure
from bench.tables.dynamics.measure import FluxTrunk, Look, QwenTrunk, Reuse, Stale, depth, sensitivity, visited
from bench.tables.dynamics.report import arms, curve, fit, ranked, report

STEPS = 4


class Double(nn.Module):
    """Adds the step to the image in place, as the host's blocks do, and ten to the text."""

    def forward(self, img: Tensor, txt: Tensor, step: float) -> tuple[Tensor, Tensor]:
        img += step
        txt += 10
        return img, txt


class Single(nn.Module):
    """Adds a hundred times the step to both."""

    def forward(self, x: Tensor, step: float) -> Tensor:
        x += 100 * step
        return x


class Toy(nn.Module):
    """FLUX's names: one double block, two single ones; one image and one text token."""

    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList([Double()])
        self.single_blocks = nn.ModuleList([Single(), Single()])
        self.final_layer = nn.Identity()

    def forward(self, value: float, step: float) -> tuple[float, float]:
        """Image and text, a token each."""
        img, txt = self.double_blocks[0](img=torch.full((1, 1, 1), value), txt=torch.zeros(1, 1, 1), step=step)
        x = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            x = block(x, step=step)
        return float(x[0, 1, 0]), float(x[0, 0, 0])


class QwenDouble(nn.Module):
    """Qwen-Image's names; the text comes back first."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, step: float) -> tuple[Tensor, Tensor]:
        return Double()(hidden_states, encoder_hidden_states, step)[::-1]


class QwenToy(nn.Module):
    """Three double blocks; one image and two text tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([QwenDouble(), QwenDouble(), QwenDouble()])
        self.proj_out = nn.Identity()

    def forward(self, value: float, step: float) -> tuple[float, float]:
        img, txt = torch.full((1, 1, 1), value), torch.zeros(1, 2, 1)
        for block in self.transformer_blocks:
            txt, img = block(hidden_states=img, encoder_hidden_states=txt, step=step)
        return float(self.proj_out(img)), float(txt.mean())


def both(trunk: FluxTrunk | QwenTrunk, visit: Any, first: int = 0) -> list[tuple[float, float]]:
    """Image and text at each step; the value that enters is 1000 times the step, which adds itself and `first`."""
    with visited(trunk, visit):
        return [trunk.model(1000.0 * step, float(step + first)) for step in range(STEPS)]


def run(visit: Any) -> list[float]:
    """The toy's image alone."""
    return [img for img, _ in both(FluxTrunk(Toy()), visit)]


def looked(look: Look) -> list[list[float]]:
    """What entered, what the middle block gave, what the last gave, at each of three steps."""
    with visited(look.trunk, look):
        for step in range(3):
            look.trunk.model(1000.0 * step, float(step))
    return [[float(each.flatten()[0]) for each in kept] for kept in (look.entry, look.middle, look.last)]


def test_a_visit_that_exchanges_nothing_changes_nothing() -> None:
    assert run(lambda *_: None) == [0, 1201, 2402, 3603]
    toy = Toy()
    with visited(FluxTrunk(toy), lambda *_: (torch.zeros(1), torch.zeros(1))):
        pass
    assert toy(1000.0, 1.0)[0] == 1201, "no hook is left"


def test_reuse_gives_the_last_output_or_what_the_trunk_added_at_one_step_only() -> None:
    assert run(Reuse(2, 2, residual=False)) == [0, 1201, 1201, 3603]
    assert run(Reuse(2, 2, residual=True)) == [0, 1201, 2000 + 201, 3603]
    assert run(Reuse(3, 2, residual=False))[3] == 2402


def test_stale_blocks_add_what_they_added_at_the_first_step() -> None:
    seen = [img for img, _ in both(FluxTrunk(Toy()), Stale(frozenset({0, 2})), first=1)]  # steps add 1, 2, ...
    assert seen == [201, 1000 + 1 + 200 + 100, 2000 + 1 + 300 + 100, 3000 + 1 + 400 + 100]


def test_a_look_keeps_copies_of_what_blocks_write_over() -> None:
    assert looked(Look(FluxTrunk(Toy()), 1)) == [[0, 1000, 2000], [0, 1101, 2202], [0, 1201, 2402]]


def test_qwen_images_streams_are_told_apart() -> None:
    def run_qwen(visit: Any) -> list[tuple[float, float]]:
        return both(QwenTrunk(QwenToy()), visit)

    assert run_qwen(lambda *_: None) == [(0, 30), (1003, 30), (2006, 30), (3009, 30)]
    assert run_qwen(Reuse(2, 2, residual=False)) == [(0, 30), (1003, 30), (1003, 30), (3009, 30)]
    assert run_qwen(Reuse(2, 2, residual=True)) == [(0, 30), (1003, 30), (2003, 30), (3009, 30)]
    assert run_qwen(Stale(frozenset({1}))) == [(0, 30), (1002, 30), (2004, 30), (3006, 30)]
    assert looked(Look(QwenTrunk(QwenToy()), 1)) == [[0, 1000, 2000], [0, 1002, 2004], [0, 1003, 2006]]


def test_sets_of_blocks_are_what_they_are_called() -> None:
    import random

    found = list(depth(9, random.Random(0), quick=False))
    assert {k for _, k, _ in found} == set(range(1, 9))
    for series, k, chosen in found:
        first, last = min(chosen), max(chosen)
        assert len(chosen) == k and 0 <= first and last < 9
        if series != "spread":
            assert last - first == k - 1 and (first == 0) == (series == "from the start")
    assert len(list(sensitivity(9, quick=False))) == 2 * (measure.STEPS - 1)


# statistics and the page ----------------------------------------------------------------------------------------------


def test_a_polynomial_is_found_exactly_and_noise_is_not_explained() -> None:
    xs = [0.1 * i for i in range(12)]
    coefficients, explained = fit([(x, 2 * x**3 - x + 1) for x in xs])
    assert coefficients == pytest.approx([0, 2, 0, -1, 1], abs=1e-9) and explained == pytest.approx(1)
    assert fit([(x, (-1.0) ** i) for i, x in enumerate(xs)], 1)[1] < 0.1
    assert ranked([(x, x**5) for x in xs]) == pytest.approx(1) and ranked([(x, -x) for x in xs]) == pytest.approx(-1)


def test_arms_of_the_curve_are_read_off() -> None:
    paper = {1.0: 48.6, 5.0: 13.5, 14.0: 2.6, 15.0: 2.9, 18.0: 6.4}
    told = arms("Outputs", paper)
    assert "a U with the steeper arm early; lowest at step 14, the first step 18.7 times" in told
    assert "the worst of the last quarter 2.5 times" in told
    assert "no U" in arms("Outputs", {1.0: 3.0, 10.0: 2.0, 19.0: 1.0})


def row(part: str, series: str, x: float, value: float, seed: int = 1) -> dict[str, str]:
    return {"part": part, "series": series, "x": f"{x:g}", "value": f"{value:g}", "seed": str(seed)}


def test_the_page_is_made_from_rows_alone() -> None:
    both = ("outputs", "residual")
    rows = [row("sensitivity", series, step, 50.0 / step) for series in both for step in range(1, 20)]
    for series, factor in (("from the start", 1.2), ("neighbours", 0.9), ("spread", 1.0)):
        rows += [row("depth", series, k, factor * k) for k in range(1, 4)]
    for name in ("middle block", "last block", "residual"):
        rows += [row("bands", name, band, 0.1 - 0.005 * band) for band in range(1, 9)]
        for side in ("low", "high"):
            rows += [row("similarity", f"{side}, {name}", lag, 1 - 0.01 * lag) for lag in range(1, 6)]
            rows += [row(part, f"{side}, {name}", 1, 0.5) for part in ("continuity", "forecast")]
    rows += [row("relation", series, 0.1 * i, 0.2 * i) for series in ("output", "residual") for i in range(1, 8)]
    page = report(rows, "here")
    assert "cost more than as many anywhere at 0 of 3 numbers of blocks (-10 to -10 %" in page
    assert "at 3 of 3 (+20 to +20 %)" in page and "| 1 | 50.00 | 1.000 | 48.6 | 1.000 | 50.00 |" in page
    assert "middle block +48 %" in page and "R² of output 1.00 (rank correlation 1.00)" in page
    held, not_held = (line.split(": ")[1] for line in page.split("As published")[1].split("\n")[0].split("Not as"))
    assert held.startswith("coarse bands") and "input's change" in held and "neighbouring" not in held
    assert not_held.startswith("a U with") and "neighbouring blocks" in not_held and "FreqCa" in not_held
    rows.append(row("bands", "residual", 8, 0.0, seed=2))
    assert curve(rows, "bands", "residual")[8.0] == pytest.approx(0.03)
    assert "2 prompt and seed pairs" in report(rows, "")
    assert math.isnan(ranked([(1.0, 2.0)]))
