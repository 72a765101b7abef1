"""The libraries of a script as files of its module: resolved, locked, unpacked. Called by `model_module`.

Unpacked here and not on the device: there, every file is verified by its digest like the rest of the module, nothing
has to be opened, written or run at the installation, and a version that changes one library sends only that one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

from cloud_hub.building.requirements import MAX_TEXT_BYTES, Wanted, read_wanted, refused
from cloud_hub.building.resolve import Resolver, Target, pinned
from cloud_hub.errors import Unprocessable
from firmware_profiles.profile import DeviceProfile
from modules.bundle import check_path
from modules.environment import FOLDER, LOCK_PATH
from modules.errors import ChunkError

MAX_FILES = 15_000  # about 230 bytes of a manifest each
_LEFT = frozenset({"INSTALLER", "RECORD", "REQUESTED", "uv_cache.json", "direct_url.json"})  # what the installer notes
_IMPORTED = (".py", ".so")


def target_of(profile: DeviceProfile, python: str, resolver: Resolver) -> Target:
    """`python` is the request's word, or empty."""
    settings = resolver.settings
    return Target(profile.arch, python or profile.python or settings.python, settings.glibc)


async def environment(text: Path, target: Target, resolver: Resolver, folder: Path) -> dict[str, Path]:
    """The files by module path, the lock among them. `folder` may be written to.

    Raises Unprocessable (`environment-invalid`, `environment-unresolved`, `environment-platform`,
    `environment-too-large`) and Unavailable `index-unreachable`.
    """
    wanted = await asyncio.to_thread(_wanted, text, target)
    lock = _with_hashes(await resolver.lock(wanted, target, folder), wanted.hashes)
    path = folder / LOCK_PATH
    path.write_text(f"{_heading(target, wanted)}{lock}")
    found = {LOCK_PATH: path}
    if pinned(lock):
        unpacked = await resolver.unpack(path, target, folder)
        found |= await asyncio.to_thread(_files, unpacked, resolver.settings.max_mib)
    return found


def _wanted(text: Path, target: Target) -> Wanted:
    with text.open("rb") as file:
        return read_wanted(file.read(MAX_TEXT_BYTES + 1), target.python)


def _heading(target: Target, wanted: Wanted) -> str:
    """Comments of the lock file: what it is for, and what is not in it."""
    lines = [f"# Python {target.python}, {target.platform}"]
    lines += [f"# asked: {line}" for line in wanted.lines]
    lines += [f"# the device serves by itself: {name}" for name in wanted.left_out]
    return "\n".join(lines) + "\n"


def _with_hashes(lock: str, given: Mapping[str, frozenset[str]]) -> str:
    """Of a library whose publisher named hashes, only those stay."""
    kept: list[str] = []
    for name, hashes, first in _locked(lock):
        allowed = given.get(name)
        left = sorted(hashes & allowed if allowed is not None else hashes)
        if not left:
            raise refused(f"{first}: none of its wheels has a hash that the list names")
        kept.append(" \\\n    ".join([first, *(f"--hash={one}" for one in left)]))
    return "".join(f"{line}\n" for line in kept)


def _locked(lock: str) -> Iterator[tuple[str, frozenset[str], str]]:
    """Name, hashes and requirement of each library."""
    for line in lock.replace("\\\n", " ").splitlines():
        words = line.split("#")[0].split()
        if words:
            hashes = frozenset(word.removeprefix("--hash=") for word in words if word.startswith("--hash="))
            first = " ".join(word for word in words if not word.startswith("--hash="))
            yield canonicalize_name(re.split(r"[=<>!~\[; ]", first)[0]), hashes, first


def _files(unpacked: Path, max_mib: int) -> dict[str, Path]:
    """What is imported or read by what is; no scripts, and no code for an interpreter's start-up."""
    found: dict[str, Path] = {}
    size = 0
    for path in sorted(path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()):
        inside = path.relative_to(unpacked)
        if not _is_wanted(inside):
            continue
        size += path.stat().st_size
        if size > max_mib * 2**20 or len(found) >= MAX_FILES:
            limit = f"{max_mib} MiB (building.max_mib) and {MAX_FILES} files"
            raise Unprocessable("environment-too-large", f"environment: expected at most {limit}; nothing was built")
        if (name := _plain(inside)) is not None:
            found[name] = path
    return found


def _is_wanted(inside: Path) -> bool:
    if inside.parts[0] == "bin" or inside.suffix == ".pth" or inside.name.startswith(".lock"):
        return False
    return not (inside.parent.name.endswith(".dist-info") and inside.name in _LEFT)


def _plain(inside: Path) -> str | None:
    """The path in the module; None for a file whose name no module may have, and that nothing imports."""
    parts = list(inside.parts)
    if parts[0].endswith(".dist-info"):
        parts[0] = parts[0].replace("+", "_").replace("!", "_")  # a local version; it is found by the name before it
    path = "/".join((FOLDER, *parts))
    try:
        return check_path(path)
    except ChunkError as error:
        if inside.suffix in _IMPORTED:
            raise Unprocessable("environment-path", f"environment: {inside}: {error}; nothing was built") from error
        return None
