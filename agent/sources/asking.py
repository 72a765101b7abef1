"""The worker's end: asks the parent for what its sources need. Threads may share it; one ask at a time.

`Alone` is for a worker without a parent to ask (benchmarks, `mooring module run`): it remembers only while it lives,
and does by itself what its confinement leaves it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.sources.talk import (
    LENGTH,
    MAX_ASK_BYTES,
    MAX_FILES,
    Answer,
    Ask,
    Begin,
    Claim,
    Dial,
    File,
    Note,
    Write,
    answers,
    framed,
)
from modules.errors import MALFORMED
from modules.sources import Mqtt, Source

ANSWER_DEADLINE_S = 30.0
DIAL_DEADLINE_S = 5.0


class AskError(Exception):
    """What was asked for was not done, and why."""


class Device(Protocol):
    """What sources ask for. `source` is the number in the manifest. Everything but `begin` raises AskError."""

    def begin(self) -> bool: ...

    def dial(self, source: int) -> socket.socket: ...

    def fresh(self, source: int, files: Sequence[File]) -> list[File]: ...

    def note(self, source: int, files: Sequence[File]) -> None: ...

    def write(self, source: int, name: str, data: bytes) -> None: ...


class Parent:
    """Over the inherited descriptor. Once an answer fails, all do: the parent is gone, or soon ends this worker."""

    def __init__(self, handle: int) -> None:
        self._socket = socket.socket(fileno=handle)
        self._socket.settimeout(ANSWER_DEADLINE_S)
        self._lock = threading.Lock()
        self._broken = ""

    def begin(self) -> bool:
        try:
            self._asked(Begin())
        except AskError:
            return False
        return True

    def dial(self, source: int) -> socket.socket:
        _, handle = self._asked(Dial(source))
        if handle is None:
            raise AskError("expected a connection from the agent, got none")
        return socket.socket(fileno=handle)

    def fresh(self, source: int, files: Sequence[File]) -> list[File]:
        found: list[File] = []
        for start in range(0, len(files), MAX_FILES):
            part = tuple(files[start : start + MAX_FILES])
            answer, _ = self._asked(Claim(source, part))
            found += [part[number] for number in answer.fresh if number < len(part)]
        return found

    def note(self, source: int, files: Sequence[File]) -> None:
        self._asked(Note(source, tuple(files)))

    def write(self, source: int, name: str, data: bytes) -> None:
        self._asked(Write(source, name, data))

    def _asked(self, ask: Ask) -> tuple[Answer, int | None]:
        with self._lock:
            if self._broken:
                raise AskError(self._broken)
            try:
                self._socket.sendall(framed(ask))
                answer, handle = self._answer()
            except (OSError, *MALFORMED) as error:
                self._broken = f"the agent does not answer: {error}"
                self._socket.close()
                raise AskError(self._broken) from error
        if answer.why:
            raise AskError(answer.why)
        return answer, handle

    def _answer(self) -> tuple[Answer, int | None]:
        head, handles, _, _ = socket.recv_fds(self._socket, LENGTH.size, 1)
        head += self._exactly(LENGTH.size - len(head))
        (length,) = LENGTH.unpack(head)
        if length > MAX_ASK_BYTES:
            raise OSError(f"expected an answer of at most {MAX_ASK_BYTES} bytes, got {length}")
        return answers.decode(self._exactly(length)), handles[0] if handles else None

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError("the channel has ended")
            data += part
        return data


class Alone:
    """Does it itself."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._done: set[tuple[int, File]] = set()

    def begin(self) -> bool:
        return True

    def dial(self, source: int) -> socket.socket:
        wanted = self._sources[source]
        assert isinstance(wanted, Mqtt)  # noqa: S101 - nobody else dials
        host, _, port = wanted.broker.rpartition(":")
        try:
            return socket.create_connection((host, int(port)), DIAL_DEADLINE_S)
        except OSError as error:
            raise AskError(f"{wanted.broker}: {error}") from error

    def fresh(self, source: int, files: Sequence[File]) -> list[File]:
        return [file for file in files if (source, file) not in self._done]

    def note(self, source: int, files: Sequence[File]) -> None:
        self._done |= {(source, file) for file in files}

    def write(self, source: int, name: str, data: bytes) -> None:
        folder = getattr(self._sources[source], "results", "")
        try:
            (Path(folder) / name).write_bytes(data)
        except OSError as error:
            raise AskError(f"{folder}: {error}") from error
