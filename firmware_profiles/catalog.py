"""The devices we know by name: the built-in `catalog.toml`, and a user's folder of more.

Reads files, so callers pass the folder; nothing is cached here. Called by the hub (target profiles) and by the
agent (the profile it enrolled as).
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import msgspec

from firmware_profiles.profile import DeviceProfile


class CatalogError(ValueError):
    """A profile file that cannot be read as one."""


def built_in() -> dict[str, DeviceProfile]:
    """The profiles that ship with Mooring, by name."""
    return _parse(files("firmware_profiles").joinpath("catalog.toml").read_text(), "catalog.toml")


def load(folder: Path | None = None) -> dict[str, DeviceProfile]:
    """The built-in profiles, with those of `folder/*.toml` added or put in their place.

    Raises CatalogError with the file's name and the field that does not fit.
    """
    profiles = built_in()
    for path in sorted(folder.glob("*.toml")) if folder is not None and folder.is_dir() else []:
        profiles.update(_parse(path.read_text(), path.name))
    return profiles


def _parse(text: str, source: str) -> dict[str, DeviceProfile]:
    try:
        tables = tomllib.loads(text)
        return {name: msgspec.convert({"name": name, **fields}, DeviceProfile) for name, fields in tables.items()}
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, TypeError) as error:
        raise CatalogError(f"{source}: {error}") from error
