"""The errors of the operator's side: each message is one paragraph that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class OperatorError(Exception):
    """Base of this package. `key` is stable and may be matched."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


class ContextError(OperatorError):
    """It is not known, or not readable, which hub to talk to."""


class FileError(OperatorError):
    """A local file cannot be read or written."""


class HubUnreachable(OperatorError):
    """No answer: wrong address, hub not running, wrong certificate, or too slow."""


class HubLost(HubUnreachable):
    """The connection ended before the answer was there: the hub may have done what it was asked, or not."""


class Refused(OperatorError):
    """The hub answered with an error; key, message and `fields` are the hub's, `status` is HTTP's.

    `retry_after_s` is when the same request may do better; None where the hub does not say.
    """

    def __init__(
        self,
        status: int,
        key: str,
        message: str,
        fields: Mapping[str, object] = MappingProxyType({}),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(key, message)
        self.status = status
        self.fields = fields
        self.retry_after_s = retry_after_s


class VerificationFailed(OperatorError):
    """What was checked is not what was signed."""
