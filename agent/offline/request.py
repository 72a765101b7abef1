"""What the command and the agent say to each other about an installation: two small files and a ring.

The request is on the disk before the agent is rung, and goes only after the outcome is there; so an installation that a
power cut interrupts is taken up at the next start. Whoever may write the state directory may ask. Used by
`agent.offline.install` (the agent) and `agent.offline.command` (the command).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from agent.errors import StoreError
from agent.files import sync_folder, write_durably

FOLDER: Final = "install"
REQUEST, OUTCOME, RING = "request.json", "outcome.json", "ring"
MAX_BYTES = 64 * 1024

OutcomeState = Literal["verifying", "installing", "installed", "nothing-new", "refused", "failed", "interrupted"]
FINAL: Final = frozenset({"installed", "nothing-new", "refused", "failed", "interrupted"})


class Request(msgspec.Struct, frozen=True):
    """Install from `folder`. `id` tells this request from others."""

    id: str
    folder: str


class Outcome(msgspec.Struct, frozen=True):
    """How far a request is. `key` and `text` say why it went wrong; `modules` are what the folder brings."""

    id: str
    folder: str
    state: OutcomeState
    key: str = ""
    text: str = ""
    director_version: int = 0
    modules: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def good(self) -> bool:
        return self.state in {"installed", "nothing-new"}


_Kind = TypeVar("_Kind", Request, Outcome)


class Letterbox:
    """The folder `install` below the state directory."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def ask(self, request: Request) -> None:
        """Durable when it returns. Raises OSError."""
        self.make()
        path = self._folder / REQUEST
        write_durably(path, msgspec.json.encode(request))
        if os.geteuid() == 0:  # the agent may run as another user
            owner = self._folder.stat()
            os.chown(path, owner.st_uid, owner.st_gid)

    def ring(self) -> None:
        """Raises OSError when no agent listens."""
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bell:
                bell.connect(short(handle))
                with suppress(BlockingIOError):  # rung often enough already
                    bell.send(b"!")
        finally:
            os.close(handle)

    def make(self) -> None:
        """Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            owner = self._folder.parent.stat()
            os.chown(self._folder, owner.st_uid, owner.st_gid)

    def request(self) -> Request | None:
        """Raises StoreError when what is there is none."""
        return _read(self._folder / REQUEST, Request)

    def outcome(self) -> Outcome | None:
        """Raises StoreError when what is there is none."""
        return _read(self._folder / OUTCOME, Outcome)

    def tell(self, outcome: Outcome) -> None:
        """Durable when it returns; a request that has had its final word is forgotten then. Raises OSError."""
        write_durably(self._folder / OUTCOME, msgspec.json.encode(outcome))
        if outcome.final:
            self.forget(outcome.id)

    def forget(self, number: str) -> None:
        """Unless another request stands there by now."""
        with suppress(StoreError):
            known = self.request()
            if known is not None and known.id != number:
                return
        (self._folder / REQUEST).unlink(missing_ok=True)
        sync_folder(self._folder)


def short(handle: int) -> str:
    """The ring's path by its open folder: a socket's path has at most 107 bytes, a state directory's may have more."""
    return f"/proc/self/fd/{handle}/{RING}"


def _read(path: Path, kind: type[_Kind]) -> _Kind | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path}: {error}") from error
