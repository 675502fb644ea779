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
KNOWN = (
    "a coconut on blue", "a large strawberry on green", "a bus left of a pear on pink", "a light bulb on dusk",
    "a crown at the left on purple", "a small goat on red to blue", "a beer mug on brick",
)  # fmt: skip
WEIGHTS = ROOT / "bench" / "weights"


# compatibility: what the tests claim ----------------------------------------------------------------------------------

def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(area, what): what this test shows, for docs/compatibility.md")
    config.addinivalue_line("markers", "smoke: what every supported ComfyUI has to show (dev.py test --host)")
    if os.environ.get("RECORD"):
        config.pluginmanager.register(_load_file(ROOT / "tests" / "record.py"), "record")
    if is_worker(config):  # the processors are shared with the others
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.workerinput["workercount"]))


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that pytest-xdist started."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test claims goes with its report, which a worker sends to the process that writes the table."""
    report = yield
    if report.when == "call" or report.failed or report.skipped:
        test = (item.path.name, item.location[1], getattr(item, "originalname", item.name))
        report.user_properties += [("claim", (*mark.args, *test)) for mark in item.iter_markers("claim")]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    CLAIMS.note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get(claims.VARIABLE)
    if target and CLAIMS.tests and not is_worker(session.config):
        comfyui = Path(os.environ["COMFYUI_PATH"])
        version = _load_file(comfyui / "comfyui_version.py").__version__
        newest = version == claims.newest(ROOT)
        CLAIMS.write(Path(target), version, claims.samplers(comfyui), newest)


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


def _load_package(name: str, folder: Path) -> Any:
    """A package by path."""
    places = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=places)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
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
        self.track = importlib.import_module(f"{PACK}.cache_core.track").Track
        self.gates = importlib.import_module(f"{PACK}.cache_core.gates")
        self.shares = importlib.import_module(f"{PACK}.nodes.sites.shares").shares
        self.fused = importlib.import_module(f"{PACK}.nodes.sites.fused")
        self.schedules = importlib.import_module(f"{PACK}.cache_core.schedules")
        self.predictors = importlib.import_module(f"{PACK}.cache_core.predictors")
        self.method_node = importlib.import_module(f"{PACK}.nodes.method_apply")
        self.spectralcache: Callable[..., Any] = self.core.methods()["spectralcache"]
        self.tiny = _load_file(Path(__file__).with_name("tiny.py"))
        self.families = _load_file(Path(__file__).with_name("families.py"))
        self.pretended = _load_file(Path(__file__).with_name("pretended_gpu.py"))
        self.foreign = _load_file(Path(__file__).with_name("foreign.py"))
        self.words = _load_file(ROOT / "tests" / "packs" / "stand_in" / "words.py")
        self.model = self.load()
        self.size = (12, 16)  # of a latent, where a run says no other: h w

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """While open, `model` is a FLUX of half the size with random weights, sampled at fewer tokens."""
        trained = self.model, self.size
        self.model, self.size = self.tiny.load("flux")[0], (8, 12)
        try:
            yield
        finally:
            self.model, self.size = trained

    def load(self) -> Any:
        """A fresh copy of the small trained FLUX."""
        return self.comfy.sd.load_diffusion_model(str(WEIGHTS / "emoji_flux.safetensors"))

    def load_qwen(self, file: Path = WEIGHTS / "emoji_qwen.safetensors") -> Any:
        """The small Qwen-Image, or another file of its kind, as the tests' own pack loads it: latents b c 1 h w."""
        loader = _load_file(ROOT / "tests" / "packs" / "stand_in" / "trained_qwen.py")
        return loader.load(file)

    def recorder(self, model: str, steps: int) -> Any:
        """A recorder for a session that a test drives itself."""
        trace = importlib.import_module(f"{PACK}.cache_core.trace")
        return trace.Recorder("test", {}, model, "model", steps)

    def session(self, rules: Any, steps: int = 8) -> Any:
        """A session that a test drives itself."""
        module = importlib.import_module(f"{PACK}.cache_core.session")
        schedule = self.types.Schedule(tuple(1 - i / steps for i in range(steps + 1)), module.flow_noise)
        rule = self.types.Rule((self.types.TRUNK,), self.types.Signal(), self.gates.Never(), self.predictors.Hold())
        method = self.types.Method("test", tuple(rules) or (rule,))
        return module.Session(method, schedule, self.recorder("test", steps))

    def lane(self, name: str) -> Any:
        """A lane key."""
        return importlib.import_module(f"{PACK}.cache_core.track").LaneKey(name)

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

    @property
    def blocks(self) -> int:
        """How many blocks an evaluation of one call runs."""
        return len(self.diffusion_model.double_blocks) + len(self.diffusion_model.single_blocks)

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
        """A clone of `model` (the small FLUX) with SpectralCache Auto on it, by the number unless a word is given."""
        method = self.core.methods()["auto"](**{"quality": "Custom", **params})
        return self.host.attach(model or self.model, method, None)

    def conditioning(self, seed: int, tokens: int = 8) -> list[Any]:
        """Of a caption that the small FLUX knows, so that runs stay where they were trained: b m d = 1 tokens 64."""
        text, pooled = self.words.conditioning(KNOWN[seed % len(KNOWN)], tokens)
        return [[text, {"pooled_output": pooled}]]

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
        size: tuple[int, int] | None = None,
        seed: int = 0,
        denoise: float = 1.0,
        positive: Any = None,
        negative: Any = None,
        latent: torch.Tensor | None = None,
        noise_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One run through the host's own `comfy.sample.sample`: b c h w."""
        empty = torch.zeros(batch, 16, *(size or self.size)) if latent is None else latent
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


