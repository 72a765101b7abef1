"""The layer with what runs a module inside an image: our own code, and wheels where the base lacks them.

The same for every module built by this hub, so devices have it once. The code is read as files: the hub imports none of
it. Called by `images.build`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from modules.images import CODE_ROOT, SITE_ROOT, ImageError
from modules.layers import Content, Member, Piece, archive

PACKAGES = ("agent", "firmware_profiles", "modules")
_SUFFIXES = frozenset({".py", ".sql", ".toml", ".typed"})
MAX_WHEEL_FILES = 50_000
MAX_WHEEL_BYTES = 8 * 2**30
_READ = 1024 * 1024


def worker_layer(wheels: Iterable[Path], work: Path) -> tuple[Piece, ...]:
    """Its pieces; wheels are unpacked below `work`. Raises ImageError."""
    members = [Member(f"{CODE_ROOT}/{name}", (_content(path),)) for name, path in _code()]
    members += [Member(f"{SITE_ROOT}/{name}", (_content(path),)) for name, path in _unpacked(wheels, work)]
    return archive(members)


def _code() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # of a package at the top: nothing is imported
        if spec is None or not spec.submodule_search_locations:
            raise ImageError(f"the package {package} is not installed beside this hub; install mooring whole")
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                yield f"{package}/{path.relative_to(root).as_posix()}", path


def _unpacked(wheels: Iterable[Path], work: Path) -> list[tuple[str, Path]]:
    """Every file of the wheels by its name below site-packages; scripts and headers are left out."""
    found: dict[str, Path] = {}
    left = MAX_WHEEL_BYTES
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as files:
                for entry in files.infolist():
                    name = _site_name(wheel.name, entry.filename)
                    if not name or entry.is_dir():
                        continue
                    left -= entry.file_size
                    if left < 0 or len(found) >= MAX_WHEEL_FILES:
                        raise ImageError(f"{wheel.name}: the wheels unpack to more than fits into an image")
                    found[name] = work / "site" / name
                    found[name].parent.mkdir(parents=True, exist_ok=True)
                    with files.open(entry) as source, found[name].open("wb") as target:
                        shutil.copyfileobj(source, target, _READ)
        except (zipfile.BadZipFile, OSError) as error:
            raise ImageError(f"{wheel.name}: expected a wheel: {error}") from error
    return sorted(found.items())


def _site_name(wheel: str, name: str) -> str:
    """Where it goes, empty for what is not installed. Raises ImageError for a path that leads out."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ImageError(f"{wheel}: expected paths inside the wheel, got {name[:80]!r}")
    if path.parts and path.parts[0].endswith(".data"):
        return "/".join(path.parts[2:]) if len(path.parts) > 2 and path.parts[1] in ("purelib", "platlib") else ""
    return name


def _content(path: Path) -> Content:
    with path.open("rb") as file:
        return Content(str(path), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
