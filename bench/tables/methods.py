"""docs/methods.md and the help pages of Cache Method, from what each method's file states and what was measured.

Written by `python dev.py bench methods`. tests/core/test_methods.py holds them against the files, so that a new
method cannot be forgotten here. In Chinese and Japanese only what lies between two markers is written: the sentences
come from `locales/<language>/methods.json` and `nodeDefs.json`, and what is not translated yet stands in English.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import torch

from bench import ROOT
from bench.lab.measured import BUDGETS, fewer, of, widest
from bench.lab.reading import title
from cache_core import methods
from cache_core.history import History
from cache_core.parameters import Parameter, Published
from cache_core.types import Feature, Predictor, Step

TABLE = ROOT / "docs" / "methods.md"
NODE = "SpectralCacheMethodApply"
HELP = ROOT / "web" / "docs" / f"{NODE}.md"
TRANSLATED = {
    "zh": ("方法", "它做什么，何时用", "输入（默认值）", "输入", "作用"),
    "ja": ("手法", "何をするか、いつ使うか", "入力（既定）", "入力", "はたらき"),
}
"""Each language's heads of the two tables."""
MARKERS = ("<!-- methods -->", "<!-- end of methods -->")
INTRODUCTION = """# Cache Method

Speeds up sampling with one of the published caching methods, each with its own settings. Choose the **method**, and its
inputs appear below.

Put the node between the model loader and the sampler. The model that came in is not changed: remove or bypass the node,
and the picture is exactly the original again. Connect Cache Stats to see which steps were skipped, and why the others
were not.

![Cache Method after a run: TeaCache computed some steps and skipped the others](images/method.png)

The strip on the node has one cell for each time the model is asked: tall and blue is *computed*, low and hollow
*skipped*; a white head marks the first and the last step. Point at a cell to see more. The last run stays there.

## When to use it

- To compare methods fairly: the same engine, the same seed, one input changed.
- When you know a method and its settings from elsewhere.
- Otherwise take **SpectralCache Auto**: one dial, and it tells how far it can be trusted. The methods with nodes of
  their own are here too.

A method that needs blocks works on FLUX, Chroma, Qwen-Image, Wan and HunyuanVideo; on others it skips nothing, and
Cache Stats says so.

## Inputs

| Input | What it does |
|---|---|
| **model** | The model to speed up. |
| **method** | Which method. Its inputs are below. |
| **profile** | What *Cache Calibrate* learned of this model: its tooltip names the methods that follow it. |
| **gain** | Takes back what the method, at these settings, was learned to do to a run: see below. Off by default. |

An older ComfyUI shows no inputs that depend on the method. There **parameters** takes them as JSON, such as
`{"threshold": 0.4}`; what is not named keeps its default.

**gain** noise scales the predicted noise (FEB-Cache's gain), channels draws each channel of the latent to or from its
mean (Q&C's), once something was skipped. Either needs a **profile** that *Cache Calibrate* made with **record** gain
from a model with the same method and settings on it; a run that it does not fit goes without, and Cache Stats says so.
It is no improvement by itself. On the small FLUX (CFG 1, 3 pictures; docs/gains.md of the repository) noise changed
seven methods by -0.6 to -0.1 dB, none for the better and five for the worse, and channels by -5.1 to -1.4 dB, six for
the worse: leave both off unless your own comparison says otherwise.

## Methods
"""
ENDING = """
## Recommended settings

| Model | Sampler, steps | Settings |
|---|---|---|
| FLUX.1-dev | euler or dpmpp_2m, 28 | teacache 0.4, first_block_cache 0.12, taylorseer interval 3 |
| FLUX.1 Kontext | euler, 28 | teacache 0.25, first_block_cache 0.08 |
| Qwen-Image and its edit models | euler, 30 to 50 | magcache 0.1, taylorseer interval 2 or 3 |
| Any other model | euler, 20 to 50 | ab_cache interval 2, easycache 0.1 |

These are the authors' own values, or careful ones. How the methods do at the same number of computed steps, on the
small model of the bench, stands in docs/quality.md of the repository.

## Nothing was skipped. Why?

| What the node or Cache Stats says | What to do |
|---|---|
| nothing skipped: off | The first input has its off value: threshold 0, interval 1. |
| nothing skipped: threshold | The change reached the limit at each step: raise **threshold**. |
| nothing skipped: warm-up | **warmup_steps** covers the whole run. Fewer of them, or more steps. |
| nothing skipped: outside the window | **start_percent** and **end_percent** leave nothing between them. |
| nothing skipped: blocks not reached | The method needs blocks, which this model has not described: take another. |
| stood down: ... | The sentence says why: 4 steps or fewer, dpm_fast or dpm_adaptive, another cache on the model. |

## The picture changed too much. What now?

1. Go back one notch: a lower **threshold**, a smaller **interval**, **max_consecutive** 2.
2. Where the layout changed, more **warmup_steps** or **start_percent** 0.2; where texture was lost, **end_percent**
   0.9.
3. A forecast that overshoots: **order** 1, or a method that holds.
4. Look at the difference with *Cache Compare*, and try *SpectralCache Auto*.

## What it costs

A method holds as many results as the table in docs/methods.md of the repository says, for each of the positive and the
negative prompt; all of it is freed after the run.

**It can lose.** Every method here can be further from the full picture than the same number of plain steps. Compare:
fix the seed, set the first input to its off value for the original, then once more off and with only as many **steps**
as were computed before.
"""


