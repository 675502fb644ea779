"""Every method's decisions and weights, against its own rule written down once more here, on a toy of one lane."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cache_core import methods
from cache_core.affine import applied, fitted
from cache_core.coefficients import IDENTITY, TEACACHE, Calibration, rescale
from cache_core.magnitudes import CURVES
from cache_core.schedules import Growing, quadratic, skipped
from cache_core.session import Session, flow_noise
from cache_core.trace import Recorder
from cache_core.track import Facts, LaneKey
from cache_core.types import CacheError, Method, Probe, Schedule

STEPS = 20
METHODS = methods()


def levels(total: int = STEPS) -> tuple[float, ...]:
    return tuple(1 - i / total for i in range(total + 1))


def wander(step: int, seed: int = 0, size: tuple[int, ...] = (1, 16, 4)) -> Tensor:
    """A tensor that drifts, faster at first, with some of its own at every step."""
    base, slope, own = (torch.randn(size, generator=torch.Generator().manual_seed(100 * seed + i)) for i in range(3))
    noise = torch.randn(size, generator=torch.Generator().manual_seed(7919 * seed + step))
    return base + own * 0.01 + slope * 0.6 * (1 - math.exp(-step / 6)) + 0.02 * noise


@dataclass
class Toy:
    """One lane through a method: what it sees and computes at step i is given."""

    method: Method
    total: int = STEPS
    calibration: Calibration = IDENTITY
    probe: Callable[[int], Probe] = lambda step: Probe()
    feature: Callable[[int], Tensor] = wander
    tap: Callable[[int], Tensor] | None = None
    grid: tuple[int, ...] | None = None
    outs: list[Tensor] = field(default_factory=list)

    def run(self) -> Toy:
        schedule = Schedule(levels(self.total), flow_noise)
        self.recorder = Recorder(self.method.name, {}, "toy", "", self.total)
        session = Session(self.method, schedule, self.recorder)
        (track,) = session.tracks
        facts = Facts((16, 4), torch.float32, torch.device("cpu"))
        for step, sigma in enumerate(schedule.sigmas[:-1]):
            session.begin(torch.tensor([sigma]))
            call = session.open([LaneKey("cond")], [slice(0, 1)])
            if track.enter(call, facts, lambda rows, step=step: self.probe(step), self.calibration):
                track.leave_out(call)
                self.outs.append(track.predict(call))
            else:
                self.outs.append(self.feature(step))
                track.store(call, self.feature(step), grid=self.grid, tap=self.tap(step) if self.tap else None)
            session.end()
        session.close()
        return self

    @property
    def skipped(self) -> list[int]:
        return [r.step for r in self.recorder.records if r.action == "skipped"]


def relative(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def inner(total: int = STEPS) -> range:
    """The steps that may be skipped at all."""
    return range(1, total - 1)


# TeaCache -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.25, 0.4, 0.6, 0.8, 1.6])
@pytest.mark.parametrize("model", ["flux", "flux_kontext"])
def test_teacache_by_its_rule_and_as_spectralcache_without_its_components(threshold: float, model: str) -> None:
    calibration = TEACACHE[model]
    total, expected = 0.0, []
    for i in inner():
        grown = rescale(calibration.polynomial, relative(wander(i), wander(i - 1)))
        total += abs(grown) if calibration.absolute else max(grown, 0.0)
        if total < threshold * calibration.unit:
            expected.append(i)
        else:
            total = 0.0
    probe = lambda step: Probe(wander(step), 16)  # noqa: E731
    toy = Toy(METHODS["teacache"](threshold=threshold), calibration=calibration, probe=probe).run()
    assert toy.skipped == expected
    off = {"tads_min": 1.0, "tads_max": 1.0, "max_consecutive": 1000, "gamma_low": 1000.0, "gamma_high": 1000.0}
    other = Toy(METHODS["spectralcache"](threshold=threshold, **off), calibration=calibration, probe=probe).run()
    shown = [[(r.step, r.action, r.scores["distance"]) for r in t.recorder.records[1:]] for t in (toy, other)]
    assert shown[0] == shown[1]
    assert all(torch.equal(a, b) for a, b in zip(toy.outs, other.outs, strict=True))


# First-Block Cache, DBCache, DiCache ----------------------------------------------------------------------------------


def head(step: int) -> Probe:
    return Probe(head=wander(step, 1), targets=16)


@pytest.mark.parametrize("threshold", [0.06, 0.08, 0.12, 0.2, 0.3])
def test_first_block_cache(threshold: float) -> None:
    expected, anchor = [], 0
    for i in inner():
        if relative(head(i).head, head(anchor).head) < threshold:  # type: ignore[arg-type]
            expected.append(i)
        else:
            anchor = i
    toy = Toy(METHODS["first_block_cache"](threshold=threshold), probe=head).run()
    assert toy.skipped == expected and (threshold < 0.1 or len(expected) > 2)
    assert toy.method.rules[0].places[0].head == 1 and len(toy.method.rules[0].places) == 1


def block(step: int) -> Probe:
    """What enters a block: it moves less and less."""
    return Probe(entered=wander(0, 7) + 3 * wander(step, 8) / (step + 1))


@pytest.mark.parametrize(("calm", "moving", "most"), [(0.2, 0.6, 4), (0.05, 0.1, 3), (0.0, 0.5, 6)])
def test_quantcache(calm: float, moving: float, most: int) -> None:
    """Each block's rate between its last two computed steps says how long it rests."""
    expected: list[int] = []
    anchor, rate = 0, math.inf
    for i in inner():
        steps = most if rate < calm else (most + 1) // 2 if rate < moving else 1
        if i - anchor < steps:
            expected.append(i)
            continue
        now, before = (block(step).entered[:, ::8] for step in (i, anchor))  # type: ignore[index]
        rate, anchor = relative(before, now) / (i - anchor), i
    method = METHODS["quantcache"](calm=calm, moving=moving, most=most)
    toy = Toy(method, probe=block).run()
    assert toy.skipped == expected and expected
    held = [i for i in expected if torch.equal(toy.outs[i], toy.outs[i - 1])]
    assert held == expected


