"""The table of calibrations: complete, free of slips, and evaluated alike on floats and tensors."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch

from cache_core.coefficients import IDENTITY, TEACACHE, Calibration, rescale

# Reference, table 4.3: what each polynomial does on 0 < d < 0.5, derived from the published coefficients by somebody
# else. Digits as printed there: (P(0), where it changes sign, extremes as "value@d").
SHAPES = {
    "flux": (".264", "", ".1803@.0528"),
    "tangoflux": (".264", "", ".1803@.0528"),
    "hunyuan_video": (".096", "", ".052@.031 .162@.148 .118@.231"),
    "flux_kontext": (".037", ".241", ".287@.183"),
    "ltx_video": (".010", "", ""),
    "lumina_next": (".864", ".279", ".068@.082"),
    "lumina2_v1": (".864", ".279", ".068@.082"),
    "lumina2_comfy": ("-.033", ".007 .325", ""),
    "lumina2_v2": ("-1.41", ".011", ""),
    "hidream_full": (".108", ".068", ".392@.041"),
    "hidream_dev": (".94", "", ".618@.362"),
    "hidream_fast": ("1.0", "", ".582@.332"),
    "mochi": (".003", ".144", ".099@.108"),
    "wan2.1_t2v_1.3b": (".138", ".185 .31", ".036@.028"),
    "wan2.1_t2v_14b": ("-13.0", ".130 .406", ""),
    "wan2.1_i2v_480p": ("-.20", ".057 .437", ""),
    "wan2.1_i2v_720p": ("-.23", ".058 .396", ""),
    "wan2.1_t2v_1.3b_ret": ("-.05", ".004 .102", ""),
    "wan2.1_t2v_14b_ret": ("-.32", ".008 .082", ""),
    "wan2.1_i2v_480p_ret": (".13", "", ".037@.064"),
    "wan2.1_i2v_720p_ret": ("-.04", ".003", ""),
    "cogvideox_2b": ("-.004", ".002", ""),
    "cogvideox_5b": ("-.052", ".0075 .33", ""),
    "latte": (".111", ".237", ".062@.023"),
    "cosmos_7b": (".14", "", ""),
    "open_sora": (".048", "", ""),
    "cogvideox1.5_5b": (".036", "", ""),
    "cogvideox1.5_5b_i2v": (".037", "", ""),
    "open_sora_plan": (".002", "", ""),
}
MONOTONE = ("ltx_video",)
STEEP = {"lumina2_v2": {0.05: "5.5", 0.1: "13.5"}}
SAMPLES = np.linspace(0.0, 0.5, 1001)


def near(printed: str) -> Any:
    """Equal within one unit of the last printed digit (the reference prints a change of sign at .43649 as .437)."""
    return pytest.approx(float(printed), abs=10.0 ** -len(printed.partition(".")[2]))


def roots(polynomial: tuple[float, ...]) -> list[float]:
    return sorted(float(root.real) for root in np.roots(polynomial) if abs(root.imag) < 1e-9 and 0 < root.real <= 0.5)


def test_every_published_row_is_here_once() -> None:
    assert len(TEACACHE) == 29
    assert len({row.name for row in TEACACHE.values()}) == 29
    assert set(SHAPES) == set(TEACACHE)
    assert all(len(row.polynomial) == 5 for row in TEACACHE.values())
    assert TEACACHE["tangoflux"].polynomial == TEACACHE["flux"].polynomial
    assert TEACACHE["lumina2_v1"].polynomial == TEACACHE["lumina_next"].polynomial
    assert len({row.polynomial for row in TEACACHE.values()}) == 27, "only those two reuse another model's fit"


def test_digits_are_as_checked_against_both_repositories() -> None:
    """The shapes below see three digits. All of them were compared with both repositories once; this holds that."""
    digits = repr(sorted((key, row.polynomial) for key, row in TEACACHE.items()))
    assert zlib.crc32(digits.encode()) == 3801892036


def test_nobody_can_change_the_table() -> None:
    with pytest.raises(TypeError):
        TEACACHE["flux"] = IDENTITY  # type: ignore[index]
    with pytest.raises(AttributeError):
        TEACACHE["flux"].unit = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("key", SHAPES)
def test_shape(key: str) -> None:
    polynomial = TEACACHE[key].polynomial
    at_zero, signs, extremes = SHAPES[key]
    assert rescale(polynomial, 0.0) == near(at_zero)
    assert roots(polynomial) == [near(place) for place in signs.split()]
    turning = roots(tuple(np.polyder(polynomial)))
    for value, place in (extreme.split("@") for extreme in extremes.split()):
        nearest = min(turning, key=lambda d: abs(d - float(place)))
        assert nearest == near(place)
        assert rescale(polynomial, nearest) == near(value)
    if key in MONOTONE:
        assert turning == []
    for d, printed in STEEP.get(key, {}).items():
        assert rescale(polynomial, d) == near(printed)


def test_flux_never_falls_below_its_floor() -> None:
    """Hence a threshold of 0.18 or less never skips, and threshold / 0.1803 bounds the skips in a row."""
    values = np.polyval(TEACACHE["flux"].polynomial, np.linspace(-1.0, 1.0, 200_001))
    assert values.min() == pytest.approx(0.1803, abs=5e-5)


@pytest.mark.parametrize(
    ("key", "threshold"),
    [("flux", 0.6), ("flux_kontext", 0.22), ("hunyuan_video", 0.15), ("ltx_video", 0.05), ("wan2.1_t2v_1.3b", 0.08)],
)
def test_default_threshold_is_the_published_one_for_twice_the_speed(key: str, threshold: float) -> None:
    assert 0.6 * TEACACHE[key].unit == pytest.approx(threshold)


@pytest.mark.parametrize("row", TEACACHE.values(), ids=TEACACHE)
def test_unit_is_the_threshold_nearest_twice_the_speed(row: Calibration) -> None:
    thresholds, speeds = zip(*row.thresholds, strict=True)
    assert list(thresholds) == sorted(thresholds)
    assert list(speeds) == sorted(speeds)
    nearest, _ = min(row.thresholds, key=lambda pair: (round(abs(pair[1] - 2), 6), pair[0]))
    assert row.unit * 0.6 == pytest.approx(nearest)
    assert row.source.startswith(("ali-vilab/TeaCache: ", "welltop-cn/ComfyUI-TeaCache: "))


def test_absolute_value_is_taken_where_it_was_published() -> None:
    assert {key for key, row in TEACACHE.items() if row.absolute} == {"flux_kontext", "cogvideox_2b", "cogvideox_5b"}


@pytest.mark.parametrize("key", TEACACHE)
def test_rescale_is_numpys_polynomial_on_floats_and_tensors(key: str) -> None:
    polynomial = TEACACHE[key].polynomial
    floats = [rescale(polynomial, float(d)) for d in SAMPLES]
    assert torch.equal(rescale(polynomial, torch.from_numpy(SAMPLES)), torch.tensor(floats, dtype=torch.float64))
    scale = np.polyval(np.abs(polynomial), SAMPLES)
    assert np.all(np.abs(floats - np.polyval(polynomial, SAMPLES)) <= 1e-12 * scale)


def test_identity_changes_nothing() -> None:
    tensor = torch.tensor([0.25, float("nan")])
    assert rescale(IDENTITY.polynomial, 0.25) == 0.25
    assert rescale(IDENTITY.polynomial, tensor) is tensor
    assert IDENTITY.unit == 0.25
    assert IDENTITY.absolute is False
