"""How this hub keeps its secrets: private files, keys sealed to the machine, and nothing of the memory on a disk.

A key that is sealed lies in `sealed/` as an encrypted credential of systemd's; only systemd, starting the hub's unit,
opens it, into a folder in memory that $CREDENTIALS_DIRECTORY names. What is read there comes before the plain file.
Called by `cli`, `service`, `doctor` and `trust`. MOORING_ALLOW_DUMPS=1 leaves core files and the memory open.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict, Unavailable

ALLOW: Final = "MOORING_ALLOW_DUMPS"
CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
SEAL_TIMEOUT_S: Final = 60.0
_PR_SET_DUMPABLE: Final = 4
_PRIVATE: Final = (".key", ".pem", ".token")


def keep_memory_private(environment: Mapping[str, str] = os.environ) -> bool:
    """No core files, and no other process of this user looks inside. Whether it is so now."""
    if environment.get(ALLOW) == "1":
        return False
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)


def exposed(paths: HubPaths) -> list[Path]:
    """Keys and tokens of this hub that somebody else on this machine could read."""
    private = [path for path in paths.root.rglob("*") if path.suffix in _PRIVATE or path == paths.context]
    return [path for path in sorted(private) if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]


def check_private(paths: HubPaths) -> None:
    """Raises Conflict `key-exposed`."""
    for path in exposed(paths):
        mode = stat.S_IMODE(path.stat().st_mode)
        raise Conflict(
            "key-exposed",
            f"{path}: expected a file that only its owner can read (0600), got {mode:04o}; nothing was started: "
            "chmod 600 it, and replace it if somebody may have read it",
        )


def opened(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where to read a private file: as systemd has opened it, or the file itself."""
    folder = environment.get(CREDENTIALS, "")
    inside = Path(folder) / path.name
    return inside if folder and inside.is_file() else path


def is_opened(path: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd guards it. It shows such files with a mode of its own, so that is not judged."""
    folder = environment.get(CREDENTIALS, "")
    return bool(folder) and path.is_relative_to(folder)


def sealed(path: Path, paths: HubPaths) -> Path:
    """Where the sealed form of a private file lies, or would."""
    return paths.root / "sealed" / f"{path.name}.cred"


def seal(paths: HubPaths, private: list[Path]) -> list[Path]:
    """Seals each to this machine (its TPM where it has one), proves that it opens, then removes the plain files.

    Returns the sealed files. Raises Unavailable `seal-unavailable` without systemd-creds, Conflict `seal-failed`; the
    plain files are then all still there.
    """
    program = shutil.which("systemd-creds")
    if program is None:
        raise Unavailable(
            "seal-unavailable", "no systemd-creds on this machine (systemd 250 or newer); nothing changed"
        )
    made: list[Path] = []
    (paths.root / "sealed").mkdir(mode=0o700, exist_ok=True)
    for path in private:
        place = sealed(path, paths)
        _run(program, "encrypt", f"--name={path.name}", str(path), str(place))
        place.chmod(0o600)
        if _run(program, "decrypt", f"--name={path.name}", str(place), "-") != path.read_bytes():
            raise Conflict("seal-failed", f"{place} does not open to what {path} holds; the plain files stay")
        made.append(place)
    for path in private:
        path.unlink()
    return made


def _run(program: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=SEAL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Conflict("seal-failed", f"{program}: {error}; the plain files stay") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise Conflict("seal-failed", f"systemd-creds {arguments[0]}: {said}; the plain files stay")
    return done.stdout
