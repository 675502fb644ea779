"""Developer tools, in rooms; each uses only those above it. The pack never imports any of this.

host      get, run and ask a real ComfyUI
lab       runs that are measured: the small FLUX, settings, pairs of prompt and seed, the store, statistics, pages
demo      `dev.py demo`: pictures with and without the cache
tables    `dev.py bench`: a file or folder for each table, its command, grid and report together
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