def test_quantcache_prunes_a_block_that_adds_nearly_nothing() -> None:
    def little(step: int) -> Tensor:
        return 0.01 * wander(step, 9)

    toy = Toy(METHODS["quantcache"](calm=0.0, moving=0.0, most=3, prune=0.99), probe=block, feature=little).run()
    assert toy.skipped == [i for i in inner() if i % 3]
    assert not any(toy.outs[i].any() for i in toy.skipped)
    kept = Toy(METHODS["quantcache"](calm=0.0, moving=0.0, prune=0.99), probe=block).run()  # what it adds counts here
    assert kept.skipped == []


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize(("warmup", "accumulated"), [(1, 0.0), (4, 0.0), (1, 0.25)])
def test_dbcache(most: int, warmup: int, accumulated: float) -> None:
    expected, anchor, row, total = [], 0, 0, 0.0
    for i in inner():
        d = relative(head(i).head, head(anchor).head)  # type: ignore[arg-type]
        total += d
        if i >= warmup and row < most and d < 0.3 and (not accumulated or total < accumulated):
            expected.append(i)
            row += 1
        else:
            anchor, row, total = i, 0, 0.0
    params = {"threshold": 0.3, "max_consecutive": most, "warmup_steps": warmup, "max_accumulated": accumulated}
    toy = Toy(METHODS["dbcache"](**params), probe=head).run()
    assert toy.skipped == expected and len(expected) > 2


def test_dbcache_presets_name_their_blocks() -> None:
    for name, front, back in (("F8B0", 8, 0), ("F4B0", 4, 0), ("F1B0", 1, 0), ("F8B8", 8, 8)):
        place = METHODS["dbcache"](head=front, tail=back).rules[0].places[0]
        assert (f"F{place.head}B{place.tail}", place.kind) == (name, "trunk")


@pytest.mark.parametrize(("predictor", "weights"), [("hold", [0, 1]), ("taylor", [-1, 2]), ("foca", [-0.5, 1.5])])
def test_what_stands_in_for_dbcache(predictor: str, weights: list[float]) -> None:
    """One step behind an anchor one step wide: held, the whole slope, and FoCa's forecast behind a jump of its own."""
    params = {"threshold": 10.0, "max_consecutive": 1, "warmup_steps": 2, "predictor": predictor}
    toy = Toy(METHODS["dbcache"](**params), probe=head).run()
    assert toy.skipped[0] == 2
    before, last = wander(0), wander(1)
    expected = last + 0.5 * (last - before) + 0.5 * (last - before) if predictor == "foca" else None
    expected = weights[0] * before + weights[1] * last if expected is None else expected
    assert torch.allclose(toy.outs[2], expected, atol=1e-5)


def passed_on(step: int) -> Probe:
    """What the head adds, and the stream behind it."""
    return Probe(head=wander(step, 1), targets=16, entered=wander(step, 1) + 2 * wander(step, 8))


