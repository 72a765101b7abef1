"""Which patches the hub builds, and what a build may cost: the table `[patches]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import msgspec


class PatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Patches from the versions that devices hold to those that they are to have, built in the background.

    A file of `min_bytes` to `max_bytes` gets one from each version that a device holds, and from the last `recent`
    versions. One is built at a time, in a process with `memory_mib` of memory of its own and `build_s` seconds, and is
    tried `attempts` times at most. All patches together take up to `total_mib` on disk; then no more are built. With
    `enabled` false none is built or offered.
    """

    enabled: bool = True
    min_bytes: int = 64 * 1024
    max_bytes: int = 4 * 1024**3
    recent: int = 2
    attempts: int = 3
    build_s: float = 3600.0
    memory_mib: int = 1024
    total_mib: int = 10_240

    def __post_init__(self) -> None:
        for name, least in (("min_bytes", 1), ("recent", 0), ("attempts", 1), ("memory_mib", 64), ("total_mib", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"patches.{name}: expected at least {least}, got {getattr(self, name)}")
        if self.max_bytes < self.min_bytes:
            raise ValueError(f"patches.max_bytes: expected at least {self.min_bytes}, got {self.max_bytes}")
        if not self.build_s > 0:
            raise ValueError(f"patches.build_s: expected a number above 0, got {self.build_s}")
