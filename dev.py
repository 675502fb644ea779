#!/usr/bin/env python3
"""Everything a developer runs: demo, tests, a ComfyUI to try by hand, benchmarks, the trainer of the small models.

Standard library only. Each command sets up what it needs on first use (bench/host/setup.py) and runs it in the Python
of a real ComfyUI. A failure ends in one sentence that says the way out, and a code other than 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import run as bench_run
from bench.host import carried, carry, server
from bench.host import setup as setup_host
from bench.host.provision import SetupError, cache_folder, say
from bench.host.setup import Host

ROOT = Path(__file__).resolve().parent
TESTS = ROOT / "tests"
HOST_TESTS = TESTS / "host"
CONFIGURATION = str(ROOT / "pyproject.toml")
COMMAND_LINE = (
    "dev.py",
    "bench/host/carried.py",
    "bench/host/carry.py",
    "bench/host/carry_probe.py",
    "bench/host/provision.py",
    "bench/host/server.py",
    "bench/host/setup.py",
    "bench/host/stand_in.py",
    "bench/run.py",
)
NOTHING_COLLECTED = 5  # pytest's exit code
VALID = "All validation checks passed"  # comfy-cli's word; with a warning it says something else, and ends with 0
WORKERS = ("-n", "2", "--dist", "worksteal")
"""A run of everything shares the host tests between two processes, each with a ComfyUI and a server. Each begins with
one half, in order; whoever is done takes over half of what the other has left.
"""
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What a run of everything sets to 1: its processes share the processors, and the models are small."""
SMOKE = ["-q", "-m", "smoke", *(str(HOST_TESTS / f"test_{name}.py") for name in ("hosts", "families"))]
"""What every supported ComfyUI has to show."""
TOOLED = ("dynamics", "exact", "quality")
"""Tables with a plot (matplotlib) or FLIP. No other makes a user download the developer tools."""
GRACE_SECONDS = 20
# pytest's options whose next argument is their value and may look like a path of ours
VALUED_OPTIONS = {"-k", "-m", "-o", "-p", "-W", "--deselect", "--ignore", "--ignore-glob", "--junitxml", "--basetemp"}

ENVIRONMENT_HELP = """\
environment variables:
  COMFYUI_PATH           use this ComfyUI folder; nothing is installed into it
  COMFYUI_CARRIED        for bench, without a network: the file that carry wrote; this Python needs torch and its kin
  COMFYUI_PYTHON         its Python (default: its venv, .venv or python_embeded, else this Python)
  SPECTRALCACHE_CACHE    where our own ComfyUI and its packages are kept, several GB
  SPECTRALCACHE_COMFYUI  which version that is, the first by default: {}"""


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs one command; returns its exit code."""
    options, rest = parser().parse_known_args(arguments)
    if rest and options.command in ("serve", "carry"):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest)
    except (SetupError, server.HostError) as error:
        say(f"dev.py: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="dev.py",
        description="Try, test and measure SpectralCache on a real ComfyUI.",
        epilog=ENVIRONMENT_HELP.format(", ".join(setup_host.HOSTS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, run: Any, text: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        command.set_defaults(run=run)
        return command

    command = add("demo", demo, "make pictures with and without the cache, and compare (bench/demo: more options)")
    command.add_argument("--json", metavar="FILE", help="write every figure here")
    command.add_argument("--out", metavar="DIR", help="write the pictures and tables here")
    command = add("test", test, "ruff, mypy and all tests; with arguments only pytest, which gets them")
    command.add_argument("--frontend", metavar="VERSION", help="in the browser tests, or newest (default: the host's)")
    command.add_argument(
        "--host",
        choices=(*setup_host.HOSTS, "all"),
        help="on this ComfyUI, set up on first use: the newest fully, an older one what every host has to show",
    )
    command = add("serve", serve, "leave a ComfyUI with the pack and the stand-in models running, to try by hand")
    command.add_argument("--port", type=int, default=8188, help="on 127.0.0.1 (default: 8188)")
    add("train", train, "make the small models from nothing, going on where it was stopped", add_help=False)
    add("bench", bench, "measure quality and speed; bench --help lists what", add_help=False)
    add_carry(add("carry", pack, "pack what bench needs on a machine without a network into one file"))
    return top


def add_carry(command: argparse.ArgumentParser) -> None:
    """The options of `carry`."""
    many: Any = {"nargs": "+", "default": [], "metavar": "PACKAGE"}
    command.add_argument("file", type=Path, metavar="FILE", help="what to write, out/carried.tar.xz for example")
    command.add_argument("--python", default="", metavar="X.Y", help="that machine's Python (default: as the host's)")
    command.add_argument("--platform", default="linux_x86_64", metavar="TAG", help="(default: %(default)s)")
    command.add_argument("--without", **many, help="packages that machine has; torch is never carried")
    command.add_argument("--stand-in", **many, help="packages that need only be importable, such as av, to save space")


# --- commands -------------------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    """Runs bench/demo/command.py in the host's Python."""
    ours = [f"--{name}={getattr(options, name)}" for name in ("json", "out") if getattr(options, name)]
    return run_script(setup_host.prepare(), ROOT / "bench" / "demo" / "command.py", [*ours, *rest])


