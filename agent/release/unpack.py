"""Makes a release's environment from a slot's wheels: `python -m agent.release.unpack SLOT FOLDER PACKAGES...`.

A virtual environment of the same interpreter, into which the wheels are unpacked (PEP 427), before the installed
agent's packages: what a release does not bring it takes from there. Everything is on the disk before the mark that
says so. Runs in a process of its own, which `agent.release.environment` starts; the wheels are verified already.
"""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from agent.files import sync_folder, write_durably
from agent.release.pointer import COMPLETE

MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 100_000
_COPY_BYTES = 1024 * 1024
# Where a wheel's `.data` folders go, relative to the environment (PEP 427); headers and the rest are left out.
_DATA = {"purelib": "", "platlib": "", "scripts": "bin", "data": "."}


class WheelError(Exception):
    """A wheel is not one, or would write where it must not."""


def unpack(slot: Path, folder: Path, packages: list[str]) -> None:
    """Raises WheelError, OSError; then the folder is not marked as complete."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    target = _packages_of(folder)
    left = MAX_UNPACKED_BYTES
    for wheel in sorted(slot.glob("**/*.whl")):
        left = _unpack_wheel(wheel, folder, target, left)
    # `addsitedir` and not a bare path: an installed agent may itself be found through a .pth file.
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in packages)
    (target / "mooring-installed.pth").write_text(lines)
    compileall.compile_dir(str(target), quiet=2, force=True)
    _sync(folder)
    write_durably(folder / COMPLETE, b"", 0o644)


def _unpack_wheel(wheel: Path, folder: Path, target: Path, left: int) -> int:
    """The number of bytes that later wheels may still take."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise WheelError(f"{wheel.name}: expected at most {MAX_MEMBERS} files, got {len(members)}")
            for member in members:
                place = _place(wheel, member, folder, target)
                if place is not None:
                    left = _extract(archive, member, place, left)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise WheelError(f"{wheel.name}: {error}") from error
    return left


def _place(wheel: Path, member: zipfile.ZipInfo, folder: Path, target: Path) -> Path | None:
    """Where the member goes; None for folders and for what is left out. Raises WheelError."""
    path = PurePosixPath(member.filename)
    mode = member.external_attr >> 16
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or (mode and stat.S_ISLNK(mode)):
        raise WheelError(f"{wheel.name}: {member.filename[:200]!r} does not stay inside its folder")
    if member.is_dir():
        return None
    first, rest = path.parts[0], path.parts[1:]
    if not first.endswith(".data") or not rest:
        return target / path
    goes = _DATA.get(rest[0])
    if goes is None:
        return None
    return (folder / goes if goes else target).joinpath(*rest[1:])


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, left: int) -> int:
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, place.open("wb") as file:
        while block := source.read(_COPY_BYTES):
            left -= len(block)
            if left < 0:
                raise WheelError(f"expected wheels of at most {MAX_UNPACKED_BYTES} bytes unpacked, got more")
            file.write(block)
    executable = (member.external_attr >> 16) & 0o111 or place.parent.name == "bin"
    place.chmod(0o755 if executable else 0o644)
    return left


def _packages_of(folder: Path) -> Path:
    variables = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", variables))


def _sync(folder: Path) -> None:
    for path in _files(folder):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for root, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(root))
    sync_folder(folder.parent)


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if not path.is_symlink():
                yield path


if __name__ == "__main__":
    os.umask(0o022)  # workers of other users read it
    try:
        unpack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except (WheelError, OSError) as error:
        sys.exit(str(error))
