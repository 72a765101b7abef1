"""What the hub may ask a device to do beside its desired state: commands by id, with an end. Not signed: a command can
only ask for what the device's signed policy allows, and the device says why when it does not.

`Command` goes on down/command, at least once; a device does each id once, and answers with a CommandResult in its event
stream. A kind that it does not know is refused, not ignored. Pure.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from modules.errors import MALFORMED, MessageError

SAMPLES = "samples"
VERSION = 1
MAX_COMMAND_ID = 32
MAX_BODY_BYTES = 16 * 1024
MAX_ASKED = 500  # samples of one command
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


class CommandResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a command ended. `key` is stable where it was not done; `count` things were sent of those `found`."""

    id: str
    outcome: Outcome
    key: str = ""
    text: str = ""
    count: int = 0
    found: int = 0


_asked: msgspec.msgpack.Decoder[AskSamples] = msgspec.msgpack.Decoder(AskSamples)


def encode_asked(asked: AskSamples) -> bytes:
    """The body of a command of the kind `samples`."""
    return msgspec.msgpack.encode(asked)


def decode_asked(body: bytes) -> AskSamples:
    """Raises MessageError."""
    try:
        return _asked.decode(body)
    except (*MALFORMED, ValueError) as error:
        raise MessageError(f"samples asked for: {error}") from error
