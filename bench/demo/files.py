"""The demo's files: contact sheets, the tables in Markdown, and as JSON every figure and where it comes from."""

from __future__ import annotations

import json
import math
import os
import platform
import runpy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.demo.sheet import sheet
from bench.demo.table import Fewer, Result, Row, as_markdown, legend, title
from bench.host.graphs import APPLY, defaults
from bench.host.machine import processor
from bench.host.server import Server


def write_sheets(folder: Path, results: Sequence[Result], rows: Sequence[Row], steps: int) -> list[Path]:
    """One contact sheet per guidance."""
    paths = []
    for table in by_cfg(rows):
        cfg = table[0].cfg
        heading = f"SpectralCache on the stand-in FLUX: {title(table, steps)}"
        paths.append(folder / sheet_name(cfg))
        sheet([result for result in results if result.picture.cfg == cfg], table, heading).save(paths[-1])
    return paths


def write_markdown(path: Path, rows: Sequence[Row], steps: int, about: Mapping[str, Any], words: Iterable[str]) -> None:
    """The tables with their contact sheets, and `words` below them."""
    where = f"{about['machine']['processor']} ({about['machine']['device']}), ComfyUI {about['versions']['ComfyUI']}."
    parts = ["# SpectralCache demo", f"On the small stand-in model of this repository; FLUX.1 itself differs. {where}"]
    for table in by_cfg(rows):
        parts += [f"## {title(table, steps)}", as_markdown(table), f"![]({sheet_name(table[0].cfg)})"]
    path.write_text("\n\n".join([*parts, legend(steps), *words]) + "\n", encoding="utf-8")


def by_cfg(rows: Sequence[Row]) -> list[list[Row]]:
    """The tables: the rows of one guidance each."""
    return [[row for row in rows if row.cfg == cfg] for cfg in dict.fromkeys(row.cfg for row in rows)]


def sheet_name(cfg: float) -> str:
    return f"contact-sheet-cfg{cfg:g}.png"


def surroundings(server: Server) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": "CPU" if server.cpu else torch.cuda.get_device_name(),
            "system": platform.platform(),
        },
        "versions": {
            "ComfyUI": runpy.run_path(str(server.comfyui / "comfyui_version.py"))["__version__"],
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def as_json(results: Sequence[Result], rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Everything but the pixels. Figures that are not finite (PSNR of identical pictures) become null."""
    tree = {
        "version": 1,
        **about,
        "rows": [{**asdict(row), "difference": asdict(row.difference) if row.difference else None} for row in rows],
        "pictures": [
            {
                "picture": asdict(result.picture),
                "variant": result.variant.name,
                "settings": {**defaults(APPLY), **result.variant.settings},
                "computed": result.computed,
                "skipped": result.trace["skipped"],
                "seconds": result.seconds,
                "speedup": result.trace["speedup"]["wall"],
                "quality": asdict(result.quality),
                "fewer": fewer_as_json(result.fewer) if result.fewer else None,
                "trace": result.trace,
            }
            for result in results
        ],
    }
    return json.dumps(finite(tree), indent=1, allow_nan=False) + "\n"


def fewer_as_json(fewer: Fewer) -> dict[str, Any]:
    return {"steps": fewer.steps, "quality": asdict(fewer.quality)}


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
