"""Uses on a machine without a network what bench/host/carry.py packed: COMFYUI_CARRIED names the file.

    <cache>/carried/<key>/             the file, unpacked
    <cache>/carried/<key>-<packages>/  those packages of it that this machine's Python lacks

That Python is left as it is, and its own packages win: ours come last on `sys.path`. Nothing here asks a network.
Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.host.carry import FORMAT, ROOT, TORCH, VARIABLE, lzma_error
from bench.host.provision import SetupError, cache_folder, last_word, mended, only_one, run_pip, say
from bench.host.setup import Host, choose_python, unpack

STAND_IN = Path(__file__).with_name("stand_in.py")
AGAIN = "make the file again with python dev.py carry"

_ASK = """
import importlib.metadata, importlib.util, json, re, sys
names = [each.metadata["Name"] for each in importlib.metadata.distributions()]
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "packages": [re.sub(r"[-_.]+", "-", name).lower() for name in names if name],
    "torch": importlib.util.find_spec("torch") is not None,
}))
"""


def host() -> Host | None:
    """The carried ComfyUI with this machine's Python, or None where COMFYUI_CARRIED is not set."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if os.environ.get("COMFYUI_PATH"):
        raise SetupError(f"{VARIABLE} and COMFYUI_PATH are both set, and each names a ComfyUI; unset one of them.")
    with mended():
        return _host(Path(named).expanduser().absolute())


def _host(file: Path) -> Host:
    if not file.is_file():
        raise SetupError(f"{VARIABLE} is {file}, which is no file; set it to what python dev.py carry wrote.")
    unpacked = unpacked_file(file)
    manifest = json.loads((unpacked / "manifest.json").read_text("utf-8"))
    comfyui = unpacked / "ComfyUI"
    python, origin = choose_python(comfyui)
    say(f"Using the carried ComfyUI {manifest['comfyui']} with {python} ({origin}).")
    found = ask(python)
    lacking = missing(manifest, found, python, file)
    return Host(comfyui, python, ours=False, tools=add_packages(unpacked, manifest, found, lacking, python))


def unpacked_file(file: Path) -> Path:
    """The folder with the file's content."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "carried" / digest
    with made_once(folder) as target:
        if target is not None:
            say(f"Unpacking {file.name} into {folder}")
            try:
                unpack(file, ROOT, target)
                found = json.loads((target / "manifest.json").read_text("utf-8"))["format"]
            except (tarfile.TarError, EOFError, ValueError, KeyError, FileNotFoundError, lzma_error()) as error:
                raise SetupError(f"{file} is damaged, or not what python dev.py carry writes; {AGAIN}.") from error
            if found != FORMAT:
                raise SetupError(f"{file} was written by another version of this repository; {AGAIN}.")
    return folder


def ask(python: Path) -> dict[str, Any]:
    """Version and installed packages of a Python."""
    answer = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True, cwd=os.sep, check=False)
    if answer.returncode:
        raise SetupError(f"{python} does not run ({last_word(answer.stderr)}); set COMFYUI_PYTHON to one with torch.")
    return json.loads(answer.stdout)


def missing(manifest: Mapping[str, Any], found: Mapping[str, Any], python: Path, file: Path) -> list[str]:
    """Those carried packages that the Python lacks. Refuses a Python that the file cannot help."""
    having = {*found["packages"], *(["torch"] if found["torch"] else [])}
    absent = [name for name in manifest["there"] if name not in having]
    torches = [name for name in absent if name in TORCH]
    if torches:
        kin = [name for name in torches if name != "torch"]
        instead = f", or {AGAIN} --stand-in {' '.join(kin)}" if kin == torches else ""
        named = ", ".join(torches)
        raise SetupError(f"{python} has no {named}, never carried; run dev.py with a Python that has {named}{instead}.")
    if found["python"] != manifest["python"]:
        raise SetupError(
            f"{file.name} was made for Python {manifest['python']} and {python} is Python {found['python']}; set "
            f"COMFYUI_PYTHON to a fitting one, or {AGAIN} --python {found['python']}."
        )
    if absent:
        raise SetupError(
            f"{python} lacks {', '.join(absent)}, and {file.name} was made --without {'them' if absent[1:] else 'it'}; "
            f"{AGAIN}, and with {'them' if absent[1:] else 'it'}."
        )
    carried = {*manifest["wheels"], *manifest["stand_ins"]}
    return sorted(carried.difference(found["packages"]))


def add_packages(
    unpacked: Path, manifest: Mapping[str, Any], found: Mapping[str, Any], names: list[str], python: Path
) -> Path | None:
    """Installs carried packages into a folder of the cache; returns it, or None where nothing is missing."""
    if not names:
        return None
    digest = hashlib.sha256("\n".join([found["python"], *names]).encode()).hexdigest()[:12]
    folder = unpacked.with_name(f"{unpacked.name}-{digest}")
    with made_once(folder) as target:
        if target is not None:
            say(f"{python} lacks {', '.join(names)}; installing the carried ones into {folder}, nowhere else")
            wheels = [
                str(unpacked / "wheels" / manifest["wheels"][name]) for name in names if name in manifest["wheels"]
            ]
            target.mkdir()
            if wheels:
                install(wheels, target, python, has_pip="pip" in found["packages"])
            for name in names:
                for module in manifest["stand_ins"].get(name, ()):
                    (target / module).mkdir()
                    shutil.copy(STAND_IN, target / module / "__init__.py")
    return folder


def install(wheels: list[str], target: Path, python: Path, has_pip: bool) -> None:
    """pip on nothing but these files. A Python without pip is served by ours."""
    run_pip(
        [str(python)] if has_pip else [sys.executable, str(python)],
        ["install", "--no-index", "--no-deps", "--target", str(target), *wheels],
        "install the carried packages",
        f"if they are for another system, {AGAIN} --platform TAG",
    )


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Where to make the folder's content, or None if it is there. Complete or not there: nothing half-made stays."""
    with only_one(cache_folder()):
        if folder.exists():
            yield None
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            target = Path(temporary) / "made"
            yield target
            target.rename(folder)
