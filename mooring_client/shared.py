"""One connection to a worker over shared memory, for plain applications. Made by `client`."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

from mooring_client.desk import Desk
from mooring_client.errors import ClientError, Gone, Timeout
from mooring_client.near import Near
from mooring_client.prediction import Prediction
from mooring_client.wire import GROW, MAX_MESSAGE, TAKEN, MoreRoom, Welcome, head, read_welcome, refusal, timed

AGAIN = 256  # requests after which the processor is chosen anew
_TIME = struct.Struct("ll")


class SharedLink:
    """Raises in every method: Gone when the worker ended, Timeout, Refused, ClientError."""

    transport = "shared-memory"

    def __init__(self, path: str, timeout_s: float, size: int, copy: bool, near: bool) -> None:
        """`size` is what the area has at least (0: as the module's shapes suggest)."""
        self._sock = connect(path)
        self._timeout_s = 0.0
        self._near: Near | None = None
        try:
            self._limit(timeout_s)
            self.welcome: Welcome = read_welcome(self._receive())
            self._desk = Desk(self.welcome, min(size, self.welcome.area_bytes), copy)
            self._show_area()
        except BaseException:
            self._sock.close()
            raise
        if near and self.welcome.cpus:
            with contextlib.suppress(OSError, AttributeError):
                self._near = Near(self.welcome.cpus)
        self._cpu = -1
        self._left = 0  # requests until it is chosen anew
        self._took_us = [0.0]
        self._head = head(-1, b"")

    @property
    def size(self) -> int:
        return self._desk.size

    def ask(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, timeout_s: float, event_time: float
    ) -> Prediction:
        if timeout_s != self._timeout_s:
            self._limit(timeout_s)
        before = timed(self.welcome, event_time) if event_time else b""
        if self._near is None:
            return self._asked(inputs, outputs, id_, before)
        self._left -= 1
        if self._left >= 0 and get_ident() == self._near.asker:
            return self._asked(inputs, outputs, id_, before)
        self._settle(self._near)
        started = time.perf_counter()
        answer = self._asked(inputs, outputs, id_, before)
        self._took_us = [*self._took_us[-2:], (time.perf_counter() - started) * 1e6]
        return answer

    def _asked(self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, before: bytes) -> Prediction:
        while True:
            try:
                body, arrays = self._desk.prepare(inputs, outputs)
                self._sock.send(before + (head(self._cpu, id_) if id_ else self._head) + body)
                if message := self._sock.recv(MAX_MESSAGE):
                    return self._desk.answer(message, arrays)
                raise Gone("the worker ended")
            except MoreRoom as error:
                self._grow(error.size)
            except OSError as error:
                raise self._why(error) from error

    def _settle(self, near: Near) -> None:
        """Chooses the processor anew; none where the middle one of the last three that were measured took long."""
        with contextlib.suppress(OSError):
            near.choose(sorted(self._took_us)[len(self._took_us) // 2])
        self._left, self._cpu, self._head = AGAIN, near.cpu, head(near.cpu, b"")

    def room(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        while True:
            try:
                return self._desk.room(shapes)
            except MoreRoom as error:
                self._grow(error.size)

    def close(self) -> None:
        if self._near is not None:
            self._near.restore()
        self._sock.close()
        self._desk.close()

    def _grow(self, size: int) -> None:
        if size <= self._desk.size:
            raise ClientError(f"the worker asks for room of {size} bytes, and has {self._desk.size}")
        self._desk.make(size)
        self._send(GROW)
        self._show_area()

    def _show_area(self) -> None:
        try:
            socket.send_fds(self._sock, [self._desk.announcement], [self._desk.handle])
        except OSError as error:
            raise gone(error) from error
        if (said := self._receive()) != TAKEN:
            raise refusal(said)

    def _send(self, message: bytes) -> None:
        try:
            self._sock.send(message)
        except OSError as error:
            raise gone(error) from error

    def _receive(self) -> bytes:
        try:
            message = self._sock.recv(MAX_MESSAGE)
        except OSError as error:
            raise self._why(error) from error
        if not message:
            raise Gone("the worker ended")
        return message

    def _why(self, error: OSError) -> ClientError:
        if isinstance(error, BlockingIOError):
            return Timeout(f"expected an answer within {self._timeout_s:g} s, got none")
        return gone(error)

    def _limit(self, timeout_s: float) -> None:
        """By the kernel: a time limit of Python's would be one more system call for each message."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            whole = int(timeout_s)
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(whole, max(1, int((timeout_s - whole) * 1e6))))
        self._timeout_s = timeout_s


def connect(path: str) -> socket.socket:
    """Blocking, without a deadline yet: the kernel answers at once. Raises Gone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Gone(f"{path}: nobody serves here ({error.strerror or error})") from error
    return sock


def gone(error: OSError) -> Gone:
    return Gone(f"the worker ended ({error.strerror or error})")
