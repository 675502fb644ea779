"""Packs what the bench needs on a machine without a network into one file: `python dev.py carry FILE`.

    manifest.json    what is in here, for which Python, and what the other machine has to have
    ComfyUI/         the host's unmodified source, without models, vocabularies, tests and blueprints
    wheels/          packages for the other machine's Python and platform

Which packages is not written down anywhere: a small run of the bench in the host's Python shows what is loaded. Of
ComfyUI's requirements those that were loaded are taken with all that they ask for, and whatever else was loaded.
torch and what only torch asks for stay away, since the other machine must have a torch that fits its hardware.

Wheels are stored without their own compression, so that xz sees their content and halves it. bench/host/carried.py is
the other half. Standard library only.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.host import setup as setup_host
from bench.host.carry_probe import normalised
from bench.host.provision import SetupError, cache_folder, last_word, run_pip, say
from bench.host.setup import Host

BENCH = Path(__file__).resolve().parents[1]
PROBE = ("speed", "--hidden", "128", "--double", "1", "--single", "1", "--side", "16", "--rounds", "1")
TORCH = tuple(pin.split("==")[0] for pin in setup_host.TORCH)
VARIABLE = "COMFYUI_CARRIED"
ROOT = "carried"
FORMAT = 1

OLDEST_GLIBC, NEWEST_GLIBC = 5, 35  # manylinux_2_x; the newest is that of 2022's distributions
LARGE = 200_000
"""Bytes beyond which a file that is no Python source stays behind: vocabularies of text encoders."""
LEFT = {
    "custom_nodes", "models", "input", "output", "temp", "user", "tests", "tests-unit", "blueprints", "script_examples",
    "venv", "python_embeded",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The other machine: a Python version such as 3.12, and a platform tag of wheels."""

    python: str
    platform: str

    def tags(self) -> list[str]:
        """Platform tags, those that run on the oldest systems first. pip takes each of them to the letter."""
        system, _, machine = self.platform.partition("_")
        if system != "linux":
            return [self.platform]
        old = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
        tags = []
        for minor in range(OLDEST_GLIBC, NEWEST_GLIBC + 1):
            tags += [f"{old[minor]}_{machine}"] if minor in old else []
            tags.append(f"manylinux_2_{minor}_{machine}")
        return tags


@dataclass(frozen=True)
class Choice:
    """What becomes of the packages that the bench needs: carried as wheels, replaced, or there already."""

    wheels: tuple[str, ...]
    stand_ins: tuple[str, ...]
    there: tuple[str, ...]


