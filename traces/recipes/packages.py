"""Packages of text, fetched by name through their registries' own clients, and unpacked.

A package is asked for by registry and name alone; the client's own configuration says where it comes from. What came
is identified by version and sha256, which go into the provenance of every trace that was made from it.
"""

import hashlib
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Registry = Literal["debian", "npm"]


@dataclass(frozen=True)
class Package:
    """What to ask for, and the licence of the text it holds."""

    registry: Registry
    name: str
    licence: str


@dataclass(frozen=True)
class Unpacked:
    """A package as it came: `root` holds its files, the rest identifies it."""

    package: Package
    version: str
    sha256: str
    root: Path

    def provenance(self) -> dict[str, str]:
        """Registry, name, licence, version and sha256 of the archive, as plain strings."""
        return {**asdict(self.package), "version": self.version, "sha256": self.sha256}


def fetch(package: Package, folder: Path) -> Unpacked:
    """Download `package` below `folder` (once: a finished download is used again) and unpack it.

    Raises:
        CalledProcessError: the registry's client fails.
    """
    home = folder / package.registry / package.name.replace("/", "-").lstrip("@")
    root = home / "files"
    if not (home / "done").exists():
        root.mkdir(parents=True, exist_ok=True)
        archive = _download(package, home)
        if package.registry == "debian":
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)  # noqa: S603, S607
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
        (home / "done").write_text(archive.name)
    archive = home / (home / "done").read_text()
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Unpacked(package, _version(package, archive), sha256, root)


def _download(package: Package, home: Path) -> Path:
    client = {"debian": ["apt-get", "download"], "npm": ["npm", "pack", "--silent"]}[package.registry]
    suffix = {"debian": "*.deb", "npm": "*.tgz"}[package.registry]
    subprocess.run([*client, package.name], cwd=home, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    (archive,) = home.glob(suffix)
    return archive


def _version(package: Package, archive: Path) -> str:
    if package.registry == "debian":
        command = ["dpkg-deb", "-f", str(archive), "Version"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
    plain = package.name.replace("/", "-").lstrip("@")
    return archive.name.removeprefix(f"{plain}-").removesuffix(".tgz")
