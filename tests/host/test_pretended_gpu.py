"""Every method on a GPU that is not there (pretended_gpu.py): one wait an evaluation, nothing left on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("untrained")

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SpectralCache": ("spectralcache", {"threshold": 0.6}),
    "SpectralCache, eager": (
        "spectralcache",
        {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0},
    ),
    "FreqCa, DCT": ("freqca", {"interval": 3}),
    "FreqCa, FFT": ("freqca", {"interval": 3, "transform": "fft"}),
    "FreqCa, residual": ("freqca", {"interval": 3, "feature": "residual"}),
    "FreqCa, no transform": ("freqca", {"interval": 3, "transform": "none"}),
    "FreqCa, adaptive": ("freqca", {"schedule": "adaptive", "threshold": 0.6}),
    "Auto": ("auto", {"speedup": 2.0}),
    "Auto, trunk": ("auto", {"speedup": 2.0, "site": "trunk"}),
    "Auto, one band": ("auto", {"speedup": 2.0, "bands": 1}),
}
QUEUED_BY_A_SKIP = 15
"""Most operations that a skip of Auto may queue beside the host's own: with nothing else to do, a GPU waits."""


class Watched:
    """One model, sampled on the CPU and on the pretended GPU; keeps what our own files asked of the GPU."""

    def __init__(self, host: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.model, self.monkeypatch = host, model, monkeypatch
        self.folders = {Path(module.__file__).parent for module in (host.core, host.host)}
        self.kept: list[torch.Tensor] = []
        self.queued: dict[str, list[int]] = {}
        self.waits: Counter[str] = Counter()

    def run(self, name: str, sample: Callable[[Any], torch.Tensor]) -> dict[str, Any]:
        """The trace on the GPU. Latent and trace have to be the CPU's, but for the clock."""
        file, params = METHODS[name]
        method = self.host.core.methods()[file](**params)
        plain = sample(self.host.host.attach(self.model, method, None))
        expected = self.host.trace()
        assert expected["skipped"] > 2 and expected["notes"] == [], expected["notes"]
        with self.host.pretended.moved(self.model, self.monkeypatch) as gpu:
            self._watch(gpu)
            out = sample(self.host.host.attach(self.model, method, None))
            trace: dict[str, Any] = self.host.trace()
        assert type(out) is torch.Tensor and torch.equal(out, plain)  # the host brings the latent back
        assert timeless(trace) == timeless(expected)
        for (path, _), count in gpu.waits.items():
            if self._ours(path):
                self.waits[path.name] += count
        return trace

    def _watch(self, gpu: Any) -> None:
        host, session = self.host.host, self.host.core.Session
        make, begin, end = host.keep, session.begin, session.end
        before = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.kept.append(tensor)
            return make(tensor)  # type: ignore[no-any-return]

        def beginning(run: Any, sigma: torch.Tensor) -> None:
            nonlocal before
            before = self._queued(gpu)
            begin(run, sigma)

        def ending(run: Any) -> None:
            end(run)
            self.queued.setdefault(run.recorder.records[-1].action, []).append(self._queued(gpu) - before)

        for place, name, function in ((host, "keep", keep), (session, "begin", beginning), (session, "end", ending)):
            self.monkeypatch.setattr(place, name, function)

    def _queued(self, gpu: Any) -> int:
        return sum(count for (path, _), count in gpu.queued.items() if self._ours(path))

    def _ours(self, path: Path) -> bool:
        return any(folder in path.parents for folder in self.folders)


def timeless(trace: dict[str, Any]) -> dict[str, Any]:
    evaluations = [{**each, "seconds": None} for each in trace["evaluations"]]
    return {**trace, "evaluations": evaluations, "speedup": None, "run": None}


@pytest.fixture
def flux(host: Any, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(host, host.model, monkeypatch)


@pytest.mark.claim("Devices", "every method on a pretended GPU: the CPU's run to the bit, one wait an evaluation")
@pytest.mark.parametrize(
    ("name", "sampler"),
    [*((name, "euler") for name in METHODS), *((name, "heun") for name in ("SpectralCache", "FreqCa, DCT", "Auto"))],
)
def test_the_run_is_the_cpu_s_and_waits_once_an_evaluation(host: Any, flux: Watched, name: str, sampler: str) -> None:
    events = host.pretended.Event
    events.made = 0
    trace = flux.run(name, lambda model: host.sample(model, cfg=3.0, sampler=sampler))
    evaluations = len(trace["evaluations"])
    # The schedule, before the first step; one read an evaluation; and the clock's events, behind the last step.
    assert flux.waits == {"host.py": 1, "track.py": evaluations, "trace.py": evaluations}
    assert events.made == 2 * evaluations
    assert {tensor.device.type for tensor in flux.kept if tensor.dim() > 0} == {"cuda"}


def test_auto_s_skip_leaves_the_gpu_next_to_nothing_to_wait_for(host: Any, flux: Watched) -> None:
    flux.run("Auto", lambda model: host.sample(model, cfg=3.0))
    assert 0 < max(flux.queued["skipped"]) <= QUEUED_BY_A_SKIP


@pytest.mark.parametrize("name", ["SpectralCache", "FreqCa, DCT", "Auto, trunk"])
def test_lanes_in_calls_of_their_own(host: Any, flux: Watched, name: str) -> None:
    sides = {"positive": host.conditioning(1, tokens=8), "negative": host.conditioning(2, tokens=12)}
    trace = flux.run(name, lambda model: host.sample(model, cfg=3.0, **sides))
    assert {each["calls"] for each in trace["evaluations"]} == {2}
    assert flux.waits["track.py"] == len(trace["evaluations"])


@pytest.mark.parametrize("name", ["SpectralCache, eager", "FreqCa, DCT", "Auto"])
def test_qwen_image(host: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    qwen = host.tiny.Qwen(host)
    watched = Watched(host, qwen.model, monkeypatch)
    trace = watched.run(name, lambda model: qwen.sample(model, cfg=3.0))
    assert watched.waits["track.py"] == len(trace["evaluations"])
    assert watched.waits["host.py"] == 1


def test_the_pretended_gpu_refuses_and_counts_what_a_real_one_would(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with host.pretended.moved(host.model, monkeypatch) as gpu:
        here, there = torch.arange(4.0), torch.arange(4.0, device="cuda")
        index = torch.tensor([0, 2])
        for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[index.to("cuda")]):
            with pytest.raises(RuntimeError, match="a tensor on cuda:0 meets"):
                mixed()
        reads = (
            lambda: there.sum().item(),
            there.tolist,
            lambda: bool(there.any()),
            there.cpu,
            lambda: here.to("cuda"),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: there[index],
            lambda: there[there > 1],
            there.nonzero,
            lambda: torch.repeat_interleave(there.long()),
        )
        for read in reads:
            before = gpu.waits.total()
            read()
            assert gpu.waits.total() > before
        before = gpu.waits.total()
        assert here[index].device.type == "cpu" and here[here > 1].device.type == "cpu"
        silent = (there * 2.0 + there.mean())[1:].float() @ torch.full((3,), 0.5, device="cuda")
        assert gpu.waits.total() == before and silent.device.type == "cuda"