@pytest.mark.parametrize("start", [0.0, 0.2])
@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3, 0.4, 0.8])
def test_dicache(threshold: float, start: float) -> None:
    """The released FLUX script: computed while step <= int(0.2 T); the change of the stream behind the probe."""
    expected, total, computed = [], 0.0, [0]
    outs = [wander(0)]
    for i in inner():
        total += relative(passed_on(i).entered, passed_on(i - 1).entered)  # type: ignore[arg-type]
        if i > int(start * STEPS) and total < threshold:
            expected.append(i)
            newest = wander(computed[-1])
            if len(computed) < 2:
                outs.append(newest)
                continue
            earlier, h = wander(computed[-2]), [head(step).head for step in (computed[-2], computed[-1], i)]
            gamma = float((h[2] - h[0]).abs().mean() / (h[1] - h[0]).abs().mean())  # type: ignore[operator]
            outs.append(earlier + min(max(gamma, 1.0), 1.5) * (newest - earlier))
        else:
            total = 0.0
            computed.append(i)
            outs.append(wander(i))
    toy = Toy(METHODS["dicache"](threshold=threshold, start_percent=start), probe=passed_on).run()
    assert toy.skipped == expected and len(expected) > 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(toy.outs, outs, strict=False))
    newest = {i: max(c for c in computed if c < i) for i in expected}
    mixed = [i for i in expected if not torch.equal(toy.outs[i], wander(newest[i]))]
    assert mixed or threshold > 0.4, "no skipped step tells the mix from a plain hold"
    assert METHODS["dicache"].defaults == {"threshold": 0.4, "head": 1, "start_percent": 0.2, "end_percent": 1.0}


# SeaCache -------------------------------------------------------------------------------------------------------------


def wiener(values: Tensor, sigma: float, height: int, width: int) -> Tensor:
    """The filter written as a sum over frequencies: b n d on a grid."""
    a, b, out = 1 - sigma, sigma, torch.zeros_like(values, dtype=torch.complex128)
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    gains, waves = [], []
    for i in range(height):
        for j in range(width):
            f = math.hypot(min(i, height - i) / height, min(j, width - j) / width)
            power = max(f, 1 / max(height, width)) ** -2
            gains.append(a * power / (a * a * power + b * b))
            waves.append(torch.exp(2j * math.pi * (i * y / height + j * x / width).double()))
    for gain, wave in zip(gains, waves, strict=True):
        amount = (values[0].to(torch.complex128) * wave.conj()[:, None]).sum(0) / len(wave)
        out[0] += gain / (sum(gains) / len(gains)) * wave[:, None] * amount
    return out.real.float()


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
def test_seacache(threshold: float) -> None:
    grid, total, expected = (2, 8), 0.0, []
    seen = [wiener(wander(i, 6), levels()[i], *grid) if i else wander(0, 6) for i in range(STEPS)]
    for i in inner():
        total += relative(seen[i], seen[i - 1])
        if total < threshold:
            expected.append(i)
        else:
            total = 0.0
    probe = lambda step: Probe(wander(step, 6), 16, sigma=torch.tensor(levels()[step]), grid=grid)  # noqa: E731
    toy = Toy(METHODS["seacache"](threshold=threshold), probe=probe).run()
    assert toy.skipped == expected and len(expected) > 2
    scores = [record.scores["d"] for record in toy.recorder.records[1:-1]]
    assert scores == pytest.approx([relative(seen[i], seen[i - 1]) for i in inner()], rel=1e-3)
    blind = Toy(
        METHODS["seacache"](threshold=threshold), probe=lambda step: Probe(wander(step, 6), 16, sigma=torch.ones(()))
    )
    plain = [record.scores["d"] for record in blind.run().recorder.records[1:-1]]
    assert plain == pytest.approx([relative(wander(i, 6), wander(i - 1, 6)) for i in inner()], rel=1e-4)  # no grid


# FastCache ------------------------------------------------------------------------------------------------------------


def entered(step: int) -> Tensor:
    return wander(step, 5)


@pytest.mark.parametrize("reference", ["previous", "computed"])
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.15, 0.3])
def test_fastcache_by_its_rule(threshold: float, reference: str) -> None:
    """One block: the relative Frobenius norm of its input's change, and the affine map of its last computed run."""
    expected, anchor = [], 0
    for i in inner():
        before = entered(i - 1 if reference == "previous" else anchor)
        if float((entered(i) - before).norm() / before.norm()) < threshold:
            expected.append(i)
        else:
            anchor = i
    method = METHODS["fastcache"](threshold=threshold, against=reference)
    toy = Toy(method, probe=lambda step: Probe(entered=entered(step), targets=16)).run()
    assert toy.skipped == expected and (threshold < 0.15 or len(expected) > 2)
    (rule,) = method.rules
    assert rule.feature == "affine" and [place.kind for place in rule.places] == ["blocks"]


