"""What half a step costs, against what its multiplications say: attention, the MLP, or both reused, in one run.

FLUX's architecture with random weights on the CPU, 1024 image tokens, at a moderate width and at FLUX.1's own. Each
step that reuses something lies between two full ones, and is compared with these alone, so that a machine that gets
slower or faster cancels; multiplications are those that torch counts (`FlopCounterMode`) in a round of a second run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.host.provision import say
from bench.lab import fill
from bench.lab.reading import Row
from bench.lab.sizes import Size, build, conditioning, moderate
from bench.lab.table import Record, document, fixed, markdown, write_csv
from cache_core.predictors import Hold
from cache_core.schedules import Listed
from cache_core.types import ATTENTION, MLP, Method, Place, Rule, Schedule, Signal

HIDDEN, DOUBLE, SINGLE, SIDE = (1536, 3072), 1, 2, 64
ROUNDS = 3
STATES: dict[str, tuple[Place, ...]] = {
    "attention reused": (ATTENTION,), "the MLP reused": (MLP,), "both reused": (ATTENTION, MLP),
}  # fmt: skip
WITHIN = 0.1
"""Half a step may be off its multiplications by so much."""


def steps_of(place: Place, rounds: int) -> frozenset[int]:
    """The steps that reuse this module: every second one belongs to the next state in turn, between full ones."""
    states = [reused for _ in range(rounds) for reused in STATES.values()]
    return frozenset(2 * i + 2 for i, reused in enumerate(states) if place in reused)


def states(rounds: int) -> Method:
    """The table as a method."""
    rules = []
    for place in (ATTENTION, MLP):
        found = steps_of(place, rounds)

        def table(schedule: Schedule, found: frozenset[int] = found) -> frozenset[int]:
            return found

        rules.append(Rule((place,), Signal(), Listed(table), Hold(), "absolute"))
    return Method("states", tuple(rules))


def shares(figures: Sequence[float], rounds: int) -> dict[str, list[float]]:
    """Each evaluation that reuses something over the mean of its two neighbours, by state."""
    found: dict[str, list[float]] = {name: [] for name in STATES}
    for i, name in enumerate([name for _ in range(rounds) for name in STATES]):
        here = 2 * i + 2
        found[name].append(2 * figures[here] / (figures[here - 1] + figures[here + 1]))
    return found


def records(size: Size, rounds: int) -> Iterator[Record]:
    """A line a state."""
    import torch

    from bench.lab import Lab

    lab = Lab()
    plain = build(size, lab.device)
    model = lab.attach(plain, states(rounds))
    noise = torch.randn(size.latent, generator=torch.Generator().manual_seed(0))
    sample = functools.partial(
        lab.sample, noise=noise, positive=conditioning(size, 1), negative=conditioning(size, 2), cfg=1.0
    )
    timed = sample(model, steps=2 * rounds * len(STATES) + 2)
    flops = multiplied(model, functools.partial(sample, steps=2 * len(STATES) + 2))
    alone = multiplied(plain, functools.partial(sample, steps=2))[0]
    assert timed.trace is not None
    work = shares([e["work"] for e in timed.trace["evaluations"]], rounds)
    seconds, says = shares(timed.seconds, rounds), shares(flops, 1)
    for name in STATES:
        yield {
            "state": name,
            "work": statistics.median(work[name]),
            "flops": statistics.median(says[name]),
            "seconds": statistics.median(seconds[name]),
            "least": min(seconds[name]),
            "most": max(seconds[name]),
            "full": statistics.median(timed.seconds[1::2]),
            "kept": flops[1] / alone,
            "tokens": size.tokens,
            "model": size.name,
        }


def multiplied(model: Any, sample: Callable[[Any], Any]) -> list[int]:
    """Of each evaluation of a run, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter, marks = FlopCounterMode(display=False), [0]

    def mark(args: dict[str, Any]) -> Any:
        marks.append(counter.get_total_flops())
        return args["denoised"]

    counted = model.clone()
    counted.set_model_sampler_post_cfg_function(mark)
    with counter:
        sample(counted)
    return [after - before for before, after in itertools.pairwise(marks)]


def report(rows: Sequence[Row], about: str) -> str:
    """docs/cost.md."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        parts += _part([row for row in rows if row["model"] == model])
    return document(
        "# What half a step costs",
        f"{rows[0]['tokens']} image tokens. Each figure is the median of the shares of one run, against the full steps "
        "before and behind. The trace counts attention and MLP modules alone, so that a step that reuses both counts "
        "as nothing. What multiplications leave out is mostly attention's softmax over all pairs of tokens, which "
        "moves memory instead: it grows with the width, the linear layers with its square, so that a narrow model "
        "shows more of it than FLUX.1 does.",
        *parts,
        about,
    )


def _part(rows: Sequence[Row]) -> list[str]:
    """One model's section."""
    body = []
    for row in rows:
        says, took = float(row["flops"]), float(row["seconds"])
        spread = f"{fixed(float(row['least']), 3)} to {fixed(float(row['most']), 3)}"
        over = fixed(100 * (took / says - 1), 1, sign=True) if row["state"] != "both reused" else ""
        body.append([row["state"], fixed(float(row["work"]), 3), fixed(says, 3), fixed(took, 3), spread, over])
    heading = ["in shares of a full step", "the trace says", "multiplications", "seconds", "from to", "over, %"]
    halves = [row for row in rows if row["state"] != "both reused"]
    met = all(abs(float(row["seconds"]) / float(row["flops"]) - 1) <= WITHIN for row in halves)
    return [
        f"## {rows[0]['model']}",
        f"A full step takes {float(rows[0]['full']):.2f} s, and multiplies {100 * (float(rows[0]['kept']) - 1):.1f} % "
        "more than without the node, to tell apart the two terms of layers that hold both.",
        markdown(heading, body),
        f"Half a step costs what its multiplications say within {WITHIN:.0%}: {'yes' if met else 'no'}.",
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, help="widths (default: %(default)s)")
    parser.add_argument("--side", type=int, default=SIDE, help="the latent's height and width (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of every state (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="make no run: the report from the CSV as it is")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: docs/")


def run(options: argparse.Namespace) -> int:
    def make(table: Path) -> str:
        import torch

        from bench.lab import Lab

        made: list[Record] = []
        with torch.inference_mode():
            for hidden in options.hidden:
                size = moderate(hidden, DOUBLE, SINGLE, options.side)
                say(f"{size.name}, {2 * options.rounds * len(STATES) + 2} steps")
                made += records(size, options.rounds)
                write_csv(table, made)
            return fill.origin(Lab().about(), ())

    return fill.written(options, "cost", make, report)