@pytest.fixture(scope="module")
def untrained(host: Host) -> Iterator[None]:
    """For modules of tests to which it does not matter what the model paints."""
    with torch.inference_mode(), host.untrained():
        yield


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

    @property
    def halves(self) -> bool:
        """Whether modules are skipped inside blocks that run."""
        return self.site == "attention"

    def never(self, model: Any = None) -> Any:
        """A clone of `model` (the small FLUX) with the method switched off."""
        return self._attached(model, dict(METHODS[self.method].never))

    def refusing(self, model: Any = None) -> Any:
        """A clone of `model` (the small FLUX) on which nothing is skipped."""
        return self._attached(model, self.record)

    def fast(self, model: Any = None) -> Any:
        """A clone of `model` (the small FLUX) on which two of three steps are skipped."""
        return self._attached(model, self.skip)

    def _attached(self, model: Any, params: dict[str, Any]) -> Any:
        return self.host.host.attach(model or self.host.model, self.host.core.methods()[self.method](**params), None)


claims = _load_file(ROOT / "tests" / "claims.py")
CLAIMS = claims.Claims()
METHODS = _load_package("spectralcache_tests_core", ROOT / "cache_core").methods()


def _cases() -> Iterator[Any]:
    """Every method that has a node of its own, with the examples that its file declares, and every variant of it. The
    others run in test_methods.py: all of them here would cost CI an hour.
    """
    for name, published in METHODS.items():
        if not published.own_node:
            continue
        for variant in ({}, *published.variants):
            refusing, skipping = ({**example, **variant} for example in (published.refusing, published.skipping))
            site = published(**skipping).rules[0].places[0].kind
            title = ", ".join([published.title, *(str(value) for value in variant.values())])
            yield pytest.param((name, refusing, skipping, site), id=title)


SPARED = ("test_lanes.py", "test_addons.py")
"""Where half steps are left out: these tests are about lanes and what comes with them, which are the same for every
site inside a model call, and a method more costs minutes here. Of each test of the invariants they run one case; what
is special to half steps is in test_modules.
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seen: set[object] = set()

    def spared(item: pytest.Item) -> bool:
        case, name = getattr(item, "callspec", None), getattr(item, "originalname", item.name)
        chosen = case.params.get("caching") if case is not None else None
        if chosen is None or chosen[-1] != "attention":
            return False
        kind = (name, case.params.get("gate"))
        again = kind in seen
        seen.add(kind)
        return again or item.path.name in SPARED

    left_out = [item for item in items if spared(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=_cases())
def caching(request: pytest.FixtureRequest, host: Host) -> Caching:
    """Every method with its own node in turn, for what has to hold whatever the method is."""
    return Caching(host, *request.param)


def _further(published: Any) -> bool:
    kind = published().rules[0].places[0].kind
    return not published.own_node and kind not in ("branch", "unet")  # these run in test_branch.py and test_unet.py


@pytest.fixture(params=[name for name, method in METHODS.items() if _further(method)])
def further(request: pytest.FixtureRequest) -> str:
    """Every method without a node of its own in turn, by name."""
    return str(request.param)


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The demo's graph builders."""
    return _load_file(ROOT / "bench" / "host" / "graphs.py")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One headless ComfyUI with the pack and the stand-ins, for every test that goes through its API."""
    module = _load_file(ROOT / "bench" / "host" / "server.py")
    base = module.base_directory(tmp_path_factory.mktemp("comfyui"))
    with module.Server(base) as running:
        yield running