def test_the_affine_map_is_the_least_squares_fit_of_each_channel() -> None:
    x, y = wander(0), wander(3) + 2 * wander(0)
    map_ = fitted(x, y)
    assert map_.shape == (1, 2, 4)
    for channel in range(4):
        columns = torch.stack((x[0, :, channel], torch.ones(16)), 1)
        slope, offset = torch.linalg.lstsq(columns, y[0, :, channel]).solution
        assert torch.allclose(map_[0, :, channel], torch.stack((slope, offset)), atol=1e-4)
    exact = 1.5 * x - 0.25
    assert torch.allclose(applied(fitted(x, exact), wander(9)), 1.5 * wander(9) - 0.25, atol=1e-4)
    flat = torch.full_like(x, 2.0)  # no slope can be seen: the offset stands for all
    assert torch.allclose(applied(fitted(flat, y), flat), y.mean(1, keepdim=True).expand_as(y), atol=1e-5)


def test_the_chi_square_form_of_fastcaches_limit_is_vacuous() -> None:
    """delta < sqrt(chi2(ND, 0.95) / ND), by Wilson and Hilferty: never below 1, whatever the size of a model."""
    limits = []
    for numbers in (10**3, 10**5, 4608 * 3072):
        spread = 2 / (9 * numbers)
        limits.append(math.sqrt((1 - spread + 1.6449 * math.sqrt(spread)) ** 3))
    assert limits == sorted(limits, reverse=True) and limits[-1] == pytest.approx(1.0003, abs=2e-5)
    small = Toy(METHODS["fastcache"](threshold=limits[-1]), probe=lambda step: Probe(entered=entered(step), targets=16))
    assert small.run().skipped == [*inner()]  # everything


# MagCache -------------------------------------------------------------------------------------------------------------


def shifted(total: int, mu: float = 1.15) -> Schedule:
    times = [1 - i / total for i in range(total)]
    return Schedule((*(math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in times), 0.0), flow_noise)


def mask(name: str, total: int, threshold: float, most: int, retention: float) -> str:
    """1 computed, 0 skipped."""
    found = skipped(CURVES[name], shifted(total), threshold, most, retention)
    return "".join("0" if i in found else "1" for i in range(total))


def test_magcache_resolves_to_the_references_schedules() -> None:
    """/reference: seed_systems.md, section 4, computed there from the published lists."""
    assert mask("FLUX.1", 28, 0.24, 5, 0.1) == "1110010001000001000001000010"
    counts = [
        mask(name, total, *settings).count("1")
        for name, total, settings in (
            ("FLUX.1", 28, (0.06, 3, 0.2)),
            ("Qwen-Image", 40, (0.10, 2, 0.2)),
            ("Qwen-Image", 40, (0.06, 2, 0.2)),
            ("Qwen-Image", 40, (0.3, 4, 0.2)),
        )
    ]
    assert counts == [14, 27, 31, 18]


@pytest.mark.parametrize("name", CURVES)
def test_a_magnitude_curve_gives_its_list_back_and_adds_up_on_other_schedules(name: str) -> None:
    curve = CURVES[name]
    assert curve.ratios(curve.sigmas) == pytest.approx(curve.gammas, abs=1e-9)
    for total in (10, 19, 50):
        sigmas = shifted(total).sigmas[:-1]
        fine = curve.ratios(sorted({*sigmas, *curve.sigmas, 0.5}, reverse=True))
        assert math.prod(curve.ratios([1.0, 0.5])) == pytest.approx(
            math.prod(ratio for ratio, s in zip(fine, sorted({*sigmas, *curve.sigmas, 0.5}, reverse=True), strict=True)
                      if s >= 0.5)
        )  # fmt: skip
        ends = curve.ratios([sigmas[0], sigmas[-1]])
        assert math.prod(curve.ratios(sigmas)) == pytest.approx(ends[1])
    assert len(curve.source) > 40


