"""What an operator asks devices for: logs, a restart, diagnostics; as the API takes it, as a device gets it. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from firmware_profiles.profile import NAME_PATTERN
from modules.commands import (
    DIAGNOSTICS,
    LOGS,
    MAX_LINES,
    MAX_RESULT_BYTES,
    AskDiagnostics,
    AskLogs,
    AskRestart,
    encode_asked,
)

DAY_S: Final = 86_400.0
MAX_LIFE_S: Final = 30 * DAY_S
MAX_BATCH: Final = 1000  # devices of one question
MEDIA: Final = {LOGS: "text/plain", DIAGNOSTICS: "application/json"}  # of what kinds bring
MAX_BROUGHT_BYTES: Final = MAX_RESULT_BYTES


class NewCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """For one `device`, or for those that match `target` (at most 1,000). A device may answer within `expires_s`.

    `module` is whose logs, or what is restarted; empty is the agent itself. Of logs come the newest `lines` lines of
    the last `last_s` seconds before the device answers (0: all), of at least `level`, in at most `max_bytes`; of
    diagnostics `lines` are of each log.
    """

    kind: Literal["logs", "restart", "diagnostics"]
    device: str = ""
    target: str = ""
    module: Annotated[str, msgspec.Meta(pattern=f"^$|{NAME_PATTERN}")] = ""
    last_s: Annotated[float, msgspec.Meta(ge=0, le=10 * 366 * DAY_S)] = 0.0
    lines: Annotated[int, msgspec.Meta(ge=1, le=MAX_LINES)] = 1000
    level: Literal["debug", "info", "warning", "error"] = "debug"
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=MAX_RESULT_BYTES)] = 256 * 1024
    expires_s: Annotated[float, msgspec.Meta(ge=1.0, le=MAX_LIFE_S)] = 3600.0

    def __post_init__(self) -> None:
        if bool(self.device) == bool(self.target):
            raise ValueError("expected a device, or a target that matches some")
        if self.kind == DIAGNOSTICS and self.module:
            raise ValueError("module: diagnostics are of the whole device")

    @property
    def asked(self) -> AskLogs | AskRestart | AskDiagnostics:
        if self.kind == LOGS:
            return AskLogs(self.module, self.last_s, level=self.level, limit=self.lines, max_bytes=self.max_bytes)
        return AskDiagnostics(self.lines) if self.kind == DIAGNOSTICS else AskRestart(self.module)

    @property
    def body(self) -> bytes:
        return encode_asked(self.asked)

    @property
    def words(self) -> dict[str, Any]:
        """What is asked, as people read it; without the module, which stands beside it."""
        said: dict[str, Any] = msgspec.to_builtins(self.asked)
        return {name: value for name, value in said.items() if name != "module"}
