"""SpectralCache's decisions, against values worked out from the paper without a model (reference: Algorithm 1, sec.
4.2-4.5).

The real gate runs behind a toy trunk; the change d is chosen so that the polynomial gives the increment that a trace
assumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from cache_core.coefficients import Calibration
from cache_core.gates import Bell
from cache_core.methods.spectralcache import spectralcache
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder, report
from cache_core.track import Facts, LaneKey
from cache_core.types import CacheError, Method, Probe, Schedule, Step

OFF = {"tads_min": 1.0, "tads_max": 1.0, "max_consecutive": 1000, "gamma_low": 1000.0, "gamma_high": 1000.0}
"""All components off: TeaCache."""
TADS_ONLY = {"max_consecutive": 1000, "gamma_low": 1000.0, "gamma_high": 1000.0}
NO_FDC = {"gamma_low": 1000.0, "gamma_high": 1000.0}
CONSTANT = Calibration("constant", (), 1.0, False, "modulated", (), "test")


def constant(increment: float) -> Calibration:
    """P(d) = increment for every d."""
    return Calibration("constant", (increment,), 1.0, False, "modulated", (), "test")


def run(
    method: Method, steps: int, calibration: Calibration, modulated: Callable[[int], torch.Tensor] | None = None
) -> tuple[list[int], Recorder]:
    """Drive a session through one lane and `steps` steps; returns the steps that were skipped."""
    sigmas = [1 - i / steps for i in range(steps + 1)]
    recorder = Recorder(method.name, method.params, "toy", "trunk", steps, counted=method.counted)
    session = Session(method, Schedule(tuple(sigmas), flow_noise), recorder)
    (track,) = session.tracks
    facts = Facts((4, 8), torch.float32, torch.device("cpu"))
    for step in range(steps):
        m = modulated(step) if modulated else torch.full((1, 4, 8), 1.0 + 0.01 * step)
        session.begin(torch.tensor([sigmas[step]]))
        call = session.open([LaneKey("cond")], [slice(0, 1)])
        if track.enter(call, facts, lambda rows, m=m: Probe(m[rows]), calibration):
            track.leave_out(call)
        else:
            track.store(call, torch.full((1, 4, 8), float(step)))
        session.end()
    session.close()
    return [r.step for r in recorder.records if r.action == "skipped"], recorder


@pytest.mark.parametrize(
    ("tau", "increment", "components", "skipped"),
    [
        (0.6, 0.25, NO_FDC, [1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18]),
        (0.6, 0.25, OFF, [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17]),
        (0.6, 0.25, TADS_ONLY, [1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 17]),
        (0.6, 0.35, NO_FDC, [2, 4, 6, 7, 9, 10, 12, 13, 15, 17]),
        (0.6, 0.35, OFF, list(range(1, 18, 2))),
        (0.8, 0.25, NO_FDC, [1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18]),
        (0.8, 0.35, NO_FDC, [1, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17]),
        (0.3, 0.25, NO_FDC, [4, 6, 8, 10, 12, 14, 16]),
        (0.3, 0.25, OFF, list(range(1, 18, 2))),
        (0.3, 0.35, NO_FDC, [7, 9, 11, 13]),
        (0.3, 0.35, OFF, []),
        (0.5, 0.25, OFF, list(range(1, 18, 2))),  # A reaches tau exactly at every second step: strictly below it skips
    ],
)
def test_golden_traces_of_twenty_steps(tau: float, increment: float, components: dict, skipped: list[int]) -> None:
    got, _ = run(spectralcache(threshold=tau, **components), 20, constant(increment))
    assert got == skipped


def test_tads_follows_the_papers_bell() -> None:
    bell = Bell(1.0, 0.5, 1.5)
    expected = [0.5, 0.5245, 0.5955, 0.7061, 0.8455, 1.0, 1.1545, 1.2939, 1.4045, 1.4755, 1.5]
    got = [bell(Step(t, 20, 0.0)) for t in range(20)]
    assert got[:11] == pytest.approx(expected, abs=5e-5)
    assert got[11:] == pytest.approx(expected[9:0:-1], abs=5e-5)
    assert [bell(Step(t, 4, 0.0)) for t in range(4)] == pytest.approx([0.5, 1.0, 1.5, 1.0])


@pytest.mark.parametrize(("steps", "hits"), [(20, 12), (28, 18), (50, 32), (8, 4), (5, 2)])
def test_ceb_caps_the_skips_of_a_run(steps: int, hits: int) -> None:
    """max hits = (T - 2) - floor((T - 2) / (C_max + 1)) when every step could be skipped (reference 1.6)."""
    skipped, recorder = run(spectralcache(threshold=10.0, tads_min=1, tads_max=1, **NO_FDC), steps, constant(0.0))
    assert len(skipped) == hits == (steps - 2) - (steps - 2) // 3
    assert max(r.consecutive for r in recorder.records) == 2


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_ceb_never_skips_more_than_the_limit_in_a_row(limit: int) -> None:
    skipped, _ = run(spectralcache(threshold=10.0, max_consecutive=limit, **NO_FDC), 40, constant(0.0))
    text = "".join("s" if t in skipped else "c" for t in range(40))
    assert "s" * limit in text and "s" * (limit + 1) not in text


def test_first_and_last_step_are_computed() -> None:
    skipped, recorder = run(spectralcache(threshold=10.0, **OFF | {"max_consecutive": 1000}), 12, constant(0.0))
    assert skipped == list(range(1, 11))
    assert [recorder.records[0].reason, recorder.records[-1].reason] == ["first step", "last step"]


def bands(low: Sequence[float], high: Sequence[float]) -> Callable[[int], torch.Tensor]:
    """Modulated inputs whose bands change by the given relative amounts from each step to the next (d = 8, split in
    half).
    """

    def modulated(step: int) -> torch.Tensor:
        scale = [math.prod(1 + change for change in band[:step]) for band in (low, high)]
        return torch.tensor([scale[0]] * 4 + [scale[1]] * 4, dtype=torch.float64).float().expand(1, 4, 8).contiguous()

    return modulated


def test_fdc_measures_each_band_by_its_own_norm() -> None:
    method = spectralcache(threshold=10.0, tads_min=1, tads_max=1, gamma_low=1000, gamma_high=1000)
    _, recorder = run(method, 8, constant(0.1), bands([0.2] * 8, [0.4] * 8))
    scores = recorder.records[1].scores
    assert scores["low"] == pytest.approx(0.2, rel=1e-5)
    assert scores["high"] == pytest.approx(0.4, rel=1e-5)
    assert scores["d"] == pytest.approx(0.3, rel=1e-5)  # equal bands before: the mean of the two
    assert scores["distance"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [(0.30, 0.0, "FDC low band"), (0.0, 0.70, "FDC high band"), (0.28, 0.52, "below every limit")],
)
def test_fdc_rejects_a_band_above_its_own_threshold(low: float, high: float, reason: str) -> None:
    """tau_eff = 0.36: the low band may change by 0.8 · 0.36 = 0.288, the high band by 1.5 · 0.36 = 0.54."""
    method = spectralcache(threshold=0.36, tads_min=1, tads_max=1)
    _, recorder = run(method, 6, constant(0.01), bands([low] * 6, [high] * 6))
    assert recorder.records[2].reason == reason
    assert recorder.records[2].limits == pytest.approx({"consecutive": 2, "distance": 0.36, "low": 0.288, "high": 0.54})


def test_the_report_counts_what_fdc_alone_rejected() -> None:
    _, recorder = run(
        spectralcache(threshold=0.36, tads_min=1, tads_max=1), 6, constant(0.01), bands([0.3] * 6, [0.0] * 6)
    )
    assert "FDC decided alone: 4" in report(recorder.finish("done", {"prompt": None, "node": None, "index": 0}))


def test_band_split_divides_channels_by_its_share() -> None:
    values = torch.arange(1.0, 11.0).expand(1, 1, 10)
    signal = spectralcache(band_split=0.25).rules[0].signal
    look = signal.look(Probe(values))
    assert (look["low"].item(), look["high"].item()) == (1 + 2, sum(range(3, 11)))  # floor(0.25 · 10) = 2 channels


def test_reference_tokens_count_in_the_distance_and_not_in_the_bands() -> None:
    """Two target tokens change by half, two reference tokens stay: d is diluted, the bands are not."""
    signal = spectralcache().rules[0].signal
    before, now = torch.ones(1, 4, 8), torch.ones(1, 4, 8)
    now[:, :2] = 1.5
    figures = signal.score(signal.look(Probe(now, targets=2)), signal.look(Probe(before, targets=2)))
    assert {name: value.item() for name, value in figures.items()} == {"d": 0.25, "low": 0.5, "high": 0.5}


def test_a_single_channel_has_no_low_band() -> None:
    signal = spectralcache().rules[0].signal
    figures = signal.score(
        signal.look(Probe(torch.full((1, 4, 1), 3.0))), signal.look(Probe(torch.full((1, 4, 1), 2.0)))
    )
    assert {name: value.item() for name, value in figures.items()} == {"d": 0.5, "low": 0.0, "high": 0.5}


def test_a_negative_polynomial_counts_zero_and_is_noted() -> None:
    skipped, recorder = run(spectralcache(threshold=0.6, **OFF), 8, constant(-0.5))
    assert skipped == list(range(1, 7))
    assert recorder.records[3].scores["distance"] == 0
    assert any("negative" in note for note in recorder.notes)


def test_an_absolute_polynomial_counts_its_magnitude() -> None:
    mirrored = Calibration("mirrored", (-0.25,), 1.0, True, "modulated", (), "test")
    skipped, recorder = run(spectralcache(threshold=0.6, **OFF), 20, mirrored)
    assert skipped == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17]
    assert not recorder.notes


def test_a_nan_change_is_computed() -> None:
    def modulated(step: int) -> torch.Tensor:
        return torch.full((1, 4, 8), math.nan if step == 4 else 1.0)

    skipped, recorder = run(spectralcache(threshold=5.0, **OFF), 10, CONSTANT, modulated)
    assert skipped == [1, 2, 3, 6, 7, 8]  # 4 is NaN itself, 5 is compared with it
    assert recorder.records[4].json()["scores"]["d"] is None


def test_the_unit_scales_every_threshold() -> None:
    half = Calibration("half", (0.125,), 0.5, False, "modulated", (), "test")
    got, recorder = run(spectralcache(threshold=0.6, **NO_FDC), 20, half)
    assert got == [1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18]  # increment and limit halved together
    assert recorder.records[10].limits["distance"] == pytest.approx(0.45)


def test_the_window_only_forbids() -> None:
    everywhere, _ = run(spectralcache(threshold=10.0, **OFF), 20, constant(0.0))
    inside, recorder = run(spectralcache(threshold=10.0, start_percent=0.25, end_percent=0.5, **OFF), 20, constant(0.0))
    assert inside == list(range(5, 11))
    assert set(inside) <= set(everywhere)
    assert recorder.records[4].reason == "outside the window"


def test_computed_steps_reset_the_distance_and_skips_keep_it() -> None:
    _, recorder = run(spectralcache(threshold=0.6, **OFF), 9, constant(0.25))
    assert [r.scores.get("distance") for r in recorder.records[1:8]] == [0.25, 0.5, 0.75, 0.25, 0.5, 0.75, 0.25]


@pytest.mark.parametrize("params", [{"threshold": 0.0}, {"max_consecutive": 0}])
def test_zero_switches_the_method_off(params: dict) -> None:
    assert spectralcache(**params).never
    assert run(spectralcache(**params), 8, constant(0.0))[0] == []


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"threshold": -0.1}, "threshold is -0.1; use a number from 0 to 10"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"max_consecutive": 1001}, "max_consecutive is 1001"),
        ({"tads_min": 2.0, "tads_max": 1.5}, "tads_min 2.0 is above tads_max 1.5; set both to 1"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 is above end_percent 0.2"),
        ({"band_split": 1.0}, "band_split is 1.0; use a number from 0.01 to 0.99"),
    ],
)
def test_bad_parameters_name_the_value_and_the_way_out(params: dict, words: str) -> None:
    with pytest.raises(CacheError, match=words.replace("(", r"\(")):
        spectralcache(**params)
