"""Scopes: whose looks they are. A device's id, "*" for the fleet, or "key=value" for devices that have that in common.

No device id holds "=", so the three cannot be taken for each other. Used by `ingest` to count windows, by `alerts` and
the API to name what they speak of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

FLEET: Final = "*"
MAX_SCOPE: Final = 264  # a tag's name, "=", and its value; see `query`


@dataclass(frozen=True)
class DeviceTraits:
    """What a device may have in common with others. `agent` and `os` are as it last reported, empty before."""

    profile: str
    tags: Mapping[str, str]
    agent: str = ""
    os: str = ""


def scopes_of(device: str, traits: DeviceTraits | None, group_by: Collection[str]) -> tuple[str, ...]:
    """Every scope that a window of the device counts for: itself, the fleet, and its groups."""
    return (device, FLEET, *(groups_of(traits, group_by) if traits is not None else ()))


def groups_of(traits: DeviceTraits, group_by: Collection[str]) -> tuple[str, ...]:
    """Groups in the order of `group_by`, without those that the device has no value for."""
    built_in = {"profile": traits.profile, "agent": traits.agent, "os": traits.os}
    values = ((name, built_in.get(name, traits.tags.get(name, ""))) for name in group_by)
    return tuple(dict.fromkeys(f"{name}={value}" for name, value in values if value))


def is_group(scope: str) -> bool:
    """Whether it means several devices that have something in common."""
    return "=" in scope


def is_device(scope: str) -> bool:
    return scope != FLEET and not is_group(scope)


def named(scope: str) -> str:
    """As people and alerts write it: fleet, device:<id> or group:<key=value>."""
    if scope == FLEET:
        return "fleet"
    return f"group:{scope}" if is_group(scope) else f"device:{scope}"


def of_name(name: str) -> str:
    """The scope that `named` gave this name."""
    return FLEET if name == "fleet" else name.partition(":")[2]
