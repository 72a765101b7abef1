"""Small libraries as wheels in a folder, so that tests of environments need no package index."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cloud_hub.building.resolve import Resolver
from cloud_hub.building_settings import NO_INDEX, BuildingSettings
from cloud_hub.config import HubConfig


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
) -> Path:
    """`name` with underscores, as in a wheel's name. Source: PEP 427."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    whole = {
        **files,
        f"{info}/METADATA": (metadata + "".join(f"Requires-Dist: {one}\n" for one in requires)).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    whole[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*whole, f"{info}/RECORD")).encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in whole.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return path


def write_source(folder: Path, name: str, version: str) -> Path:
    """A source archive whose build would leave a mark: nothing may build it."""
    path = folder / f"{name}-{version}.tar.gz"
    members = {
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(folder / 'was-built')!r}, 'w')\n".encode(),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
    }
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{member}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def shelf(folder: Path) -> Path:
    """Wheels that most tests need: `greeting` needs `politeness`, of which there is one per architecture."""
    folder.mkdir(exist_ok=True)
    hello = b"from politeness import word\ndef hello(name): return word() + ' ' + name\n"
    # Libraries are full of empty files, and of the same file twice.
    files = {"greeting/__init__.py": hello, "greeting/a/__init__.py": b"", "greeting/b/__init__.py": b""}
    write_wheel(folder, "greeting", "1.0", files, ["politeness>=1"])
    for arch in ("x86_64", "aarch64"):
        files = {"politeness/__init__.py": b"def word(): return 'hello'\n", f"politeness/core.{arch}.so": arch.encode()}
        write_wheel(folder, "politeness", "1.2", files, tag=f"cp311-cp311-manylinux_2_17_{arch}")
    write_wheel(folder, "numpy", "2.1.0", {"numpy/__init__.py": b"raise RuntimeError('this is not the device's')\n"})
    return folder


def shelve(hub: Path, folder: Path) -> None:
    """Lets a hub that was initialised find libraries on such a shelf, and nowhere else."""
    building = BuildingSettings(index_url=NO_INDEX, find_links=(str(shelf(folder)),))
    msgspec.structs.replace(HubConfig.load(hub), building=building).write(hub)


def resolver(folder: Path, **settings: object) -> Resolver:
    """One that knows this folder and nothing else."""
    return Resolver(BuildingSettings(index_url=NO_INDEX, find_links=(str(folder),), **settings))  # type: ignore[arg-type]