def test_magcache_in_the_engine() -> None:
    """The same steps, but for the last one; without a curve nothing is skipped, and it is said."""
    toy = Toy(METHODS["magcache"](threshold=0.24, max_consecutive=5, retention=0.1), 28, TEACACHE["flux"])
    expected = skipped(CURVES["FLUX.1"], Schedule(levels(28), flow_noise), 0.24, 5, 0.1) - {0, 27}
    assert toy.run().skipped == sorted(expected) and len(expected) > 8
    unknown = Toy(METHODS["magcache"](), 28).run()
    assert unknown.skipped == [] and "no magnitude curve for identity" in unknown.recorder.notes[0]
    assert Toy(METHODS["magcache"](curve="FLUX.1"), 28).run().skipped


@pytest.mark.parametrize("curve", ["FLUX.1", "custom"])
def test_magcaches_gain_is_the_product_of_the_ratios_since_the_anchor(curve: str) -> None:
    given = {"curve": curve, "ratios": ", ".join(map(str, CURVES["FLUX.1"].gammas)) if curve == "custom" else ""}
    eager = {"threshold": 10.0, "max_consecutive": 3, "retention": 0.0, **given}
    held, grown = (Toy(METHODS["magcache"](**eager, gain=gain), 28).run() for gain in (False, True))
    assert held.skipped == grown.skipped and len(held.skipped) > 15
    ratios, anchor = CURVES["FLUX.1"].ratios(levels(28)[:-1]), 0
    for i in range(28):
        if i in grown.skipped:
            product = math.prod(ratios[anchor + 1 : i + 1])
            assert torch.equal(held.outs[i], wander(anchor)) and abs(product - 1) > 1e-4
            assert torch.allclose(grown.outs[i], product * wander(anchor), rtol=1e-5)
        else:
            anchor = i
    assert [place.kind for place in grown.method.rules[0].places] == ["trunk"]


@pytest.mark.parametrize(("ratios", "words"), [("", "has 0 numbers"), ("1.0", "has 1 numbers"), ("1, x", "no list"),
                                               ("1, -1, 1", "above 0"), ("1 nan 1", "above 0")])  # fmt: skip
def test_a_curve_of_ones_own_that_cannot_be_used_is_refused(ratios: str, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        METHODS["magcache"](curve="custom", ratios=ratios)
    with pytest.raises(CacheError, match="use text"):
        METHODS["magcache"](ratios=3)


# AdaCache -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codebook", "scale"), [("fast", 1.0), ("slow", 1.0), ("fast", 0.3), ("slow", 0.2), ("fast, 100 steps", 0.3)]
)
def test_adacache(codebook: str, scale: float) -> None:
    books = {
        "fast": {0.08: 6, 0.16: 5, 0.24: 4, 0.32: 3, 0.40: 2, 1.0: 1},
        "slow": {0.08: 3, 0.16: 2, 1.0: 1},
        "fast, 100 steps": {0.03: 12, 0.05: 10, 0.07: 8, 0.09: 6, 0.11: 4, 1.0: 3},
    }
    computed, following = [0], 1
    for i in inner():
        if i != following:
            continue
        last = computed[-1]
        rate = relative(wander(i, 2), wander(last, 2)) / (i - last)
        steps = next((n for bound, n in books[codebook].items() if rate < bound * scale), 1)
        computed.append(i)
        following = i + steps
    toy = Toy(METHODS["adacache"](codebook=codebook, scale=scale), tap=lambda step: wander(step, 2)).run()
    assert toy.skipped == [i for i in inner() if i not in computed] and toy.skipped
    assert toy.method.rules[0].signal.tap == 0.5 and not toy.method.rules[0].signal.needs


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.3])
def test_adacaches_motion_term(scale: float) -> None:
    """Four frames of 2 x 2 tokens; a picture has none, and nothing changes for it."""
    book = ((0.08, 3), (0.16, 2))
    computed, following, before, rates = [0], 1, None, {}

    def seen(step: int) -> Tensor:
        return wander(step, 2) + 2  # frames that are alike

    def motion(step: int) -> float:
        frames = seen(step).unflatten(1, (4, 2, 2))
        change, total = ((frames[:, 1:] + sign * frames[:, :-1]).abs().sum() for sign in (-1, 1))
        return float((change / total / 0.385) ** 8)

    for i in inner():
        if i != following:
            continue
        last = computed[-1]
        rate = relative(seen(i), seen(last)) / (i - last)
        before = motion(last)
        if 0.1 <= i / STEPS <= 0.9:
            rate *= motion(i) + abs(10 * (motion(i) - before) / (i - last))
        rates[i] = rate
        computed.append(i)
        following = i + next((n for bound, n in book if rate < bound * scale), 1)
    params = {"codebook": "slow", "scale": scale, "motion": True}
    video = Toy(METHODS["adacache"](**params), tap=seen, grid=(4, 2, 2)).run()
    assert video.skipped == [i for i in inner() if i not in computed]
    shown = {r.step: r.scores["rate"] for r in video.recorder.records[2:-1]}
    assert all(shown[i + 1] == pytest.approx(rate, rel=1e-4) for i, rate in rates.items() if i + 1 in shown)
    flat = [Toy(METHODS["adacache"](**{**params, "motion": on}), tap=seen, grid=(4, 4)).run() for on in (True, False)]
    assert flat[0].skipped == flat[1].skipped != video.skipped
    assert len(video.skipped) > 2


