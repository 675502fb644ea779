"""What the bench takes to a machine without a network: what is packed, what is installed there, and what is refused."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dev
from bench.host import carried, carry, carry_probe, provision
from bench.host import setup as setup_host
from bench.host.provision import SetupError
from bench.tables import speed as speed_command
from tests.command_line import refusal, seal

THIS = "{}.{}".format(*sys.version_info)
TARGET = carry.Target(THIS, "linux_x86_64")


def package(*needs, loaded=True, **extras):
    """One entry of the probe's report."""
    return {"version": "1.0", "modules": [], "needs": {"": list(needs), **extras}, "loaded": loaded}


PACKAGES = {
    "sampler": package("helper", "torch"),
    "helper": package("lazy"),
    "lazy": package("sampler", loaded=False),
    "server": package("router", loaded=False),
    "router": package(loaded=False),
    "model-hub": package("client"),
    "client": package(),
    "video": package(),
    "undeclared": package(),
    "torch": package("libraries", "libraries[fast]"),
    "libraries": package(fast=["nvidia-fast"]),
    "nvidia-fast": package(),
}
ASKED = {"sampler", "server", "model-hub", "video", "absent", "torch"}


@pytest.fixture(autouse=True)
def sealed(tmp_path, monkeypatch):
    """No test sees this machine's settings or cache, and pip gets as far as files at most."""
    seal(tmp_path, monkeypatch)

    def pip(python, arguments, *texts):
        assert {"--no-index", "--no-deps"} <= set(arguments)
        provision.run_pip(python, arguments, *texts)

    monkeypatch.setattr(carried, "run_pip", pip)


# --- which packages -------------------------------------------------------------------------------------------------


def test_carried_is_what_was_loaded_and_what_that_asks_for():
    choice = carry.choose(PACKAGES, ASKED, (), ())
    # not the server, which was not loaded; nothing that only torch asks for, through an extra either
    assert choice.wheels == ("client", "helper", "lazy", "model-hub", "sampler", "undeclared", "video")
    assert choice.there == ("torch",)


def test_what_is_there_brings_its_own():
    choice = carry.choose(PACKAGES, ASKED, ("Model_Hub", "router", "unknown"), ("video",))
    assert choice.wheels == ("helper", "lazy", "sampler", "undeclared")
    assert choice.there == ("torch", "model-hub") and choice.stand_ins == ("video",)


def test_torchs_kin_can_be_stood_in_for():
    packages = {**PACKAGES, "torchaudio": {"version": "1", "modules": ["torchaudio"], "needs": {}, "loaded": True}}
    assert carry.choose(packages, {*ASKED, "torchaudio"}, (), ()).there == ("torch", "torchaudio")
    choice = carry.choose(packages, {*ASKED, "torchaudio"}, (), ("torchaudio",))
    assert choice.there == ("torch",) and choice.stand_ins == ("torchaudio",) and "torchaudio" not in choice.wheels


@pytest.mark.parametrize("name", ["server", "misspelt"])
def test_a_stand_in_for_what_is_not_carried_is_refused(name):
    with pytest.raises(SetupError) as error:
        carry.choose(PACKAGES, ASKED, (), (name,))
    assert name in refusal(error) and "video" in refusal(error)


def test_what_a_package_asks_for_is_read_with_its_extras():
    lines = ["Numpy>=1.2", "torch (>=1.6)", "a.b[x,Y_z]==1; sys_platform == 'linux'"]
    lines += ['pytest<9 ; python_version>"3" and extra == "Dev"']
    always = ["numpy", "torch", "a-b", "a-b[x]", "a-b[y-z]"]
    assert carry_probe.needs(lines) == {"": always, "dev": ["pytest"]}


def test_the_probe_sees_what_a_script_loads(tmp_path):
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text("import sys, _pytest.mark; sys.exit(int(sys.argv[1]))")
    command = [sys.executable, carry_probe.__file__, str(report), str(script)]
    assert subprocess.run([*command, "3"], check=False).returncode == 3 and not report.exists()
    subprocess.run([*command, "0"], check=True)
    found = json.loads(report.read_text())
    assert found["python"] == THIS
    assert found["packages"]["pytest"]["loaded"] and not found["packages"]["torch"]["loaded"]
    assert "pluggy" in found["packages"]["pytest"]["needs"][""]


def test_the_probe_is_a_command_of_the_bench():
    parser = argparse.ArgumentParser(exit_on_error=False)
    speed_command.add_arguments(parser)
    assert carry.PROBE[0] == "speed" and parser.parse_args(carry.PROBE[1:]).hidden == 128


def test_wheels_for_old_systems_come_first():
    tags = TARGET.tags()
    assert (
        tags.index("manylinux2014_x86_64")
        < tags.index("manylinux_2_28_x86_64")
        == tags.index("manylinux_2_27_x86_64") + 1
    )
    assert len(tags) == len(set(tags)) and all(tag.endswith("_x86_64") for tag in tags)
    assert carry.Target("3.12", "macosx_14_0_arm64").tags() == ["macosx_14_0_arm64"]


