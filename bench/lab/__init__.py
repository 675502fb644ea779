"""Runs that are measured: a ComfyUI in this process and the small FLUX in it; settings, runs, statistics, pages."""

from bench.lab.lab import Lab, Sampled
from bench.lab.pairs import Pair
from bench.lab.studio import Studio

__all__ = ["Lab", "Pair", "Sampled", "Studio"]