# forecasts ------------------------------------------------------------------------------------------------------------


def every(interval: int, warmup: int, anchor: int, total: int = STEPS) -> list[int]:
    """The skipped steps of a fixed schedule."""
    return [i for i in inner(total) if i >= warmup and (i - anchor) % interval]


@pytest.mark.parametrize(("name", "anchor"), [("taylorseer", 2), ("hicache", 2), ("foca", 2), ("ab_cache", 0)])
@pytest.mark.parametrize("interval", [2, 3, 6])
def test_fixed_schedules(name: str, anchor: int, interval: int) -> None:
    toy = Toy(METHODS[name](interval=interval, warmup_steps=3)).run()
    assert toy.skipped == every(interval, 3, anchor)


def test_ab_cache_on_the_papers_schedule_computes_thirteen_of_fifty() -> None:
    toy = Toy(METHODS["ab_cache"](), 50).run()
    assert toy.skipped == [i for i in range(5, 49) if i % 6]
    assert 50 - len(toy.skipped) == 14  # the authors' thirteen, and the last step, which they skip


@pytest.mark.parametrize(("order", "weights"), [(1, [1]), (2, [-1, 2]), (5, [1, -5, 10, -10, 5])])
@pytest.mark.parametrize("history", ["computed", "recursive"])
def test_ab_cache_weights(order: int, weights: list[float], history: str) -> None:
    params = {"interval": 6, "order": order, "history": history, "spacing": "unit"}
    toy = Toy(METHODS["ab_cache"](**params)).run()
    first = [i for i in toy.skipped if i < 7]  # 5: everything before it was computed
    assert first == [5]
    expected = sum(w * wander(5 - len(weights) + j) for j, w in enumerate(weights))
    assert torch.allclose(toy.outs[5], expected, atol=1e-4)
    queue = [*(wander(i) for i in range(5)), toy.outs[5], wander(6)]
    for i in (7, 8):
        if history == "computed":
            queue = [wander(j) for j in (0, 1, 2, 3, 4, 6)]
        queue.append(sum(w * f for w, f in zip(weights, queue[-order:], strict=True)))  # type: ignore[arg-type]
        assert torch.allclose(toy.outs[i], queue[-1], atol=1e-3)


def test_ab_cache_at_true_spacing_is_exact_on_a_parabola() -> None:
    def parabola(step: int) -> Tensor:
        sigma = levels()[step]
        return torch.full((1, 16, 4), 3 * sigma**2 - sigma + 2)

    true = Toy(METHODS["ab_cache"](interval=3, order=3, warmup_steps=4, spacing="true"), feature=parabola).run()
    unit = Toy(METHODS["ab_cache"](interval=3, order=3, warmup_steps=4), feature=parabola).run()
    errors = [[float((t.outs[i] - parabola(i)).abs().max()) for i in t.skipped] for t in (true, unit)]
    assert max(errors[0]) < 1e-5 and max(errors[1]) > 0.01


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("name", "basis"), [("taylorseer", "taylor"), ("hicache", "hermite")])
def test_finite_differences_of_the_authors_recursion(name: str, basis: str, order: int) -> None:
    """D_0 = F, D_(j+1) = (D_j - D_j before) / gap, kept from one computed step to the next; gaps 1, then 4."""
    toy = Toy(METHODS[name](interval=4, order=order, warmup_steps=3)).run()
    kept: list[Tensor] = []
    at = 0
    for i in range(STEPS):
        if i in toy.skipped:
            x, s = i - at, 0.5
            factors = [1, x, x * x / 2] if basis == "taylor" else [1, s * 2 * s * x, s * s * (4 * (s * x) ** 2 - 2) / 2]
            used = [f * d for f, d in zip(factors, kept, strict=False)]
            assert torch.allclose(toy.outs[i], sum(used), atol=1e-4), i  # type: ignore[arg-type]
            continue
        new = [wander(i)]
        for j in range(order):
            starts = 1 if j == 0 else 3  # the warm-up's own differences form no second one
            if len(kept) > j and i >= starts:
                new.append((new[j] - kept[j]) / (i - at))
        if i == 2 and order == 2:
            new = new[:2]
        kept, at = new, i


