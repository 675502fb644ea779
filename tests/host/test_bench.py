"""The bench's commands on the real host, at a size of seconds, each in a process of its own as `dev.py bench`
starts it.

What they measure is judged nowhere here: only that every arm runs, computes what its name says, and is written down.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output and store of this module: nothing of an earlier run is reused."""
    return tmp_path_factory.mktemp("bench")


def bench(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "SPECTRALCACHE_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "bench" / "run.py"), *arguments, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


QUALITY = ("quality", "--quick", "--pairs", "1", "--steps", "8")


def test_quality_measures_every_kind_of_row_and_is_resumed(folder: Path) -> None:
    text = bench(folder, *QUALITY)
    rows = {row["name"]: row for row in table(folder / "quality.csv")}
    families = {"fewer steps", "SpectralCache", "SpectralCache Auto", "FreqCa", "EasyCache"}
    assert {row["family"] for row in rows.values()} == families
    assert float(rows["5 steps"]["computed"]) == 5
    freqca = rows["FreqCa N=3"]  # 8 steps: 0, 1, 2, 5 and the last
    assert float(freqca["computed"]) == 5 and 10 < float(freqca["psnr"]) < 100 and int(freqca["cache_bytes"]) > 0
    assert "## 8 steps, CFG 3" in text and (folder / "quality.md").read_text("utf-8") in text
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cache" / "bench").iterdir()}
    bench(folder, *QUALITY)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "cache" / "bench").iterdir()} == before


def test_speed_times_every_arm(folder: Path) -> None:
    bench(folder, "speed", "--hidden", "128", "--double", "1", "--single", "1", "--side", "16", "--rounds", "1")
    rows = {row["figure"]: row for row in table(folder / "speed.csv")}
    assert float(rows["device reads, an evaluation"]["value"]) == 1.0
    assert float(rows["features kept a lane, SpectralCache"]["value"]) == pytest.approx(2.0, rel=0.01)
    assert float(rows["features kept a lane, FreqCa, DCT"]["value"]) == pytest.approx(3.0, rel=0.01)
    assert float(rows["skipped evaluation, SpectralCache"]["value"]) > 0
    idle = rows["gate never, own time an evaluation"]
    assert idle["unit"] == "ms" and abs(float(idle["value"])) < 50
    assert "not FLUX.1 on a GPU" in (folder / "speed.md").read_text("utf-8")
