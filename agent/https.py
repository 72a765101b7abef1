"""HTTPS with one deadline over a whole request, from the name's look-up to the answer's last byte.

A timeout on each read alone lets a server that sends a byte now and then hold a request for ever. Nothing of the
system's trust is used unless the caller's TLS context says so. `exchange` is one request to the hub, for a device that
has no certificate, or none that is good (`enrol`, `renew`, whose errors it raises); `Connection` is what
`transfer.https` keeps.
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from agent.errors import AgentError
from modules.errors import MALFORMED

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 1024 * 1024
DEFAULT_PORT = 8443


class _ErrorText(msgspec.Struct):
    key: str
    message: str


class _ErrorBody(msgspec.Struct):
    error: _ErrorText


class _TimedSocket(ssl.SSLSocket):
    """Whatever is waited for on it ends at `ends_at` (seconds of the monotonic clock)."""

    ends_at = math.inf

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_left(self.ends_at))
        return super().recv_into(buffer, nbytes, flags)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.settimeout(_left(self.ends_at))
        return super().send(data, flags)


class Connection(HTTPSConnection):
    """May be used again after an answer was read whole. Blocking. `check` sees a new connection before anything is sent
    on it, and raises OSError when the other side is not who it should be.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext, check: Callable[[ssl.SSLSocket], None] | None = None
    ) -> None:
        super().__init__(host, port)
        self._tls, self._check = tls, check
        self._ends_at = time.monotonic() + TIMEOUT_S
        tls.sslsocket_class = _TimedSocket

    def until(self, ends_at: float) -> None:
        """The end of everything that is waited for from now on, by the monotonic clock."""
        self._ends_at = ends_at
        if isinstance(self.sock, _TimedSocket):
            self.sock.ends_at = ends_at

    def connect(self) -> None:
        """Called by the first request. Raises OSError."""
        plain = self._dial()
        try:
            plain.settimeout(_left(self._ends_at))
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        self.until(self._ends_at)
        if self._check is not None:
            try:
                self._check(self.sock)
            except BaseException:
                self.close()
                raise

    def abort(self) -> None:
        """From another thread: whatever is waited for fails now. Idempotent."""
        if isinstance(self.sock, socket.socket):
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # SSLSocket's own would touch the session in use

    def _dial(self) -> socket.socket:
        failure: OSError = OSError(f"{self.host}: no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_left(self._ends_at))
                plain.connect(place)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                plain.close()
                failure = error
            else:
                return plain
        raise failure


def address(kind: type[AgentError], hub: str) -> tuple[str, int]:
    """Host and port of https://HOST:PORT. Raises `kind` (bad-address)."""
    try:
        parts = urlsplit(hub)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise kind(f"hub address {hub[:200]!r}: {error}", "bad-address") from error
    if parts.scheme != "https" or not host:
        raise kind(f"hub address: expected https://HOST:PORT, got {hub[:200]!r}", "bad-address")
    return host, port


def exchange(
    kind: type[AgentError],
    host: str,
    port: int,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, bytes]:
    """Status and body of the answer, within `timeout_s` in all. Blocks.

    Raises `kind` (ca-mismatch, unreachable, bad-answer).
    """
    connection = Connection(host, port, context)
    connection.until(time.monotonic() + timeout_s)
    try:
        headers = {"Accept": "application/json, */*"} | ({"Content-Type": "application/json"} if body else {})
        connection.request(method, path, body, headers)
        with connection.getresponse() as answer:
            data = answer.read(MAX_ANSWER_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        text = f"{host}:{port}: its certificate is not the hub's: {error.verify_message}; nothing was sent"
        raise kind(text, "ca-mismatch") from error
    except (OSError, HTTPException) as error:
        raise kind(f"{host}:{port}: the hub cannot be reached: {error}; try again", "unreachable") from error
    finally:
        connection.close()
    if len(data) > MAX_ANSWER_BYTES:
        raise kind(f"{host}: expected at most {MAX_ANSWER_BYTES} bytes, got more", "bad-answer")
    return answer.status, data


def refusal(kind: type[AgentError], host: str, status: int, body: bytes) -> AgentError:
    """The hub's own key and words where it gave some."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).error
    except MALFORMED:
        return kind(f"{host}: the hub answered with status {status}; nothing was written", "refused")
    return kind(f"the hub refused: {said.message}", said.key)


def _left(ends_at: float) -> float:
    """Seconds. Raises TimeoutError when there are none."""
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left