@pytest.mark.parametrize("reference", [False, True])
def test_foca_goes_from_one_skipped_step_to_the_next(reference: bool) -> None:
    toy = Toy(METHODS["foca"](interval=4, warmup_steps=3, reference=reference)).run()
    full: list[tuple[int, Tensor]] = []
    rolling: list[Tensor] = []
    for i in range(STEPS):
        if i in toy.skipped:
            gap = 1 if reference else full[-1][0] - full[-2][0]
            slope = (full[-1][1] - full[-2][1]) / gap
            forecast = 2 * rolling[-1] - rolling[-2]  # BDF2 as in the code
            rolling.append(forecast + (slope - (rolling[-1] - rolling[-2])) / 2)  # Heun
            assert torch.allclose(toy.outs[i], rolling[-1], atol=1e-4), i
        else:
            full.append((i, wander(i)))
            rolling.append(wander(i))
    assert len(toy.skipped) == len(every(4, 3, 2))


def test_spectrum_is_the_ridge_fit_and_the_last_slope() -> None:
    toy = Toy(METHODS["spectrum"](warmup_steps=5), 50).run()
    computed = [i for i in range(50) if i not in toy.skipped]
    assert len(computed) == 15  # the authors' 14 for growth 0.75, and the last step
    assert all(b - a == math.floor(2 + 0.75 * r) for r, (a, b) in enumerate(pairwise(computed[4:-1])))
    step = next(i for i in toy.skipped if i > 20)
    known = [i for i in computed if i < step][-10:]
    times = torch.tensor([*known, step], dtype=torch.float64) * 2 / 49 - 1
    basis = torch.cos(torch.arange(5) * torch.acos(times)[:, None])
    old = torch.stack([wander(i).double().flatten() for i in known])
    fit = basis[-1] @ torch.linalg.inv(basis[:-1].T @ basis[:-1] + 0.1 * torch.eye(5)) @ basis[:-1].T @ old
    slope = (old[-1] - old[-2]) / (known[-1] - known[-2])
    expected = 0.5 * fit + 0.5 * (old[-1] + (step - known[-1]) * slope)
    assert torch.allclose(toy.outs[step].double().flatten(), expected, atol=1e-5)
    assert 50 - len(Toy(METHODS["spectrum"](growth=3.0), 50).run().skipped) == 11  # and 10 for 3
    assert Growing(1, 1, 0).computed(5) >= {1, 2, 3, 4}


# EasyCache, LazyCache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["easycache", "lazycache"])
@pytest.mark.parametrize("rule", ["core", "paper"])
@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.8])
def test_easycache(name: str, rule: str, threshold: float) -> None:
    """ComfyUI's node, step by step: x and Out are given, so that what stood in does not move them."""
    x = lambda step: wander(step, 3, (1, 16, 24, 4))  # noqa: E731
    out = lambda step: wander(step, 4, (1, 16, 24, 4))  # noqa: E731
    sparse = lambda t: t[:, ::8, ::8]  # noqa: E731
    measured = 2 if name == "easycache" else 1  # ComfyUI's EasyCache needs one more step for its first input
    expected, total = [], 0.0
    gain: float | None = None
    anchor: int | None = None
    for i in range(STEPS):
        window = 0.15 <= i / STEPS <= 0.95
        if gain is not None and anchor is not None and (i - measured) / STEPS >= 0.15 and window and i < STEPS - 1:
            since = anchor if rule == "core" else i - 1
            total += gain * float((sparse(x(i)) - sparse(x(since))).abs().mean()) / float(out(anchor).abs().mean())
            if total < threshold:
                expected.append(i)
                continue
        if anchor is not None:
            moved = float((sparse(x(i)) - sparse(x(anchor))).abs().mean())
            gain = float((sparse(out(i)) - sparse(out(anchor))).abs().mean()) / moved
        anchor, total = i, 0.0
    toy = Toy(
        METHODS[name](threshold=threshold, rule=rule),
        probe=lambda step: Probe(x(step)),
        feature=lambda step: (out(step) - x(step)).flatten(1, 2),
    ).run()
    assert toy.skipped == expected and (threshold < 0.1 or len(expected) > 3)


# DeepCache ------------------------------------------------------------------------------------------------------------

