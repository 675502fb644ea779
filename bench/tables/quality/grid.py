"""What `bench quality` measures: every method's presets, ComfyUI's own caches, the controls."""

from __future__ import annotations

from collections.abc import Iterable

from bench.lab.grid import Group, group
from bench.lab.pairs import COUNT
from bench.lab.presets import NEED_GUIDANCE, control_arms, core_arms, counts, fewer, method_arms

SIDE_PAIRS = 6
QUICK_PAIRS = 4


def grid(
    names: Iterable[str], full: bool = False, quick: bool = False, pairs: int | None = None, steps: int = 28
) -> list[Group]:
    """The default grid; `full` measures every row everywhere, `quick` (of `steps` steps) shows that everything runs."""
    ours = [*method_arms(names), *core_arms()]
    if quick:
        chosen = [arm for arm in ours if arm.quick]
        controls = (fewer(n) for n in counts(steps)[::3])
        return [group(steps, 3.0, pairs or QUICK_PAIRS, [*controls, *chosen])]
    groups = [group(28, 3.0, pairs or COUNT, [*control_arms(28), *ours])]
    for count, cfg in ((28, 1.0), (20, 3.0), (50, 3.0)):
        able = [arm for arm in ours if cfg > 1 or getattr(arm, "method", "") not in NEED_GUIDANCE]
        if full:
            groups.append(group(count, cfg, pairs or COUNT, [*control_arms(count), *able]))
        else:
            groups.append(group(count, cfg, pairs or SIDE_PAIRS, [arm for arm in able if arm.core]))
    return groups