def bench(_options: argparse.Namespace, rest: list[str]) -> int:
    """Runs bench/run.py in the host's Python. What there is to measure is told without a set-up of minutes."""
    if rest in ([], ["-h"], ["--help"]):
        print(f"{bench_run.overview()}\n\npython dev.py bench COMMAND --help says more.")
        return 0 if rest else 2
    host = carried.host() or setup_host.prepare(tools=rest[0] in TOOLED)
    return run_script(host, ROOT / "bench" / "run.py", rest)


def train(_options: argparse.Namespace, rest: list[str]) -> int:
    """Runs bench/train/command.py in the host's Python."""
    return run_script(setup_host.prepare(), ROOT / "bench" / "train" / "command.py", rest)


def pack(options: argparse.Namespace, _rest: list[str]) -> int:
    """Writes the file that `bench` uses on a machine without a network."""
    target = carry.Target(options.python, options.platform)
    carry.pack(options.file.absolute(), target, options.without, options.stand_in)
    return 0


def run_script(host: Host, script: Path, arguments: list[str]) -> int:
    """Runs one of our scripts in the host's Python, and in the user's folder: its arguments may be relative paths."""
    return run(host.script(script, *arguments), host, cwd=None)


def serve(options: argparse.Namespace, _rest: list[str]) -> int:
    """Runs ComfyUI in the foreground until Ctrl-C."""
    server.require_free_port(options.port)  # before a set-up that takes minutes
    host = setup_host.prepare()
    base = server.base_directory(cache_folder() / "serve")
    with server.Server(
        base, comfyui=host.comfyui, python=host.python, port=options.port, environment=host.environment(), console=True
    ) as running:
        say(f"\nComfyUI with SpectralCache is at {running.url}; its files are in {base}. Ctrl-C ends it.\n")
        return running.wait()


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """Runs every check and returns the first failure's code. With arguments: pytest only."""
    hosts = tuple(setup_host.HOSTS) if options.host == "all" else (options.host,)
    codes = [test_on(version, options, rest) for version in hosts]
    return next((code for code in codes if code), 0)


def test_on(version: str | None, options: argparse.Namespace, rest: list[str]) -> int:
    """The checks on one ComfyUI; None: the one that is used anyway."""
    host = setup_host.prepare(tools=True, version=version)
    if version:
        say(f"ComfyUI {version}")
    if options.frontend:
        os.environ["SPECTRALCACHE_FRONTEND"] = str(setup_host.frontend(host, options.frontend))
    if not rest and version in (None, setup_host.DEFAULT_HOST):
        return run_everything(host)
    return run_pytest(host, rest or SMOKE)


# --- the checks -----------------------------------------------------------------------------------------------------


