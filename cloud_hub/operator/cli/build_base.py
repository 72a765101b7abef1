"""The base image of a container as a file to upload: an archive as it is, or an image of the engine on this machine.

Called by `building`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud_hub.operator.errors import FileError

SAVE_DEADLINE_S = 1800.0


@contextmanager
def local_base(base: str) -> Iterator[Path | None]:
    """The archive; None where none was named, or one of a registry by its digest, which the hub gets by itself.

    Raises FileError `base-missing`.
    """
    if "@sha256:" in base:
        yield None
        return
    if not base or Path(base).is_file():
        yield Path(base) if base else None
        return
    with tempfile.TemporaryDirectory(prefix="mooring-base-") as folder:
        target = Path(folder) / "base.tar"
        _save(base, target)
        yield target


def _save(image: str, target: Path) -> None:
    """By the engine's own command, which whoever has images here has as well."""
    text = f"{image}: expected a tar archive, or an image of the engine on this machine"
    command = shutil.which("docker") or shutil.which("podman")
    if command is None:
        raise FileError("base-missing", f"{text}; and there is no engine's command (docker, podman)")
    arguments = [command, "image", "save", "-o", str(target), "--", image]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=SAVE_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FileError("base-missing", f"{text}: {error}") from error
    if done.returncode != 0:
        raise FileError("base-missing", f"{text}: {done.stderr.strip()[-500:]}")
