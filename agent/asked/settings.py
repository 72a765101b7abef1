"""What commands of the hub this device does. A part of `agent.config`."""

from __future__ import annotations

import msgspec

from modules.commands import Kind


class CommandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hub may ask of this device by a command; commands are not signed, so this file has the last word.

    `refuse` names kinds that are never done here: samples, logs, restart, diagnostics. `log_bytes` is what the agent
    keeps of its own log, for `logs` and `diagnostics`: two files of half of it (0 = nothing is kept).
    """

    refuse: tuple[Kind, ...] = ()
    log_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.log_bytes != 0 and not 8192 <= self.log_bytes <= 256 * 1024 * 1024:
            raise ValueError(f"log_bytes: expected 0, or 8192 to 268435456 bytes, got {self.log_bytes}")
