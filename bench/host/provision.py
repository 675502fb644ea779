"""What every set-up needs: errors in one sentence, a per-user cache with a lock, pip. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SPACE_NEEDED_GB = 10
LARGE_DOWNLOAD_MB = 20


class SetupError(Exception):
    """The set-up cannot go on. The message is one sentence that says the way out."""


def say(text: str) -> None:
    """Progress goes to stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """The per-user cache. SPECTRALCACHE_CACHE overrides it."""
    override = os.environ.get("SPECTRALCACHE_CACHE")
    if override:
        return Path(override).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "spectralcache"


def require_space(folder: Path) -> None:
    """Refuses to start a set-up that would fill the disk."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < SPACE_NEEDED_GB:
        raise SetupError(
            f"The set-up needs {SPACE_NEEDED_GB} GB free and the disk of {existing} has {free:.1f} GB; free some space "
            "or point SPECTRALCACHE_CACHE at a folder on another disk."
        )


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Holds the set-up lock. The system frees it when a process ends, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "a+b") as handle:
        waiting = False
        while not try_lock(handle):
            if not waiting:
                say("Another set-up is running; waiting for it to end.")
            waiting = True
            time.sleep(1)
        yield


def try_lock(handle: IO[bytes]) -> bool:
    """Whether this process has the lock of an open file now."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clean_environment() -> dict[str, str]:
    """The user's environment without what would leak other packages into our own virtual environment."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET")
    return {name: value for name, value in os.environ.items() if name not in dropped}


@contextmanager
def mended() -> Iterator[None]:
    """What the disk refuses ends in a sentence that says the way out."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"The set-up cannot use {cache_folder()} ({error}); mend that or point SPECTRALCACHE_CACHE elsewhere."
        ) from error


def run_pip(
    python: list[str], arguments: list[str], purpose: str, way_out: str = "check the network and your pip settings"
) -> None:
    """Runs a Python's pip, for a second Python if two are given. Shows large downloads, logs all, explains failures."""
    for_other = ["--python", python[1]] if python[1:] else []
    command = [python[0], "-m", "pip", *for_other, *arguments, "--progress-bar", "off", "--disable-pip-version-check"]
    log = cache_folder() / "pip.log"
    with open(log, "w", encoding="utf-8") as record:
        code, output = _watch(command, record)
    if code:
        raise SetupError(
            f"pip could not {purpose} ({last_word(output)}); {way_out}, then run the same command again "
            f"(everything pip said is in {log})."
        )


def _watch(command: list[str], record: IO[str]) -> tuple[int, str]:
    """Runs pip to its end, showing and recording what it says; returns its exit code and its last lines."""
    tail: deque[str] = deque(maxlen=40)
    options: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    with subprocess.Popen(command, env=clean_environment(), **options) as process:
        try:
            for line in process.stdout or ():
                record.write(line)
                tail.append(line)
                shown = progress(line)
                if shown:
                    say(f"    {shown}")
        except BaseException:
            process.kill()
            raise
    return process.returncode, "".join(tail)


def progress(line: str) -> str | None:
    """What of pip's output is worth a line: large files and the final installation."""
    file = re.match(r"\s*(Downloading|Using cached) (\S+?)-(\d[^-\s]*)\S* \(([\d.]+) MB\)", line)
    if file and float(file[4]) >= LARGE_DOWNLOAD_MB:
        return f"{file[1].lower()} {file[2]} {file[3]} ({file[4]} MB)"
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages"
    return None


def last_word(output: str) -> str:
    """The line of a failed command that says why: its last error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
