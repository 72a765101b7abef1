"""How large a data set may be: the table `[datasets]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import msgspec


class DatasetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set has at most `max_rows` rows, and its rows at most `max_mib` before they are compressed."""

    max_rows: int = 1_000_000
    max_mib: int = 4096

    def __post_init__(self) -> None:
        for name, value, most in (("max_rows", self.max_rows, 10**9), ("max_mib", self.max_mib, 2**20)):
            if not 1 <= value <= most:
                raise ValueError(f"datasets.{name}: expected 1 to {most}, got {value}")
