"""torch.compile with its inductor backend, through the host's own TorchCompileModel node: our hooks in compiled code.

To compile takes a C++ compiler and one to three minutes, so it has to be asked for:
`SPECTRALCACHE_INDUCTOR=1 python dev.py test tests/host/test_inductor.py`. What every run of the host tests does is to
compile with the eager backend (test_addons.py), which traces the same graphs.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 12
METHODS = {
    "auto": {"quality": "Custom", "speedup": 2.0},
    "spectralcache": {"threshold": 10.0, "max_consecutive": 2},
    "feb_cache": {},
}
ASKED = "SPECTRALCACHE_INDUCTOR"


@pytest.fixture
def compiled_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the compiler puts what it makes; skips where it makes nothing."""
    import torch._dynamo

    if not os.environ.get(ASKED):
        pytest.skip(f"to compile takes minutes; {ASKED}=1 runs this")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(4))
    except Exception as error:  # whatever a machine without one raises
        pytest.skip(f"no C++ compiler works here: {str(error).splitlines()[0]}")
    return tmp_path


@pytest.mark.claim("Precision and compilation", "TorchCompileModel with the inductor backend, before or after our node")
def test_compiled_code_is_skipped_as_eager_code_is(host: Any, compiled_files: Path) -> None:
    """The same decisions, the same picture but for rounding, and nothing is compiled anew in a second run."""
    from torch._dynamo.utils import counters

    compile_node = importlib.import_module("comfy_extras.nodes_torch_compile").TorchCompileModel
    small, *_ = host.tiny.load("flux of two blocks")

    def compiled(model: Any) -> Any:
        return compile_node.execute(model, "inductor").args[0]

    def attached(model: Any, name: str) -> Any:
        return host.host.attach(model, host.core.methods()[name](**METHODS[name]), None)

    def sampled(model: Any) -> tuple[torch.Tensor, list[str]]:
        out = host.sample(model, steps=STEPS)
        return out, [e["action"] for e in host.trace()["evaluations"]]

    plain = host.sample(small, steps=STEPS)
    close = {"atol": 1e-4 * float(plain.abs().max())}
    before = set(compiled_files.rglob("*.so"))
    assert torch.allclose(host.sample(compiled(small), steps=STEPS), plain, **close)
    assert set(compiled_files.rglob("*.so")) > before
    for name in METHODS:
        eager, actions = sampled(attached(small, name))
        if name == "feb_cache":  # it cannot tell attention and MLP apart in there, and says so
            eager, actions = plain, ["computed"] * STEPS
        for model in (compiled(attached(small, name)), attached(compiled(small), name)):
            out, taken = sampled(model)
            assert taken == actions and torch.allclose(out, eager, **close), name
            graphs = counters["stats"]["unique_graphs"]
            assert torch.equal(sampled(model)[0], out)
            assert counters["stats"]["unique_graphs"] == graphs > 0
        assert ("skipped" in actions) == (name != "feb_cache")
    torch._dynamo.reset()
