"""Releases of Mooring as wheels: the previous one, kept beside the tests, and changed ones of what is here."""

from __future__ import annotations

import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

from agent.release.unpack import unpack

PREVIOUS = "0.1.0"
_REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = ("agent", "modules", "firmware_profiles")


class OtherRelease:
    """Another release in an environment of its own, over the packages that are installed here."""

    def __init__(self, folder: Path) -> None:
        # Not in this folder: a child that it starts by `-m` would be ours.
        self._python = ("env", "-C", str(folder), "-u", "PYTHONPATH", str(folder / "bin" / "python"), "-P")

    @property
    def agent(self) -> tuple[str, ...]:
        """What to call for `mooring-agent`."""
        return (*self._python, "-m", "agent.cli")

    @property
    def hub(self) -> tuple[str, ...]:
        """What to call for `mooring-hub`."""
        return (*self._python, "-c", "from cloud_hub.cli import main; main()")


def previous_release(folder: Path) -> OtherRelease:
    unpack(_REPOSITORY / "tests" / "releases", folder, [sysconfig.get_path("purelib")])
    return OtherRelease(folder)


def agent_wheel(folder: Path, version: str, changed: Mapping[str, bytes] | None = None) -> Path:
    """The agent as it is here, as a wheel of this version, with some files changed."""
    path = folder / f"mooring-{version}-py3-none-any.whl"
    information = f"mooring-{version}.dist-info"
    files = {f"{information}/METADATA": f"Metadata-Version: 2.1\nName: mooring\nVersion: {version}\n".encode()}
    for package in _PACKAGES:
        for source in sorted((_REPOSITORY / package).rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                files[source.relative_to(_REPOSITORY).as_posix()] = source.read_bytes()
    files["agent/__init__.py"] = f'"""The device."""\n\n__version__ = "{version}"\n'.encode()
    files |= changed or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
