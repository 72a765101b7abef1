"""What can go wrong between an application and a module. Every exception of this package is a `ClientError`."""

from __future__ import annotations


class ClientError(Exception):
    """Base of this package."""


class Refused(ClientError):
    """The request is not answered as asked; asked again unchanged it will be refused again, but for 503.

    `status` is as in HTTP: 400 wrong input, 403 not this user, 413 too large, 429 and 503 too much at once (try again),
    500 the model failed, 504 it took longer than the module may. The text says what was expected and what came.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Gone(ClientError):
    """Nobody serves the module here, or who did has ended and no other has taken its place."""


class Timeout(ClientError, TimeoutError):
    """No answer within the client's own deadline. Whether the model ran is not known."""
