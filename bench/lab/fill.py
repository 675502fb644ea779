"""What the commands share that walk a grid of runs of a small model: options, the runs, table and page from them."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import ROOT
from bench.host.provision import say
from bench.lab.arms import EULER, Cached
from bench.lab.grid import Group, complete, of_model, rows, walk
from bench.lab.models import COLUMN, FIRST, MODELS, introduction, named, of
from bench.lab.store import Store, code_version
from bench.lab.table import Record, read_csv, write_csv

if TYPE_CHECKING:
    from bench.lab.lab import Lab
    from bench.lab.painter import Painter
    from bench.lab.studio import Studio

EVERY = 20
"""Seconds between two lines of progress."""
PICTURE = re.compile(r"!\[[^]]*\]\([^)]*\)\n\n")
"""On a page."""
MEASURED = "measured"
"""The column of a CSV whose rows were made at different times: where each is from."""

Opened = Callable[["Lab", int], "Painter"]
"""A model in a lab, at a side."""
Rows = list[dict[str, str]]
Report = Callable[[Rows, str], str]
"""The page from the CSV's rows and the line on where they are from."""


def add_arguments(parser: argparse.ArgumentParser, models: bool = True) -> None:
    """Options that every such command has; `models`: that of a small model can be told which."""
    if models:
        parser.add_argument("--model", choices=MODELS, default=FIRST, help="which small model (default: %(default)s); "
                            "another one's table stands beside the first")  # fmt: skip
    parser.add_argument("--pairs", type=int, metavar="N", help="this many prompt and seed pairs (1 to 24)")
    parser.add_argument("--share", metavar="K/N", help="only make every N-th pair's runs, from K; no report")
    parser.add_argument("--report", action="store_true", help="make no runs: the report from the CSV as it is")
    parser.add_argument("--side", type=int, metavar="N", help="side of the latent, even (default: 24, as trained)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: docs/, for --quick out/bench/ here")


def add_quick(parser: argparse.ArgumentParser, pairs: str = "one pair") -> None:
    """The option of a grid that can be cut short."""
    parser.add_argument("--quick", action="store_true", help=f"{pairs} and a few rows, to see that it works")


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """The option of a grid that takes long, so that it can be filled in several goes."""
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no more runs after so long: the page of the "
                        "pairs that are complete by then; the same command goes on")  # fmt: skip


def add_only(parser: argparse.ArgumentParser) -> None:
    """The option of a grid whose groups can be measured one by one."""
    parser.add_argument("--only", nargs="+", metavar="STEPS CFG SAMPLER", help="measure this group alone (euler unless "
                        "another sampler is named); the CSV's others stay as they are")  # fmt: skip


def only(options: argparse.Namespace, groups: Sequence[Group]) -> list[Group]:
    """The groups that --only asks for; all where it was not given. Ends the program where there is none."""
    if not options.only:
        return list(groups)
    asked = " ".join([*options.only, *([EULER] if len(options.only) == 2 else [])])
    found = [each for each in groups if name_of(each) == asked]
    if not found:
        raise SystemExit(f"--only {asked}: no such group. There are: {'; '.join(map(name_of, groups))}")
    return found


def name_of(group: Group) -> str:
    """What --only calls it."""
    return f"{group.steps} {group.cfg:g} {group.sampler}"


def quick_folder(options: argparse.Namespace) -> Path | None:
    """Where a short grid's files go unless --out says."""
    return Path("out/bench") if options.quick else None


def carry_out(
    options: argparse.Namespace,
    name: str,
    groups: Sequence[Group],
    report: Report,
    folder: Path | None = None,
    also: Callable[[Rows, Path], None] | None = None,
    beside: bool = False,
    opened: Opened | None = None,
    looks: bool = False,
) -> int:
    """One command over a grid: runs, then `name`.csv, then from it alone `name`.md, and what `also` makes of it in the
    folder.

    `folder` is where they go unless --out says. beside: the CSV's other groups stay in it (`joined`). opened: another
    model than the small ones. looks: how the pictures look is measured too.
    """
    model = None if opened else getattr(options, "model", FIRST)
    own = of_model(groups, model) if model else groups
    if groups and not own:
        raise SystemExit(f"bench {name}: {model} takes no guidance of this table (CFG {_guidance(groups)}).")
    start = opened or _studio(getattr(options, "model", FIRST))

    def make(table: Path) -> str:
        minutes = getattr(options, "minutes", None)
        return measure(own, table, options.share, options.side, beside, start, minutes, looks, model)

    return written(options, name, make, report, folder, also, model)


def _guidance(groups: Sequence[Group]) -> str:
    return ", ".join(dict.fromkeys(f"{group.cfg:g}" for group in groups))


def carry_out_records(
    options: argparse.Namespace,
    name: str,
    records: Callable[[Studio], Iterable[Record]],
    methods: Iterable[str],
    report: Report,
    folder: Path | None = None,
    also: Callable[[Rows, Path], None] | None = None,
) -> int:
    """The same for a command that measures in a way of its own. `records`: what it finds, one line of the CSV each;
    `methods`: whose code it depends on.
    """
    model = getattr(options, "model", FIRST)

    def make(table: Path) -> str:
        return keep(records, table, methods, options.side, model)

    return written(options, name, make, report, folder, also, model)


