"""Groups of devices, and how much a device may send: the table `[monitoring]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_GROUPINGS: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class MonitoringSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What devices have in common is watched as one, so that one bad camera and a changed world look different.

    `group_by` names tags of devices, or `profile` (the device profile), `agent` (the agent's version) and `os`. Each
    window counts once more for each of them that its device has, so each costs room and time.

    Of one device at most `device_mib_per_day` of windows and samples are taken, a day's worth at once; what is beyond
    waits on the device, which forgets its oldest when it runs out of room.
    """

    group_by: tuple[str, ...] = ("site", "profile", "agent", "os")
    device_mib_per_day: float = 1024.0

    def __post_init__(self) -> None:
        if len(self.group_by) > MAX_GROUPINGS:
            raise ValueError(f"monitoring.group_by: expected at most {MAX_GROUPINGS} names, got {len(self.group_by)}")
        if not self.device_mib_per_day > 0:
            raise ValueError(f"monitoring.device_mib_per_day: expected above 0, got {self.device_mib_per_day}")
        for name in self.group_by:
            if not _NAME.fullmatch(name) or name == "id":
                raise ValueError(
                    f"monitoring.group_by: expected names of tags, profile, agent or os, got {name[:80]!r}"
                )
