"""What the hub may ask a device to do beside its desired state: commands by id, with an end. Not signed: a command can
only ask for what the device's signed policy allows, and the device says why when it does not.

`Command` goes on down/command, at least once; a device does each id once, and answers with a CommandResult in its event
stream. A kind that it does not know is refused, not ignored. Pure.
"""

from __future__ import annotations

import re
from typing import Literal, TypeVar

import msgspec

from modules.errors import MALFORMED, MessageError

SAMPLES = "samples"
LOGS = "logs"
RESTART = "restart"
DIAGNOSTICS = "diagnostics"
Kind = Literal["samples", "logs", "restart", "diagnostics"]
VERSION = 1
MAX_COMMAND_ID = 32
MAX_BODY_BYTES = 16 * 1024
MAX_ASKED = 500  # samples of one command
MAX_LINES = 20_000  # of logs that one command may ask for
MAX_RESULT_BYTES = 4 * 1024 * 1024  # of what a command brings, before it is packed
MAX_INLINE_BYTES = 8 * 1024  # packed; what is larger comes as pieces of a blob, for hubs take events of 16 KiB
COMMAND_ID = r"[a-z0-9][a-z0-9-]{0,31}"

Outcome = Literal["done", "refused", "failed", "expired"]


class Command(msgspec.Struct, frozen=True, tag="command", omit_defaults=True):
    """down/command: do this, once, before `expires_at` (seconds since the epoch; devices compare with their own clock).

    `body` is the MessagePack of what belongs to `kind`, in its `version`.
    """

    id: str
    kind: str
    expires_at: float
    body: bytes = b""
    version: int = VERSION

    def __post_init__(self) -> None:
        if not re.fullmatch(COMMAND_ID, self.id):
            raise ValueError(f"command: expected an id like {COMMAND_ID}, got {self.id[:40]!r}")
        if len(self.body) > MAX_BODY_BYTES or len(self.kind) > MAX_COMMAND_ID:
            raise ValueError(f"command {self.id}: expected a body of at most {MAX_BODY_BYTES} bytes and a short kind")


class AskSamples(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `samples`: rows of the module's ring, the newest `limit` of those that fit all that is said.

    `id` is a prediction's, `first` and `last` are numbers of rows (both count), `stratum` a name of the policy's, times
    are by the device's clock, `since` counts and `until` does not. `version` is the module's (0: what runs).
    """

    module: str
    id: str = ""
    first: int = 0
    last: int = 0
    stratum: str = ""
    since: float = 0.0
    until: float = 0.0
    limit: int = 100
    version: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_ASKED:
            raise ValueError(f"limit: expected 1 to {MAX_ASKED}, got {self.limit}")
        if min(self.first, self.last) < 0 or (self.last and self.first > self.last):
            raise ValueError(f"rows: expected the first up to the last, got {self.first} to {self.last}")
        if self.until and self.since >= self.until:
            raise ValueError(f"times: expected since before until, got {self.since} and {self.until}")


class AskLogs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `logs`: the newest `limit` lines that fit all that is said, of a module or (empty) of the agent itself.

    Times are by the device's clock, `since` counts and `until` does not; `last_s` are seconds before it is answered (0:
    all). `level` is the lowest that is sent. Lines are left out from the oldest on until they take at most `max_bytes`.
    """

    module: str = ""
    last_s: float = 0.0
    since: float = 0.0
    until: float = 0.0
    level: Literal["debug", "info", "warning", "error"] = "debug"
    limit: int = 1000
    max_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LINES:
            raise ValueError(f"limit: expected 1 to {MAX_LINES} lines, got {self.limit}")
        if not 1024 <= self.max_bytes <= MAX_RESULT_BYTES:
            raise ValueError(f"max_bytes: expected 1024 to {MAX_RESULT_BYTES}, got {self.max_bytes}")
        if self.last_s < 0 or (self.until and self.since >= self.until):
            got = f"{self.since}, {self.until} and {self.last_s}"
            raise ValueError(f"times: expected since before until, and last_s of 0 or more, got {got}")


class AskRestart(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `restart`: the worker of a module that the device shall serve, or (empty) the agent itself."""

    module: str = ""


class AskDiagnostics(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `diagnostics`: how the device does, with the last `log_lines` of the agent and of each module."""

    log_lines: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.log_lines <= MAX_LINES:
            raise ValueError(f"log_lines: expected 0 to {MAX_LINES}, got {self.log_lines}")


Asked = AskSamples | AskLogs | AskRestart | AskDiagnostics


class CommandResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a command ended. `key` is stable where it was not done; `count` things were sent of those `found`.

    What it brings is packed with gzip: `size` bytes with the digest `sha256`, here as `data` where they are few, else
    on their way in the blob stream.
    """

    id: str
    outcome: Outcome
    key: str = ""
    text: str = ""
    count: int = 0
    found: int = 0
    sha256: str = ""
    size: int = 0
    data: bytes = b""


_Asked = TypeVar("_Asked", AskSamples, AskLogs, AskRestart, AskDiagnostics)


def encode_asked(asked: Asked) -> bytes:
    """The body of a command."""
    return msgspec.msgpack.encode(asked)


def decode_asked(body: bytes) -> AskSamples:
    """Raises MessageError."""
    return decode_body(body, AskSamples)


def decode_body(body: bytes, kind: type[_Asked]) -> _Asked:
    """Of a command of that kind. Raises MessageError."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (*MALFORMED, ValueError) as error:
        raise MessageError(f"what a command asks for ({kind.__name__}): {error}") from error
