"""Many runs in one process, with changing models, sizes, methods and samplers, some of them interrupted: memory, hooks,
threads and open files stay as they are.

50 runs, or as many as SPECTRALCACHE_SOAK says; with 1000 and more the figures are written to docs/soak.md.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

RUNS = int(os.environ.get("SPECTRALCACHE_SOAK", "50"))
PAGE = Path(__file__).resolve().parents[2] / "docs" / "soak.md"
STEPS = 6
FAMILIES = ("FLUX.1", "FLUX.2", "SD 3.5", "Wan 2.1", "Lumina 2", "SD 1.5", "Stable Audio")
SIZED = ("FLUX.1", "SD 3.5", "Lumina 2", "SD 1.5")
"""Families whose latents change their size from run to run."""
SAMPLERS = ("euler", "heun", "dpmpp_2m", "euler_ancestral")
GROWTH_MB = 40
"""What a process may grow by between the first fifth of the runs and the end: its allocator keeps what it had."""


class Census:
    """What is alive in this process."""

    def __init__(self, host: Any, models: list[Any]) -> None:
        gc.collect()
        kinds = [type(thing) for thing in gc.get_objects()]
        self.tensors = kinds.count(torch.Tensor)
        self.sessions = kinds.count(host.core.Session)
        self.hooks = sum(
            len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part))
            for model in models
            for part in model.model.diffusion_model.modules()
        )
        self.wrappers = sum(
            len(found) for model in models for kind in model.wrappers.values() for found in kind.values()
        )
        self.threads = threading.active_count()
        self.files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        self.megabytes = _resident()

    def row(self, runs: int) -> str:
        figures = (self.tensors, self.sessions, self.hooks, self.wrappers, self.threads, self.files)
        return f"| {runs} | {' | '.join(map(str, figures))} | {self.megabytes:.0f} |"


def _resident() -> float:
    """Resident memory of this process in MB; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.claim("Complaints about caching packs", "memory, hooks, threads and files stay flat over many runs")
def test_many_runs_of_everything(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(1)
    families = {name: host.families.FAMILIES[name] for name in FAMILIES}
    models = {name: family.patcher() for name, family in families.items()}
    methods = host.core.methods()
    interrupt = host.comfy.model_management.InterruptProcessingException
    states: dict[str, int] = {}
    counts = []
    began = time.perf_counter()

    def run() -> None:
        name, method = dice.choice(FAMILIES), dice.choice(sorted(methods))
        family, published = families[name], methods[method]
        latent = family.empty()
        if name in SIZED:
            latent = latent.new_zeros(*latent.shape[:2], *(2 * dice.randint(2, 6) for _ in range(2)))
        model = host.host.attach(models[name], published(**published.skipping), None)
        stop = dice.randint(2, STEPS) if dice.random() < 0.1 else 0

        def callback(step: int, *_: Any) -> None:
            if step + 1 == stop:
                raise interrupt

        noise = host.comfy.sample.prepare_noise(latent, dice.randint(0, 1000))
        sides = (family.conditioning(1), family.conditioning(2))
        sampler, cfg = dice.choice(SAMPLERS), dice.choice((1.0, 3.0))
        try:
            host.comfy.sample.sample(
                model, noise, STEPS, cfg, sampler, "simple", *sides, latent, callback=callback, disable_pbar=True
            )
        except interrupt:
            assert stop
        state = host.trace()["state"]
        states[state] = states.get(state, 0) + 1

    warm = RUNS // 5
    for done in range(RUNS):
        if done in (warm, RUNS // 2):
            counts.append((done, Census(host, list(models.values()))))
        run()
    counts.append((RUNS, Census(host, list(models.values()))))
    first, last = counts[0][1], counts[-1][1]
    print(*(census.row(runs) for runs, census in counts), states, sep="\n")
    assert set(states) <= {"done", "interrupted", "stood down"} and states["done"] > RUNS // 2
    assert last.tensors <= first.tensors + 4
    alike = ("sessions", "hooks", "wrappers", "threads", "files")
    assert [getattr(last, name) for name in alike] == [getattr(first, name) for name in alike]
    assert last.megabytes <= first.megabytes + GROWTH_MB
    if RUNS >= 1000:
        PAGE.write_text(page(counts, states, time.perf_counter() - began), encoding="utf-8")


def page(counts: list[tuple[int, Census]], states: dict[str, int], seconds: float) -> str:
    """docs/soak.md"""
    version = Path(os.environ["COMFYUI_PATH"], "comfyui_version.py").read_text("utf-8").split('"')[-2]
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    where = f"ComfyUI {version} ({platform.machine()}, CPU, torch {torch.__version__}), {seconds / 60:.0f} minutes"
    drawn = f"a model out of {len(FAMILIES)} families ({', '.join(FAMILIES)}), a size, one of all methods, a sampler"
    columns = ("runs", "tensors", "sessions", "hooks and forwards", "wrappers", "threads", "open files", "MB")
    return "\n".join(
        [
            "# Many runs in one process",
            "",
            f"{counts[-1][0]} runs on {where}: {told}. Drawn at random for each: {drawn} ({', '.join(SAMPLERS)}), CFG "
            "1 or 3; every tenth is interrupted. What is alive after so many runs; only the process's allocator may "
            f"grow, by less than {GROWTH_MB} MB. To run it again: "
            "`SPECTRALCACHE_SOAK=1000 python dev.py test tests/host/test_soak.py`.",
            "",
            f"| {' | '.join(columns)} |",
            f"|{'---:|' * len(columns)}",
            *(census.row(runs) for runs, census in counts),
            "",
        ]
    )
