"""docs/methods.md and the help page of Cache Method, from what each method's file states.

Written by `python dev.py bench methods`. tests/core/test_methods.py holds both against the files, so that a new
method cannot be forgotten here.
"""

from __future__ import annotations

import argparse
import importlib
import re

from bench import ROOT
from cache_core import methods
from cache_core.parameters import Parameter, Published

TABLE = ROOT / "docs" / "methods.md"
HELP = ROOT / "web" / "docs" / "SpectralCacheMethodApply.md"
INTRODUCTION = """# Cache Method

Speeds up sampling with one of the published caching methods, each with its own settings. Choose the **method**, and its
inputs appear below.

Put the node between the model loader and the sampler. The model that came in is not changed: remove or bypass the node,
and the picture is exactly the original again. Connect Cache Stats to see which steps were skipped, and why the others
were not.

## When to use it

- To compare methods fairly: the same engine, the same seed, one input changed.
- When you know a method and its settings from elsewhere.
- Otherwise take **SpectralCache Auto**: one dial, and it tells how far it can be trusted. The methods with nodes of
  their own are here too.

A method that needs blocks works on FLUX.1 and Qwen-Image; on another model it skips nothing, and Cache Stats says so.

## Inputs

| Input | What it does |
|---|---|
| **model** | The model to speed up. |
| **method** | Which method. Its inputs are below. |
| **profile** | What a calibration learned of the model. No method of this node uses one yet. |

An older ComfyUI shows no inputs that depend on the method. There **parameters** takes them as JSON, such as
`{"threshold": 0.4}`; what is not named keeps its default.

## Methods
"""
ENDING = """
## What it costs

A method holds as many results as the table in docs/methods.md of the repository says, for each of the positive and the
negative prompt; all of it is freed after the run.

**It can lose.** Every method here can be further from the full picture than the same number of plain steps. Compare:
fix the seed, set the first input to its off value for the original, then once more off and with only as many **steps**
as were computed before.
"""


def facts(name: str, published: Published) -> tuple[str, str, str, str]:
    """Source, rule in one line, what it needs, and what it holds for each conditioning."""
    document = importlib.import_module(f"cache_core.methods.{name}").__doc__ or ""
    opening = document.strip().partition("\n\n")[0].replace("\n", " ")
    lead, _, rule = opening.partition(": ")
    source = ", ".join(re.findall(r"arXiv \d{4}\.\d{5}", document)[:2])
    source = f"this pack, after {source}" if "our own" in document else source
    source = source or "; ".join(re.findall(r"\((.*)\)", lead)) or "this pack"
    rules = published().rules
    kinds = {place.kind for each in rules for place in each.places}
    needs = "blocks (FLUX.1, Qwen-Image)" if kinds == {"trunk"} else "any model"
    size = "model outputs" if rules[0].places[0].kind != "trunk" else "trunk features"
    return source, rule[:1].upper() + rule[1:], needs, f"{rules[0].predictor.depth} {size}"


def table() -> str:
    lines = [
        "# The methods",
        "",
        "Written by `python dev.py bench methods` from the methods' own files. Figures of all of them stand in "
        "[quality.md](quality.md), once the bench has measured them. Held: for each conditioning, beside what the "
        "signal compares with.",
        "",
        "| method | from | rule | needs | holds | when to use it |",
        "|---|---|---|---|---|---|",
    ]
    for name, published in methods().items():
        source, rule, needs, held = facts(name, published)
        lines.append(f"| {published.title} | {source} | {rule} | {needs} | {held} | {published.advice} |")
    return "\n".join([*lines, ""])


def page() -> str:
    parts = [INTRODUCTION]
    for name, published in methods().items():
        source, rule, needs, _ = facts(name, published)
        parts += [f"### {name}", "", f"{published.title} ({source}). {rule} Needs: {needs}. {published.advice}", ""]
        if published.own_node:
            parts += ["It has a node of its own, whose help tells its inputs.", ""]
            continue
        parts += ["| Input | What it does |", "|---|---|", *map(_row, published.parameters), ""]
    return "\n".join(parts).rstrip("\n") + "\n" + ENDING


def _row(parameter: Parameter) -> str:
    default = parameter.default
    shown = f"{default:g}" if isinstance(default, float) else "off" if default is False else str(default)
    return f"| **{parameter.name}** | {parameter.tooltip} Default {shown}. |"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None: there is nothing to choose."""


def run(_options: argparse.Namespace) -> int:
    TABLE.write_text(table(), encoding="utf-8")
    HELP.write_text(page(), encoding="utf-8")
    return 0