SIZES = {
    "trunk": "trunk features",
    "attention": "outputs of each block's modules",
    "mlp": "outputs of each block's modules",
    "blocks": "vectors a stream of every block",
}


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
    if "branch" in kinds:
        needs = "CFG above 1"
    elif "unet" in kinds:
        needs = "a U-Net (SD1.5, SDXL)"
    else:
        inside = kinds <= {"trunk", "attention", "mlp", "blocks"}
        needs = "blocks (FLUX, Chroma, Qwen-Image, Wan, HunyuanVideo)" if inside else "any model"
    kind = rules[0].places[0].kind
    alone = kind == "blocks" and rules[0].feature != "affine"
    size = "features of every block" if alone else SIZES.get(kind, "model outputs")
    return source, rule[:1].upper() + rule[1:], needs, f"{held(rules[0].predictor)} {size}"


def held(predictor: Predictor) -> int:
    """The most tensors of a feature's size that a history keeps: features, and what they taught."""
    history, most = History(predictor.depth), 0
    steps = predictor.depth + 3
    for i in range(steps):
        value = torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(i))
        new = Feature(Step(i, steps, 1 - i / steps, width=1 / steps, log_noise=-float(i)), value)
        learned, _ = predictor.learn(history.entries, new, (4, 4))
        history = history.push(replace(new, learned=learned))
        kept = [tensor for entry in history.entries for tensor in (entry.value, *entry.learned.values())]
        most = max(most, sum(tensor.numel() >= value.numel() for tensor in kept))
    return most


def table() -> str:
    known = widest(TABLE.parent)
    first = known[0]
    budgets = [f"at {budget:g}x" for budget in BUDGETS]
    lines = [
        "# The methods",
        "",
        "Written by `python dev.py bench methods` from the methods' own files and from the tables' rows. Held: for "
        "each conditioning, beside what the signal compares with; in brackets the most that was held on the model that "
        "was measured. At 2x and 3x: PSNR in dB against the full run with a half and a third of the steps computed, "
        f"from [{first.table}.md]({first.table}.md) ({title(first.rows)}, the small FLUX), read between a method's "
        "settings and blank where none brackets it. Where these are below fewer steps, simply using fewer steps is "
        "the better choice on that model.",
        "",
        f"| method | from | rule | needs | holds | {' | '.join(budgets)} | when to use it, and what was measured |",
        f"|---|---|---|---|---|{'---:|' * len(budgets)}---|",
        f"| fewer steps | | no cache | any model | | {' | '.join(map(_decibels, fewer(first)))} | The control. |",
    ]
    for name, published in methods().items():
        source, rule, needs, held = facts(name, published)
        found = of(name, known)
        figures, says = [""] * len(budgets), "Not measured yet."
        if found:
            figures = [_decibels(value) for value in found.psnr] if found.group is first else figures
            says = f"[Measured]({found.group.table}.md): {found.standing}"
            held += "" if math.isnan(found.megabytes) else f" ({found.megabytes:.2g} MB)"
        cells = [published.title, source, rule, needs, held, *figures, f"{published.advice} {says}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


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
    return f"| **{parameter.name}** | {parameter.tooltip} Default {_default(parameter)}. |"


def _default(parameter: Parameter) -> str:
    default = parameter.default
    return f"{default:g}" if isinstance(default, float) else "off" if default is False else str(default) or "empty"


def help_in(language: str) -> Path:
    """Where the page looks a node's help up in a language that is not English."""
    return ROOT / "web" / "docs" / NODE / f"{language}.md"


def translated(language: str, written: str) -> str:
    """The help page in another language, with its tables anew."""
    before, _, rest = written.partition(MARKERS[0])
    return f"{before}{MARKERS[0]}\n{_tables(language)}\n{MARKERS[1]}{rest.partition(MARKERS[1])[2]}"


def _tables(language: str) -> str:
    locale = ROOT / "locales" / language
    sentences = json.loads((locale / "methods.json").read_text("utf-8"))
    inputs = json.loads((locale / "nodeDefs.json").read_text("utf-8"))[NODE]["inputs"]
    method, purpose, defaults, name_of, effect = TRANSLATED[language]
    lines = [f"| {method} | {purpose} | {defaults} |", "|---|---|---|"]
    stated: dict[str, Parameter] = {}
    for name, published in methods().items():
        source, rule, _, _ = facts(name, published)
        shown = "" if published.own_node else ", ".join(f"{p.name} {_default(p)}" for p in published.parameters)
        lines.append(f"| **{name}** | {sentences.get(name, f'{rule} {published.advice}')}（{source}） | {shown} |")
        stated |= {} if published.own_node else {p.name: p for p in published.parameters}
    lines += ["", f"| {name_of} | {effect} |", "|---|---|"]
    for name, parameter in sorted(stated.items()):
        known = inputs.get(f"method_{name}")
        lines.append(f"| **{name}** | {known['tooltip'] if known else parameter.tooltip} |")
    return "\n".join(lines)


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None: there is nothing to choose."""


def run(_options: argparse.Namespace) -> int:
    TABLE.write_text(table(), encoding="utf-8")
    HELP.write_text(page(), encoding="utf-8")
    for language in TRANSLATED:
        file = help_in(language)
        file.write_text(translated(language, file.read_text("utf-8")), encoding="utf-8")
    return 0