def run_everything(host: Host) -> int:
    """The host tests take longest: they run beside all other checks, which use one processor or wait for a browser."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    core, hosted = map(coloured, pytest_commands(host, []))
    with beside(hosted, host) as host_tests:
        codes = [run_ruff(host), run_mypy(host), run_validation(host)]
        code, summary = run_holding_last_line(core, host)
        codes += [code, host_tests()]
    show(summary)
    return next((code for code in codes if code), 0)


def run_ruff(host: Host) -> int:
    """Lints the whole repository."""
    say("ruff check")
    return run(host.module("ruff", "check", "--output-format=concise", str(ROOT)), host)


def run_mypy(host: Host) -> int:
    """Checks the types of the pack and of the command line."""
    say("mypy")
    options = ["--config-file", CONFIGURATION, "--cache-dir", str(ROOT / ".mypy_cache")]
    with tempfile.TemporaryDirectory() as folder:
        # ComfyUI loads the pack as one package with relative imports, whatever the clone's folder is called.
        server.link(Path(folder) / server.PACK, ROOT)
        packages = [f"--package={server.PACK}.{name}" for name in ("cache_core", "nodes")]
        pack = run(host.module("mypy", *options, *packages), host, cwd=folder)
    own = run(host.module("mypy", *options, *COMMAND_LINE), host)
    return pack or own


def run_validation(host: Host) -> int:
    """What the registry asks of a pack, by its own tool, which needs no network for it; a warning fails."""
    say("comfy node validate")
    with tempfile.TemporaryDirectory() as home:  # it keeps settings and an identity in the user's folder
        ours = {"HOME": home, "USERPROFILE": home, "XDG_CONFIG_HOME": home, "DO_NOT_TRACK": "1"}
        command = host.module("comfy_cli", "--skip-prompt", "node", "validate")
        environment = {**host.environment(), **ours, "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode == 0 and VALID in said:
        return 0
    say(said)
    return done.returncode or 1


def run_pytest(host: Host, arguments: list[str]) -> int:
    """Runs the tests that the arguments name, in the terminal."""
    return run_in_turn(pytest_commands(host, arguments), host)


def pytest_commands(host: Host, arguments: list[str]) -> list[list[str]]:
    """pytest, host tests in a process of their own: the root on `sys.path` would shadow the host's `nodes.py`."""
    options, paths = split_arguments(arguments)
    core, hosted = route(paths)
    common = ["-c", CONFIGURATION, "--rootdir", str(ROOT), "--confcutdir", str(TESTS), *options]
    processes = []
    if core:
        processes.append(["-o", "pythonpath=.", *common, f"--ignore={HOST_TESTS}", *core])
    if hosted:
        processes.append([*(() if arguments else WORKERS), *common, *hosted])
    return [host.module("pytest", *process) for process in processes]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """pytest's arguments, parted into options and the tests to run (made absolute)."""
    options, paths, before = [], [], ""
    for argument in arguments:
        name, *rest = argument.split("::")
        path = Path(os.path.abspath(name))
        is_value = before in VALUED_OPTIONS or argument.startswith("-")
        if not is_value and path.exists() and (path in (ROOT, TESTS) or TESTS in path.parents):
            paths.append("::".join([str(path), *rest]))
        else:
            options.append(argument)
        before = argument
    return options, paths


def route(paths: list[str]) -> tuple[list[str], list[str]]:
    """The tests for the core process and for the host process. None named: all."""
    core, hosted = [], []
    for name in paths or [str(TESTS)]:
        path = Path(name.split("::")[0])
        if path in (ROOT, TESTS):
            core.append(str(TESTS))
            hosted.append(str(HOST_TESTS))
        elif path == HOST_TESTS or HOST_TESTS in path.parents:
            hosted.append(name)
        else:
            core.append(name)
    return core, hosted


def run_in_turn(commands: list[list[str]], host: Host) -> int:
    """Runs pytest processes. The summaries of the first are held back, so that all of them end the output."""
    *first, last = commands
    held, codes = [], []
    for command in first:
        code, line = run_holding_last_line(coloured(command), host)
        codes.append(code)
        held.append(line)
    codes.append(run(last, host))
    for line in held:
        show(line)
    # A selection such as -k may leave one process without tests, but not all.
    failures = [code for code in codes if code not in (0, NOTHING_COLLECTED)]
    return next(iter(failures), 0 if 0 in codes else NOTHING_COLLECTED)


# --- child processes ------------------------------------------------------------------------------------------------


def coloured(command: list[str]) -> list[str]:
    """pytest's command, for output that reaches the terminal by way of us."""
    return [*command, "--color=yes"] if sys.stdout.isatty() else command


def show(output: bytes) -> None:
    """Writes a child's output to the terminal."""
    sys.stdout.buffer.write(output)
    sys.stdout.flush()


def run(command: list[str], host: Host, cwd: Path | str | None = ROOT) -> int:
    """Runs a command in the terminal; returns its exit code."""
    with child(command, host, cwd=cwd) as process:
        return process.wait()


def run_holding_last_line(command: list[str], host: Host) -> tuple[int, bytes]:
    """Like run, but returns the last line instead of printing it."""
    held = b""
    with child(command, host, cwd=ROOT, stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            show(held)
            held = line
        return process.wait(), held


@contextmanager
def beside(command: list[str], host: Host) -> Iterator[Callable[[], int]]:
    """Runs a command beside what is done meanwhile. Calling what is given shows its output and returns its code."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "wb") as written:
        options: Any = {"cwd": ROOT, "stdout": written, "stderr": subprocess.STDOUT}
        with child(command, host, **options) as process, open(written.name, "rb") as said:

            def to_its_end() -> int:
                code = None
                while code is None:
                    time.sleep(0.2)
                    code = process.poll()
                    show(said.read())
                return code

            yield to_its_end


@contextmanager
def child(command: list[str], host: Host, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that never outlives us, and that may clean up: it stops the ComfyUI it started."""
    process = subprocess.Popen(command, env=host.environment(), **options)
    try:
        yield process
    except KeyboardInterrupt:  # Ctrl-C in a terminal has reached the child as well
        _wait(process)
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            _wait(process)
            process.kill()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass


def stop_when_told() -> None:
    """Being told to stop unwinds like any other exit, so that children are ended."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)


if __name__ == "__main__":
    stop_when_told()
    sys.exit(main())