# --- there and back -------------------------------------------------------------------------------------------------

FILES = {
    "main.py": "raise SystemExit('started')",
    "comfyui_version.py": '__version__ = "9.8.7"',
    "requirements.txt": "Carried_Part>=1\ntorch\n# a comment\n",
    "comfy/sd.py": "import carried_part\n",
    "comfy/settings.json": "{}",
    "comfy/__pycache__/sd.pyc": "old",
    "comfy/tests/kept.py": "",
    "comfy/vocabulary.json": "x" * (carry.LARGE + 1),
    "models/large.safetensors": "weights",
    "custom_nodes/other/__init__.py": "",
    ".git/config": "",
}
KEPT = {
    "main.py",
    "comfyui_version.py",
    "requirements.txt",
    "comfy/sd.py",
    "comfy/settings.json",
    "comfy/tests/kept.py",
}


def comfyui_at(folder):
    """A folder that looks like a ComfyUI that somebody uses."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def wheel_at(folder, name="carried_part", tag="py3-none-any"):
    """A wheel of one module, as an index has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "answer = 42  # " + "padding " * 100)
        wheel.writestr(f"{name}/data", random.Random(0).randbytes(100_000))
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Packs a small file and returns it; the options are those of `carry`."""

    def make(*options, tag="py3-none-any"):
        host = setup_host.Host(comfyui_at(tmp_path / "comfyui"), Path(sys.executable), ours=True)
        names = {"carried-part": ["carried_part"], "video-part": ["video_part"], "torch": ["torch"]}
        packages = {name: {**package(), "modules": modules} for name, modules in names.items()}

        def download(_python, arguments, *_):
            assert "carried-part==1.0" in arguments and not any("torch" in argument for argument in arguments)
            folder = Path(arguments[arguments.index("-d") + 1])
            wheel_at(folder, tag=tag)
            if "video-part==1.0" in arguments:
                wheel_at(folder, "video_part")

        with monkeypatch.context() as here:
            here.setattr(setup_host, "prepare", lambda: host)
            here.setattr(carry, "probe", lambda _: {"python": THIS, "packages": packages})
            here.setattr(carry, "run_pip", download)
            file = tmp_path / "out" / "carried.tar.xz"
            assert dev.main(["carry", str(file), *options]) == 0
        return file

    return make


def test_the_source_is_packed_without_what_is_the_users(packed):
    with tarfile.open(packed()) as archive:
        names = {member.name for member in archive if member.isfile()}
    assert {name[len("carried/ComfyUI/") :] for name in names if "/ComfyUI/" in name} == KEPT
    assert "carried/manifest.json" in names


def test_a_wheel_is_stored_for_xz_with_its_content_as_it_was(tmp_path):
    wheel = wheel_at(tmp_path / "fetched")
    carry.store(wheel, tmp_path / wheel.name)
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(tmp_path / wheel.name) as after:
        assert before.namelist() == after.namelist()
        assert all(before.read(name) == after.read(name) for name in before.namelist())
        assert {entry.compress_type for entry in after.infolist()} == {zipfile.ZIP_STORED}


def test_what_was_written_says_how_it_is_used(packed, capsys):
    packed("--stand-in", "video_part")
    said = capsys.readouterr().err
    assert "ComfyUI 9.8.7" in said and "place of video-part" in said and "has to have torch" in said
    assert "COMFYUI_CARRIED=carried.tar.xz python3 dev.py bench speed" in said
    inside = carry.summary(Path(dev.__file__), {"comfyui": "9", "python": THIS}, carry.Choice((), (), ()))
    assert "COMFYUI_CARRIED=dev.py python3" in inside and "stand-in" not in inside


SCRIPT = """
import importlib.metadata, json, os, sys
import carried_part, video_part
from video_part.container import Reader
try:
    Reader.open("file")
    used = None
except ImportError as error:
    used = str(error)
