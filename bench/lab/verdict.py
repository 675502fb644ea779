"""What a table shows, in words, from its rows alone: who is closer than fewer steps, and who comes closest."""

from __future__ import annotations

from collections.abc import Sequence

from bench.lab.intervals import at
from bench.lab.presets import FEWER
from bench.lab.reading import BUDGETS, Row, controls, curve, families, sign

EVEN = 0.1
"""Differences in dB that the table's one decimal hardly shows."""


def showing(rows: Sequence[Row]) -> str:
    """The paragraph on one group: how often each family beats the plain sampler, and who leads at each budget."""
    told = [f"{family}: {standing(members)}" for family, members in families(rows).items() if not controls(family)]
    return " ".join([*told, *best(rows)])


def standing(members: Sequence[Row], named: bool = True) -> str:
    """In how many of its settings a family comes closer to the full run than the plain sampler at equal work; the
    settings in which it is further away are named.
    """
    skipping = [row for row in members if int(row["skipping"])]
    better, worse = ([row for row in skipping if sign(row) == s] for s in (1, -1))
    even = len(skipping) - len(better) - len(worse)
    parts = [f"closer to the full run than fewer steps in {len(better)} of {len(skipping)} settings"]
    if worse:
        names = f" ({', '.join(row['name'] for row in worse)})" if named else ""
        parts.append(f"further away in {len(worse)}{names}")
    if even:
        parts.append(f"undecided in {even}")
    return ", ".join(parts) + "."


def best(rows: Sequence[Row]) -> list[str]:
    """At each budget: who comes closest, and how far from both controls."""
    steps = int(rows[0]["steps"])
    sentences = []
    for budget in BUDGETS:
        place = steps / budget
        values = {family: at(curve(members), place) for family, members in families(rows).items()}
        known = {family: value for family, value in values.items() if value is not None}
        ours = {family: value for family, value in known.items() if not controls(family)}
        plain = known.get(FEWER)
        if not ours or plain is None:
            continue
        winner = max(ours, key=lambda family: ours[family])
        relation = "ahead of" if ours[winner] > plain else "BEHIND"
        level = [family for family in ours if family != winner and ours[winner] - ours[family] < EVEN]
        also = f" (level with {', '.join(level)})" if level else ""
        text = f"At {budget:g}x, {winner}{also} is closest of the caches ({ours[winner]:.1f} dB), {relation} fewer "
        text += f"steps ({plain:.1f} dB)"
        dense = {family: value for family, value in known.items() if controls(family) and family != FEWER}
        if dense:
            top = max(dense, key=lambda family: dense[family])
            verdict = "ahead of" if ours[winner] > dense[top] else "BEHIND"
            text += f"; {verdict} {top} without any cache ({dense[top]:.1f} dB)"
        sentences.append(text + ".")
    return sentences
