"""Where profiles are kept: a folder of this pack's under ComfyUI's user folder, one safetensors file each.

A file is written beside its name and then renamed, so that what is there is whole, whatever interrupts. What cannot be
read is a `Refused` with its reason, never an error: a run can do without.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import folder_paths

from ..cache_core.profile import LARGEST_FILE, Profile, Refused, from_bytes, to_bytes
from ..cache_core.types import CacheError

SUFFIX = ".safetensors"
LONGEST = 80
"""Letters of a name, so that every file system takes it."""


def folder() -> Path:
    """Not open to requests of the page where the host knows such folders."""
    system = getattr(folder_paths, "get_system_user_directory", None)
    root = system("spectralcache") if system else os.path.join(folder_paths.get_user_directory(), "__spectralcache")
    return Path(root) / "profiles"


def names() -> list[str]:
    """What can be loaded, the newest first."""
    try:
        files = [file for file in folder().iterdir() if file.suffix == SUFFIX and file.is_file()]
        return [file.stem for file in sorted(files, key=lambda file: (-file.stat().st_mtime, file.name))]
    except OSError:
        return []


def put(profile: Profile, wanted: str = "") -> Profile:
    """Store a profile under a name that is free; returns it with that name. Raises `CacheError` where it cannot."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        name = _free(place, cleaned(wanted) or suggested(profile))
        named = replace(profile, about={**profile.about, "name": name})
        handle, half = tempfile.mkstemp(dir=place, prefix="half-written ")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(to_bytes(named))
            os.replace(half, place / f"{name}{SUFFIX}")
        finally:
            Path(half).unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"the profile could not be written to {place} ({error})") from None
    return named


def get(name: str) -> Profile | Refused:
    """The profile of this name."""
    if name != Path(name).name or name in ("", ".", ".."):
        return Refused(name, "this is no name of a profile; choose one of the list")
    file = folder() / f"{name}{SUFFIX}"
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST_FILE + 1)  # no more, whatever the file's size
        return from_bytes(data)
    except FileNotFoundError:
        return Refused(name, "it is not there any more; choose another one, or make it with Cache Calibrate")
    except OSError as error:
        return Refused(name, f"it cannot be read ({error})")
    except CacheError as error:
        return Refused(name, str(error))


def stamp(name: str) -> str:
    """Changes when the file does."""
    try:
        about = (folder() / f"{Path(name).name}{SUFFIX}").stat()
        return f"{about.st_mtime_ns} {about.st_size}"
    except OSError:
        return ""


def suggested(profile: Profile) -> str:
    """A name that says what the profile is of."""
    about = profile.about
    return cleaned(
        f"{about['family']} {about['sampler']} {about['scheduler']} {about['steps']} steps cfg {about['cfg']:g} "
        f"{about['date']}"
    )


def cleaned(text: str) -> str:
    """As a file's name on every system: letters of any language, digits, spaces and - _ . within."""
    return " ".join(re.sub(r"[^\w .-]+", " ", text).split()).strip(" .")[:LONGEST].rstrip(" .")


def _free(place: Path, name: str) -> str:
    """Nothing that is there is written over."""
    taken = {file.stem.lower() for file in place.iterdir()}
    tries = (name if number == 1 else f"{name} ({number})" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in tries if candidate.lower() not in taken)
