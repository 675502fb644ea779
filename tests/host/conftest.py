"""A real ComfyUI on the CPU, in this process, with the pack loaded by path as ComfyUI loads it.

The repository root must never be on `sys.path` here: our `nodes/` would shadow the host's `nodes.py`. `dev.py test`
starts these tests in a process of their own, with COMFYUI_PATH set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PACK = "spectralcache_under_test"
WEIGHTS = ROOT / "bench" / "weights"


# compatibility: what the tests claim ----------------------------------------------------------------------------------

CLAIMS_FILE = "SPECTRALCACHE_CLAIMS"
"""Environment variable: a run of all host tests writes docs/compatibility.md there."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(area, what): what this test shows, for docs/compatibility.md")


class Claims:
    """Collects what passed, and writes the table. A row whose tests did not all pass is not written."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], list[bool]] = {}
        self.tests: dict[tuple[str, str], str] = {}

    def note(self, item: pytest.Item, passed: bool) -> None:
        for mark in item.iter_markers("claim"):
            claim = (mark.args[0], mark.args[1])
            self.outcomes.setdefault(claim, []).append(passed)
            self.tests[claim] = f"{item.path.name}: {getattr(item, 'originalname', item.name)}"

    def markdown(self, version: str) -> str:
        lines = [
            "# What is tested",
            "",
            f"Written by a run of the host tests on a real ComfyUI {version}, on the CPU: `{CLAIMS_FILE}="
            "docs/compatibility.md python dev.py test tests/host`.",
            "A row stands here only if all of its cases passed. What has no row is not claimed.",
        ]
        areas = dict.fromkeys(area for area, _ in self.outcomes)
        for area in sorted(areas):
            lines += ["", f"## {area}", "", "| | cases | test |", "|---|---:|---|"]
            for (where, what), outcomes in self.outcomes.items():
                if where == area and all(outcomes):
                    lines.append(f"| {what} | {len(outcomes)} | {self.tests[where, what]} |")
        return "\n".join([*lines, ""])


CLAIMS = Claims()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" or report.failed:
        CLAIMS.note(item, report.passed)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get(CLAIMS_FILE)
    if target and CLAIMS.outcomes:
        from comfyui_version import __version__

        Path(target).write_text(CLAIMS.markdown(__version__), encoding="utf-8")


# the host -------------------------------------------------------------------------------------------------------------


def _load_host() -> None:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise RuntimeError("COMFYUI_PATH is not set: run the tests with `python dev.py test`")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path.insert(0, path)
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    sys.argv = arguments


def _load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def _load_file(path: Path) -> ModuleType:
    """A plain file by path, so that no folder of ours gets onto `sys.path`."""
    name = f"spectralcache_tests_{path.stem}"  # `server` is ComfyUI's own module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass
class BlockCounter:
    """Counts the blocks that really ran, by forward hooks on the modules themselves."""

    runs: int = 0
    handles: list[Any] = field(default_factory=list)

    def watch(self, model: Any) -> None:
        def count(*_: Any) -> None:
            self.runs += 1

        for block in (*model.double_blocks, *model.single_blocks):
            self.handles.append(block.register_forward_hook(count))

    def release(self) -> None:
        for handle in self.handles:
            handle.remove()


torch.set_num_threads(1)  # the model is small: threads would only wait for each other


class Remains:
    """Weak references to what the pack keeps while it samples."""

    def __init__(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tensors: list[weakref.ref[torch.Tensor]] = []
        self.sessions: list[weakref.ref[Any]] = []
        make, start = host.host.keep, host.host._start

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            copy = make(tensor)
            self.tensors.append(weakref.ref(copy))
            return copy

        def started(*args: Any) -> Any:
            run = start(*args)
            self.sessions.append(weakref.ref(run.session))
            return run

        monkeypatch.setattr(host.host, "keep", keep)
        monkeypatch.setattr(host.host, "_start", started)


@pytest.fixture
def remains(host: Any, monkeypatch: pytest.MonkeyPatch) -> Remains:
    return Remains(host, monkeypatch)


class Host:
    """What a host test needs: the small trained FLUX, conditioning, sampling, the pack's own modules."""

    weights = WEIGHTS

    def __init__(self) -> None:
        _load_host()
        _load_pack()
        import comfy.sample
        import comfy.samplers
        import comfy.sd  # noqa: F401  reached through `self.comfy`

        self.comfy = sys.modules["comfy"]
        self.host = importlib.import_module(f"{PACK}.nodes.host")
        self.sites = importlib.import_module(f"{PACK}.nodes.sites")
        self.stats_node = importlib.import_module(f"{PACK}.nodes.stats").SpectralCacheStats
        self.core = importlib.import_module(f"{PACK}.cache_core")
        self.types = importlib.import_module(f"{PACK}.cache_core.types")
        self.gates = importlib.import_module(f"{PACK}.cache_core.gates")
        self.spectralcache: Callable[..., Any] = self.core.methods()["spectralcache"]
        self.tiny = _load_file(Path(__file__).with_name("tiny.py"))
        self.pretended = _load_file(Path(__file__).with_name("pretended_gpu.py"))
        self.foreign = _load_file(Path(__file__).with_name("foreign.py"))
        self.words = _load_file(ROOT / "tests" / "packs" / "stand_in" / "words.py")
        self.model = self.load()
        self.blocks = len(self.diffusion_model.double_blocks) + len(self.diffusion_model.single_blocks)

    def load(self) -> Any:
        """A fresh copy of the small trained FLUX."""
        return self.comfy.sd.load_diffusion_model(str(WEIGHTS / "tiny_flux.safetensors"))

    def recorder(self, model: str, steps: int) -> Any:
        """A recorder for a session that a test drives itself."""
        trace = importlib.import_module(f"{PACK}.cache_core.trace")
        return trace.Recorder("test", {}, model, "model", steps)

    def lane(self, name: str) -> Any:
        """A lane key."""
        return importlib.import_module(f"{PACK}.cache_core.session").LaneKey(name)

    def weight_patches(self, suffix: str) -> dict[str, Any]:
        """A small random change of some weights, in the form in which LoRAs reach a ModelPatcher."""
        generator = torch.Generator().manual_seed(0)
        names = [(name, w) for name, w in self.model.model.named_parameters() if name.endswith(suffix)]
        return {name: ("diff", (0.02 * torch.randn(w.shape, generator=generator),)) for name, w in names}

    def perturb(self, model: Any, suffix: str) -> None:
        """Change some weights of a loaded model for good."""
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.endswith(suffix):
                weight.data = weight.data + 0.05

    @property
    def diffusion_model(self) -> Any:
        return self.model.model.diffusion_model

    @contextlib.contextmanager
    def spoiled(self, value: float, call: int = 4) -> Iterator[None]:
        """While open, the model's first layer gives nothing but `value` in its call of that number."""
        calls = 0

        def spoil(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return torch.full_like(out, value) if calls == call else out

        handle = self.diffusion_model.img_in.register_forward_hook(spoil)
        try:
            yield
        finally:
            handle.remove()

    def apply(self, model: Any = None, **params: Any) -> Any:
        """A clone of `model` (the small FLUX) with SpectralCache on it."""
        return self.host.attach(model or self.model, self.spectralcache(**params), None)

    def freqca(self, model: Any = None, **params: Any) -> Any:
        """A clone of `model` (the small FLUX) with FreqCa on it."""
        return self.host.attach(model or self.model, self.core.methods()["freqca"](**params), None)

    def auto(self, model: Any = None, **params: Any) -> Any:
        """A clone of `model` (the small FLUX) with SpectralCache Auto on it."""
        return self.host.attach(model or self.model, self.core.methods()["auto"](**params), None)

    def conditioning(self, seed: int, tokens: int = 8) -> list[Any]:
        """Random conditioning: b m d = 1 tokens 64."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, 64, generator=generator)
        return [[text, {"pooled_output": torch.randn(1, 64, generator=generator)}]]

    def caption(self, text: str) -> list[Any]:
        """The conditioning of a caption, as the small FLUX was trained with; the unconditional one without a word."""
        tokens, pooled = self.words.conditioning(text)
        return [[tokens, {"pooled_output": pooled}]]

    def sample(
        self,
        model: Any,
        *,
        steps: int = 12,
        cfg: float = 1.0,
        sampler: str = "euler",
        batch: int = 1,
        size: tuple[int, int] = (12, 16),
        seed: int = 0,
        denoise: float = 1.0,
        positive: Any = None,
        negative: Any = None,
        latent: torch.Tensor | None = None,
        noise_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One run through the host's own `comfy.sample.sample`: b c h w."""
        empty = torch.zeros(batch, 16, *size) if latent is None else latent
        noise = self.comfy.sample.prepare_noise(empty, seed)
        return self.comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "simple",
            positive or self.conditioning(1),
            negative or self.conditioning(2),
            empty,
            denoise=denoise,
            noise_mask=noise_mask,
            seed=seed,
        )

    def trace(self) -> dict[str, Any]:
        """The newest finished run."""
        trace = self.host.RUNS.newest(lambda _: True)
        assert trace is not None
        return trace

    def counted(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
        """Run and count the blocks that ran."""
        counter = BlockCounter()
        counter.watch(self.diffusion_model)
        try:
            return run(), counter.runs
        finally:
            counter.release()


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    with torch.inference_mode():
        yield Host()


@pytest.fixture(autouse=True)
def _inference_mode() -> Iterator[None]:
    """As ComfyUI's executor runs nodes."""
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Caching:
    """A method with two settings: one that records everything and skips nothing, one that skips two of three steps."""

    host: Host
    method: str
    record: dict[str, Any]
    skip: dict[str, Any]
    site: str

    def refusing(self, model: Any = None) -> Any:
        """A clone of `model` (the small FLUX) on which nothing is skipped."""
        return self._attached(model, self.record)

    def fast(self, model: Any = None) -> Any:
        """A clone of `model` (the small FLUX) on which two of three steps are skipped."""
        return self._attached(model, self.skip)

    def _attached(self, model: Any, params: dict[str, Any]) -> Any:
        return self.host.host.attach(model or self.host.model, self.host.core.methods()[self.method](**params), None)


EAGER = {"threshold": 10.0, "max_consecutive": 2, "gamma_low": 1000.0, "gamma_high": 1000.0}
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "SpectralCache": ("spectralcache", {"threshold": 1e-6}, EAGER, "trunk"),
    "FreqCa": ("freqca", {"warmup_steps": 100}, {"interval": 3, "warmup_steps": 1}, "trunk"),
    "Auto": ("auto", {"keep_first": 100}, {"speedup": 3.0}, "model"),
    "Auto, trunk": ("auto", {"keep_first": 100, "site": "trunk"}, {"speedup": 3.0, "site": "trunk"}, "trunk"),
}
"""name: file, settings that skip nothing, settings that skip, site."""


@pytest.fixture(params=METHODS)
def caching(request: pytest.FixtureRequest, host: Host) -> Caching:
    """Every method in turn, for what has to hold whatever the method is."""
    return Caching(host, *METHODS[request.param])


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The demo's graph builders."""
    return _load_file(ROOT / "bench" / "graphs.py")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One headless ComfyUI with the pack and the stand-ins, for every test that goes through its API."""
    module = _load_file(ROOT / "bench" / "server.py")
    base = module.base_directory(tmp_path_factory.mktemp("comfyui"))
    with module.Server(base) as running:
        yield running