print(json.dumps({
    "answer": carried_part.answer, "version": importlib.metadata.version("carried-part"), "last": sys.path[-1],
    "arguments": sys.argv[1:], "main": __name__, "used": used, "annotation": str(Reader | None),
    "dunder": hasattr(video_part, "__wrapped__"), "comfyui": os.environ["COMFYUI_PATH"],
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="installs a wheel")
def test_the_bench_runs_on_what_was_carried(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_CARRIED", str(packed("--stand-in", "video-part")))
    host = carried.host()
    assert (
        host.python == Path(sys.executable) and (host.comfyui / "comfy" / "sd.py").read_text() == FILES["comfy/sd.py"]
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = host.script(script, "speed", "--rounds")
    ran = subprocess.run(command, env=host.environment(), capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert "a stand-in was carried for video_part" in found.pop("used") and "Reader" in found.pop("annotation")
    assert found == {
        "answer": 42, "version": "1.0", "last": str(host.tools), "arguments": ["speed", "--rounds"], "main": "__main__",
        "dunder": False, "comfyui": str(host.comfyui),
    }  # fmt: skip
    monkeypatch.setattr(carried, "run_pip", lambda *_: pytest.fail("installed again"))
    monkeypatch.setattr(carried, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert carried.host() == host


def test_what_the_machine_has_is_not_installed(packed, monkeypatch):
    monkeypatch.setenv("COMFYUI_CARRIED", str(packed()))
    has = {"python": THIS, "packages": ["torch", "pip", "carried-part", "video-part"], "torch": True}
    monkeypatch.setattr(carried, "ask", lambda _: has)
    host = carried.host()
    assert host.tools is None
    assert host.script(Path("run.py"), "speed") == [sys.executable, "run.py", "speed"]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="installs a wheel")
def test_wheels_of_another_system_leave_nothing_behind(packed, monkeypatch):
    monkeypatch.setenv("COMFYUI_CARRIED", str(packed(tag="cp39-cp39-win32")))
    for _ in range(2):
        with pytest.raises(SetupError) as error:
            carried.host()
        assert "is not a supported wheel on this platform" in str(error.value) and "--platform" in str(error.value)
    (unpacked,) = (provision.cache_folder() / "carried").iterdir()
    assert (unpacked / "manifest.json").exists()


def test_what_may_be_stood_in_for_is_named_beside_what_is_missing(tmp_path):
    manifest = {"there": ["torch", "torchaudio"], "python": THIS, "wheels": {}, "stand_ins": {}}
    found = {"python": THIS, "packages": [], "torch": True}
    with pytest.raises(SetupError) as error:
        carried.missing(manifest, found, Path(sys.executable), tmp_path / "carried.tar.xz")
    assert "has no torchaudio" in str(error.value) and "--stand-in torchaudio" in str(error.value)


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ({"python": "2.7"}, ("made for Python " + THIS, "is Python 2.7", "--python 2.7")),
        ({"packages": [], "torch": False}, ("has no torch", "with a Python that has torch")),
        ({"packages": ["carried-part"]}, ("lacks video-part", "--without it", "python dev.py carry")),
    ],
)
def test_a_machine_that_cannot_use_it_is_told_why(packed, monkeypatch, has, said):
    monkeypatch.setenv("COMFYUI_CARRIED", str(packed("--without", "Video.Part")))
    fits = {"python": THIS, "packages": ["carried-part", "video-part"], "torch": True}
    monkeypatch.setattr(carried, "ask", lambda _: fits)
    assert carried.host().tools is None
    monkeypatch.setattr(carried, "ask", lambda _: {**fits, **has})
    with pytest.raises(SetupError) as error:
        carried.host()
    message = str(error.value).replace(THIS, "").replace("2.7", "")
    assert message.endswith(".") and "\n" not in message and all(part in str(error.value) for part in said)


def other_format(file):
    text = json.dumps({"format": 0})
    (file.parent / "manifest.json").write_text(text)
    with tarfile.open(file, "w:xz") as archive:
        archive.add(file.parent / "manifest.json", "carried/manifest.json")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "which is no file"),
        (lambda file: file.write_text("no archive"), "is damaged, or not what"),
        (lambda file: file.write_bytes(file.read_bytes()[:-500]), "is damaged, or not what"),
        (lambda file: file.write_bytes(file.read_bytes()[:300] + bytes(200) + file.read_bytes()[500:]), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9999] + bytes(9999)), "is damaged"),
        (other_format, "written by another version"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_leaves_nothing(packed, monkeypatch, harm, said):
    file = packed()
    harm(file)
    monkeypatch.setenv("COMFYUI_CARRIED", str(file))
    with pytest.raises(SetupError) as error:
        carried.host()
    assert said in refusal(error) and "python dev.py carry" in refusal(error)
    folder = provision.cache_folder() / "carried"
    assert not folder.exists() or not list(folder.iterdir())


def test_only_the_bench_uses_it_and_only_on_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMFYUI_CARRIED", str(tmp_path))
    for command in (["demo"], ["test"], ["carry", str(tmp_path / "file")]):
        assert dev.main(command) == 1 and "unset it for other commands" in capsys.readouterr().err
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert dev.main(["bench", "speed"]) == 1 and "both set" in capsys.readouterr().err


def test_the_bench_is_started_in_what_was_carried(packed, monkeypatch):
    monkeypatch.setenv("COMFYUI_CARRIED", str(packed()))
    monkeypatch.setattr(carried, "missing", lambda *_: [])
    ran = []
    monkeypatch.setattr(dev, "run", lambda command, host, cwd: ran.append((command, host)) or 0)
    assert dev.main(["bench", "speed", "--device", "cuda"]) == 0
    ((command, host),) = ran
    assert command[1:] == [str(dev.ROOT / "bench" / "run.py"), "speed", "--device", "cuda"]
    assert host.comfyui.parent.parent == provision.cache_folder() / "carried"