RELEASED = {
    (50, 10, 15, 1.4): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 16, 15, 1.2): [0, 4, 7, 9, 12, 15, 16, 19, 22, 25, 28, 32, 35, 39, 42, 46],
    (50, 5, 15, 1.4): [0, 9, 17, 26, 37],
    (28, 9, 8, 1.4): [0, 3, 6, 8, 10, 13, 16, 20, 23],
}
"""What the released function gives in numpy, complex roots and all: steps, how many, centre, power."""


@pytest.mark.parametrize(("total", "count", "centre", "power"), RELEASED)
def test_deepcache_has_the_released_quadratic_schedule(total: int, count: int, centre: int, power: float) -> None:
    expected = RELEASED[total, count, centre, power]
    assert sorted(quadratic(total, count, centre, power)) == expected
    params = {"interval": total // count, "schedule": "quadratic", "centre": centre / total, "power": power}
    toy = Toy(METHODS["deepcache"](**params), total=total).run()
    assert toy.skipped == [i for i in inner(total) if i not in expected]


def test_deepcache_every_n_and_where_the_quadratic_schedule_finds_no_power() -> None:
    toy = Toy(METHODS["deepcache"](interval=5, branch=2)).run()
    assert toy.skipped == [i for i in inner() if i % 5]
    assert (toy.method.rules[0].places[0].head, toy.method.rules[0].places[0].tail) == (3, 3)
    assert quadratic(4, 4, 1, 1.4) == frozenset(range(4))


# what holds for all of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_states_itself(name: str) -> None:
    published = METHODS[name]
    assert published(**published.never).never and not published(**published.refusing).never
    assert not published().never and not published(**published.skipping).never
    assert 30 < len(published.advice) < 140 and published.advice.endswith(".")
    for parameter in published.parameters:
        assert len(parameter.tooltip) > 30 and parameter.tooltip.endswith("."), parameter.name
        parameter.check(parameter.default)
    with pytest.raises(CacheError, match="has no"):
        published(nonsense=1)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.own_node])
def test_a_method_is_one_short_file_with_its_source(name: str) -> None:
    """Longer are only those with a node of their own: what makes them long is the statement of its many inputs."""
    import importlib
    from pathlib import Path

    module = importlib.import_module(f"cache_core.methods.{name}")
    text = Path(str(module.__file__)).read_text("utf-8")
    assert len(text.splitlines()) <= 60
    document = module.__doc__ or ""
    cited = any(source in document for source in ("arXiv 2", "ParaAttention", "cache-dit", "ComfyUI's own"))
    assert cited and "Differs from" in document


def test_the_documents_are_what_the_files_state() -> None:
    """Written by `python dev.py bench methods`."""
    from bench.tables import methods as documents

    assert documents.TABLE.read_text("utf-8") == documents.table()
    assert documents.HELP.read_text("utf-8") == documents.page()
    lines = documents.table().splitlines()
    assert len(lines) == 7 + len(METHODS) and lines[6].startswith("| fewer steps |")


@pytest.mark.parametrize(("name", "count"), [("auto", 5), ("foca", 3), ("taylorseer", 2), ("spectrum", 10)])
def test_what_a_method_holds_is_counted(name: str, count: int) -> None:
    """Features and what they taught, as the engine's own history keeps them."""
    from bench.tables import methods as documents

    assert documents.held(METHODS[name]().rules[0].predictor) == count


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_the_translated_help_has_every_method_and_nothing_left_over(language: str) -> None:
    """Written by `python dev.py bench methods`; a method that is not translated yet stands there in English."""
    from bench.tables import methods as documents

    written = documents.help_in(language).read_text("utf-8")
    assert written == documents.translated(language, written)
    assert all(f"| **{name}** |" in written for name in METHODS)
    locale = documents.ROOT / "locales" / language
    assert set(json.loads((locale / "methods.json").read_text("utf-8"))) <= set(METHODS)
    stated = {f"method_{parameter.name}" for method in METHODS.values() for parameter in method.parameters}
    named = json.loads((locale / "nodeDefs.json").read_text("utf-8"))[documents.NODE]["inputs"]
    assert {key for key in named if key.startswith("method_")} <= stated


def test_the_bench_measures_every_method_from_careful_to_draft() -> None:
    from bench.lab.presets import method_arms

    assert [name for name in METHODS if not method_arms([name])] == ["deepcache"]  # the small FLUX is no U-Net
    for name in METHODS.keys() - {"deepcache"}:
        arms = method_arms([name])
        assert len(arms) >= 4 and len({arm.name for arm in arms}) == len(arms)
        for arm in arms:
            METHODS[arm.method](**arm.params)