def carry_out_pairs(
    options: argparse.Namespace,
    name: str,
    measure: Callable[[Studio, int, bool], Iterable[Record]],
    pairs: int,
    report: Report,
) -> int:
    """The same for records of Auto that can be cut short. `measure`: with so many pairs, `pairs` unless told, and
    whether short.
    """

    def records(studio: Studio) -> Iterable[Record]:
        return measure(studio, options.pairs or (1 if options.quick else pairs), options.quick)

    return carry_out_records(options, name, records, ["auto"], report, quick_folder(options))


def written(
    options: argparse.Namespace,
    name: str,
    make: Callable[[Path], str],
    report: Report,
    folder: Path | None = None,
    also: Callable[[Rows, Path], None] | None = None,
    model: str | None = None,
) -> int:
    """CSV, and from it alone the page. `make` writes the CSV that it is given and says where its figures are from, or
    nothing if there is no page yet. model: the small one that it is about; None for another. Pictures, which `also`
    makes, are the first model's alone.
    """
    out, name = options.out or folder or ROOT / "docs", named(name, model) if model else name
    table, page = out / f"{name}.csv", out / f"{name}.md"
    about = provenance(page) if options.report else make(table)
    if about:
        found = read_csv(table)
        text = introduced(report(found, about), found) if model else report(found, about)
        beside = model not in (None, FIRST)
        text = PICTURE.sub("", text) if beside else text
        page.write_text(text, encoding="utf-8")
        if also and not beside:
            also(found, out)
        print(text)
    return 0


def introduced(page: str, found: Rows) -> str:
    """The page with a paragraph on the model of its rows below the title."""
    title, rest = page.split("\n\n", 1)
    return f"{title}\n\n{introduction(of(found))}\n\n{rest}"


def _studio(model: str) -> Opened:
    def opened(lab: Lab, side: int) -> Studio:
        from bench.lab import Studio

        return Studio(lab, side, model)

    return opened


def keep(
    records: Callable[[Studio], Iterable[Record]], file: Path, methods: Iterable[str], side: int | None, model: str
) -> str:
    """Writes the CSV as it grows, since some take an hour; returns the line on where the figures are from."""
    import torch

    from bench.lab import Lab, Studio
    from bench.lab.studio import SIDE

    made: list[Record] = []
    with torch.inference_mode():
        studio = Studio(Lab(), side or SIDE, model)
        for record in records(studio):
            made.append({COLUMN: model, **record})
            write_csv(file, made)
    return origin(studio.lab.about(), methods)


def measure(
    groups: Sequence[Group],
    file: Path,
    share: str | None,
    side: int | None,
    beside: bool,
    opened: Opened,
    minutes: float | None,
    looks: bool,
    model: str | None,
) -> str:
    """Makes the runs that the store lacks and writes the CSV; returns the line on where the figures are from, or
    nothing after a share or where time was up before one pair was complete.
    """
    import torch

    from bench.lab import Lab
    from bench.lab.looks import Eye
    from bench.lab.runner import Runner
    from bench.lab.studio import SIDE

    part, parts = (int(number) for number in share.split("/")) if share else (0, 1)
    started = shown = time.monotonic()
    until = started + 60 * minutes if minutes else math.inf
    with torch.inference_mode():
        runner = Runner(opened(Lab(), side or SIDE), Store(), Eye.opened() if looks else None)
        for done, total in walk(groups, runner.outcome, (part, parts)):
            if time.monotonic() - shown > EVERY or done == total:
                shown = time.monotonic()
                say(f"{done} of {total} rows, {runner.made} runs made, {shown - started:.0f} s")
            if done < total and time.monotonic() > until:
                groups = complete(groups, done)
                say(f"time is up; complete pairs: {[len(group.pairs) for group in groups]}")
                break
        if share or not groups:
            return ""
        cached = [arm for group in groups for arm in group.arms if isinstance(arm, Cached)]
        about = origin(runner.studio.lab.about(), {arm.method for arm in cached if arm.method})
        made = [{**({COLUMN: model} if model else {}), **row} for row in rows(groups, runner.outcome)]
        write_csv(file, joined(made, file, about) if beside else made)
    return about


def joined(made: Sequence[Mapping[str, object]], file: Path, about: str) -> list[Mapping[str, object]]:
    """New rows in the place of those of the same steps, guidance and sampler, the file's others before
    them; each new row says where it was measured, since they need not have been made in one go.
    """

    def group_of(row: Mapping[str, object]) -> tuple[object, ...]:
        return int(str(row["steps"])), float(str(row["cfg"])), row["sampler"]

    new = {group_of(row) for row in made}
    kept = [row for row in read_csv(file) if group_of(row) not in new] if file.exists() else []
    columns = dict.fromkeys((key for row in made[:1] for key in row), "")  # a table of before may have fewer
    return [*({**columns, MEASURED: "", **row} for row in kept), *({**row, MEASURED: about} for row in made)]


def origin(about: Mapping[str, str], methods: Iterable[str]) -> str:
    """The line on where figures are from: machine, versions (`Lab.about`), the methods' code, the command."""
    stamp = code_version(methods)[:8]
    return f"{about['machine']}; {about['versions']}; code {stamp}. Regenerate: `{command_line()}`."


def command_line() -> str:
    """The command that makes these figures again; where its files went and how long it took say nothing of them."""
    arguments = sys.argv[1:]
    for name in ("--out", "--minutes"):
        if name in arguments:
            del arguments[arguments.index(name) : arguments.index(name) + 2]
    return " ".join(["python dev.py bench", *arguments])


def provenance(report: Path) -> str:
    """The last paragraph of a report as it is: the CSV does not say where it was measured."""
    return report.read_text("utf-8").strip().rsplit("\n\n", 1)[-1]
