"""What the words on SpectralCache Auto stand for: computed steps by the run's length, read off the bench's curves.

A word is a level of closeness to the full run (LEVELS, picture PSNR in dB, euler, CFG 3, mean over 24 pairs); the
fewest computed steps that reach it were read off the curves of the first small FLUX at 20, 28 and 50 steps, which was
the harder one (docs/tried.md): on the one of docs/auto.csv each word gives 6 to 15 dB more. Between and beyond, counts
are interpolated: longer runs skip more.
"""

from __future__ import annotations

LEVELS = {"Quality": 50.0, "Balanced": 45.0, "Fast": 40.0, "Draft": 35.0}
STEPS = (20, 28, 50)
LEAST = 4
WORDS = {
    "Quality": (13, 15, 25),
    "Balanced": (11, 12, 19),
    "Fast": (9, 10, 13),
    "Draft": (8, 8, 10),
}
"""Computed steps at STEPS."""


def computed(word: str, total: int) -> int:
    """How many of `total` steps a word computes."""
    (short, middle, long), counts = STEPS, WORDS[word]
    if total <= short:  # down to 4 steps, of which none can be spared
        return min(total, round(LEAST + (counts[0] - LEAST) * (total - LEAST) / (short - LEAST)))
    low, high, at_low, at_high = (short, middle, *counts[:2]) if total <= middle else (middle, long, *counts[1:])
    return round(at_low + (at_high - at_low) * (total - low) / (high - low))
