"""What `bench quality` measures: every method's presets, ComfyUI's own caches, the controls."""

from __future__ import annotations

from collections.abc import Iterable

from bench.lab.arms import Cached
from bench.lab.grid import Group, group
from bench.lab.pairs import COUNT
from bench.lab.presets import NEED_GUIDANCE, PARTS, control_arms, core_arms, counts, fewer, method_arms

MAIN, EVERY_FAMILY = (28, 3.0), (28, 1.0)
SIDES = (EVERY_FAMILY, (20, 3.0), (50, 3.0))
SIDE_PAIRS = 6
QUICK_PAIRS = 4


def grid(
    names: Iterable[str], full: bool = False, quick: bool = False, pairs: int | None = None, steps: int = 28
) -> list[Group]:
    """The default grid: every setting at 28 steps, with guidance on most pairs and beside all controls; one of each
    family elsewhere. `full` measures every row everywhere, `quick` (of `steps` steps) shows that everything runs.
    """
    ours = [*method_arms(names), *core_arms()]
    if quick:
        chosen = [arm for arm in ours if arm.quick]
        controls = (fewer(n) for n in counts(steps)[::3])
        return [group(steps, 3.0, pairs or QUICK_PAIRS, [*controls, *chosen])]
    groups = [group(*MAIN, pairs or COUNT, [*control_arms(MAIN[0]), *ours])]
    for count, cfg in SIDES:
        able = [arm for arm in ours if cfg > 1 or getattr(arm, "method", "") not in NEED_GUIDANCE]
        if full:
            groups.append(group(count, cfg, pairs or COUNT, [*control_arms(count), *able]))
        elif (count, cfg) == EVERY_FAMILY:
            published = [arm for arm in able if isinstance(arm, Cached) and arm.family not in PARTS]
            plain = (fewer(n) for n in counts(count))
            groups.append(group(count, cfg, pairs or SIDE_PAIRS, [*plain, *published]))
        else:
            groups.append(group(count, cfg, pairs or SIDE_PAIRS, [arm for arm in able if arm.core]))
    return groups
