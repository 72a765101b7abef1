"""A release of the agent: a model version whose files are wheels. What the hub can see of them without running any.

Called by `packaging`. Devices unpack them and try them out (`agent.release`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from cloud_hub.errors import Unprocessable
from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile
from modules.targets import AGENT_MODULE

OURS = "mooring"
MAX_UNPACKED_BYTES = 4 * 1024**3  # as much as a device unpacks


def is_release(model: ModelVersion) -> bool:
    """Whether this is the agent itself: the name is kept for it."""
    return model.name == AGENT_MODULE


def check_release(sources: Mapping[str, Path], profile: DeviceProfile) -> int:
    """The size of everything unpacked, in bytes. Raises Unprocessable `wheel-refused`, naming the file."""
    unpacked = 0
    names = set()
    for path, source in sources.items():
        names.add(_check_name(path, profile))
        unpacked += _check_content(path, source)
    if OURS not in names:
        raise Unprocessable("wheel-refused", f"expected the wheel of {OURS} among the files, got {sorted(names)}")
    if unpacked > MAX_UNPACKED_BYTES:
        text = f"expected at most {MAX_UNPACKED_BYTES} bytes unpacked, got {unpacked}"
        raise Unprocessable("wheel-refused", text)
    return unpacked


def _check_name(path: str, profile: DeviceProfile) -> str:
    try:
        name, _, _, tags = parse_wheel_filename(PurePosixPath(path).name)
    except InvalidWheelFilename as error:
        raise Unprocessable("wheel-refused", f"{path}: expected only wheels in a release of the agent") from error
    if not any(_fits(tag, profile) for tag in tags):
        text = f"{path}: expected a wheel for {profile.os} on {profile.arch}"
        raise Unprocessable("wheel-refused", text)
    return str(name)


def _fits(tag: Tag, profile: DeviceProfile) -> bool:
    return tag.platform == "any" or (profile.os in tag.platform and tag.platform.endswith(profile.arch))


def _check_content(path: str, source: Path) -> int:
    """Bytes unpacked, as its directory says. Raises Unprocessable."""
    try:
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                    raise Unprocessable("wheel-refused", f"{path}: {name[:200]!r} does not stay inside its folder")
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Unprocessable("wheel-refused", f"{path}: {error}") from error
