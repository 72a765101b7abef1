"""The errors of the hub: one base, a family per HTTP status, a stable key given by whoever raises.

The API turns them into the one error body (`api.app`), the command line into one line and an exit status (`cli`).
"""

from __future__ import annotations

from typing import ClassVar


class HubError(Exception):
    """`key` is stable and may be matched; `fields` are the values that the message speaks about.

    `retry_after_s` is when the same request may do better; None when that is not known.
    """

    status: ClassVar[int] = 500
    retry_after_s: float | None = None

    def __init__(self, key: str, message: str, /, **fields: object) -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.fields = fields


class BadRequest(HubError):
    """The request does not have the form it must have."""

    status = 400


class Unauthorized(HubError):
    """No credential, or one that is not known or no longer valid."""

    status = 401


class Forbidden(HubError):
    """It is known who asks, and they may not."""

    status = 403


class NotFound(HubError):
    """There is nothing of that name."""

    status = 404


class Conflict(HubError):
    """The request is well formed, and what is there does not allow it."""

    status = 409


class PreconditionFailed(HubError):
    """The request names a state of the resource in which it is no more."""

    status = 412


class PreconditionRequired(HubError):
    """The request must name the state of the resource that it changes."""

    status = 428


class TooLarge(HubError):
    """More bytes than the stated limit."""

    status = 413


class Unprocessable(HubError):
    """The request is well formed, and its content cannot be used."""

    status = 422


class TooMany(HubError):
    """More requests than the stated rate. `retry_after_s` is when the next one is taken."""

    status = 429
    retry_after_s: float

    def __init__(self, key: str, message: str, /, retry_after_s: float, **fields: object) -> None:
        super().__init__(key, message, retry_after_s=retry_after_s, **fields)
        self.retry_after_s = retry_after_s


class Unavailable(HubError):
    """Something that the hub needs is not there right now; the same request may succeed later."""

    status = 503