def pack(file: Path, target: Target, without: Iterable[str], stand_ins: Iterable[str]) -> None:
    """Writes the file and says how to use it."""
    lzma_error()
    host = setup_host.prepare()
    say("1/3 a small run of the bench, to see which packages it loads")
    found = probe(host)
    target = Target(target.python or found["python"], target.platform)
    choice = choose(found["packages"], requirements_of(host.comfyui), without, stand_ins)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        content = Path(temporary)
        say(f"2/3 wheels for Python {target.python} on {target.platform}: {', '.join(choice.wheels) or 'none'}")
        wheels = download(host, found["packages"], choice.wheels, target, content)
        copy_source(host.comfyui, content / "ComfyUI")
        manifest = describe(found["packages"], choice, wheels, target, version_of(host.comfyui))
        (content / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
        say("3/3 packing; large packages take minutes")
        written = content / "written"
        with tarfile.open(written, "w:xz") as archive:
            for name in ("manifest.json", "ComfyUI", "wheels"):
                archive.add(content / name, f"{ROOT}/{name}")
        shutil.move(str(written), str(file))
    say(summary(file, manifest, choice))


def lzma_error() -> type[Exception]:
    """What a damaged file raises. Refuses one of those Pythons that are built without lzma."""
    try:
        from lzma import LZMAError
    except ImportError as error:
        raise SetupError(f"{sys.executable} was built without lzma; run dev.py with another Python.") from error
    return LZMAError


def summary(file: Path, manifest: Mapping[str, Any], choice: Choice) -> str:
    """What was written, and what to do with it."""
    size = file.stat().st_size / 2**20
    inside = BENCH.parent in file.parents
    named = file.relative_to(BENCH.parent).as_posix() if inside else file.name
    stand_ins = f" A stand-in, which can be imported and not used, takes the place of {', '.join(choice.stand_ins)}."
    return (
        f"\n{file}: {size:.1f} MiB, ComfyUI {manifest['comfyui']} and packages: {len(choice.wheels)}."
        f"{stand_ins if choice.stand_ins else ''} That machine's own Python {manifest['python']} has to have "
        f"{', '.join(choice.there)}.\nTake this file and the repository there, and run in the repository:\n\n"
        f"    {VARIABLE}={named} python3 dev.py bench speed --device cuda --model flux1\n"
    )


# --- which packages -------------------------------------------------------------------------------------------------


def probe(host: Host) -> dict[str, Any]:
    """carry_probe.py's report on a small run of the bench."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        command = [str(host.python), str(BENCH / "host" / "carry_probe.py"), str(report), str(BENCH / "run.py")]
        environment = {**host.environment(), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [*command, *PROBE, "--out", temporary], capture_output=True, text=True, env=environment, check=False
        )
        if ran.returncode:
            raise SetupError(
                f"A small run of the bench failed ({last_word(ran.stderr)}); run python dev.py bench {' '.join(PROBE)} "
                "to see all of it."
            )
        return json.loads(report.read_text("utf-8"))


def requirements_of(comfyui: Path) -> set[str]:
    """The packages that ComfyUI asks for."""
    lines = (comfyui / "requirements.txt").read_text("utf-8").splitlines()
    return {normalised(found[0]) for found in (re.match(r"[\w.-]+", line.strip()) for line in lines) if found}


def choose(
    packages: Mapping[str, Mapping[str, Any]],
    requirements: Iterable[str],
    without: Iterable[str],
    replaced: Iterable[str],
) -> Choice:
    """Carried is what was loaded of ComfyUI's requirements, with all that they ask for, and what was loaded besides.

    What only a package asks for that is there already is there too: it came with it, in the version that fits it.
    """
    loaded = {name for name, package in packages.items() if package["loaded"]}
    asked = loaded.intersection(requirements)
    besides = loaded - closure(packages, asked)
    stand_ins = set(map(normalised, replaced))
    there = {*TORCH, *map(normalised, without)} - stand_ins
    needed = closure(packages, asked | besides, stop=there | stand_ins)
    if stand_ins - needed:
        raise SetupError(
            f"--stand-in names {', '.join(sorted(stand_ins - needed))}, which would not be carried; name only packages "
            f"that would ({', '.join(sorted(needed - there - stand_ins))})."
        )
    first = [name for name in TORCH if name in needed & there]
    return Choice(
        wheels=tuple(sorted(needed - there - stand_ins)),
        stand_ins=tuple(sorted(stand_ins)),
        there=(*first, *sorted(needed & there - set(TORCH))),
    )


def closure(packages: Mapping[str, Mapping[str, Any]], names: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
    """These packages and all that they ask for, of what is installed; not what the packages in `stop` ask for."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        node = waiting.pop()  # a name, or name[extra]
        name, _, extra = node.rstrip("]").partition("[")
        if node not in found and name in packages:
            found.add(node)
            waiting += [] if name in stop else packages[name]["needs"].get(extra, ())
    return {node for node in found if "[" not in node}


# --- what is written ------------------------------------------------------------------------------------------------


def download(
    host: Host, packages: Mapping[str, Mapping[str, Any]], names: Iterable[str], target: Target, content: Path
) -> dict[str, str]:
    """Fetches the wheels in the host's own versions; returns package name to file name."""
    (content / "wheels").mkdir()
    pins = [f"{name}=={packages[name]['version']}" for name in names]
    if not pins:
        return {}
    cache_folder().mkdir(parents=True, exist_ok=True)  # pip's log lies there
    fetched = content / "fetched"
    tags = [argument for tag in target.tags() for argument in ("--platform", tag)]
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python, *tags]
    python = str(host.python) if "pip" in packages else sys.executable
    run_pip(
        [python],
        ["download", *options, "-d", str(fetched), *pins],
        "download the wheels",
        "check the network and your pip settings, or leave out with --without what that machine has",
    )
    found = {}
    for wheel in sorted(fetched.glob("*.whl")):
        store(wheel, content / "wheels" / wheel.name)
        found[normalised(wheel.name.split("-")[0])] = wheel.name
    return found


def store(wheel: Path, target: Path) -> None:
    """Writes the wheel again, its files as they are and uncompressed."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as stored:
        for entry in source.infolist():
            data = source.read(entry)
            entry.compress_type = zipfile.ZIP_STORED
            stored.writestr(entry, data)


def copy_source(comfyui: Path, target: Path) -> None:
    """Copies ComfyUI's source: nothing that a user put there, nothing large that sampling in process never reads."""

    def left(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == comfyui
        return {name for name in names if _left(Path(folder) / name, top)}

    shutil.copytree(comfyui, target, ignore=left)


def _left(path: Path, top: bool) -> bool:
    if path.is_dir():
        return path.name == "__pycache__" or path.name.startswith(".") or (top and path.name in LEFT)
    return not path.is_file() or (path.suffix != ".py" and path.stat().st_size > LARGE)


def version_of(comfyui: Path) -> str:
    """What ComfyUI says it is."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", file.read_text("utf-8")) if file.is_file() else None
    return found[1] if found else "of an unknown version"


def describe(
    packages: Mapping[str, Mapping[str, Any]], choice: Choice, wheels: Mapping[str, str], target: Target, version: str
) -> dict[str, Any]:
    """The manifest."""
    return {
        "format": FORMAT,
        "comfyui": version,
        **asdict(target),
        "wheels": dict(wheels),
        "stand_ins": {name: packages[name]["modules"] for name in choice.stand_ins},
        "there": list(choice.there),
    }
