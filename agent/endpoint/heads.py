"""The heads of HTTP requests: what is read of one, and those that came before.

A client on a kept connection sends the same head again and again. Its bytes are parsed once, by httptools, and looked
up from then on. Called by `connection`.
"""

from __future__ import annotations

import math

import msgspec

from agent.endpoint.exchange import Refused

MAX_BYTES = 1024  # of a head that is kept
MAX_KEPT = 256
MAX_DEADLINE_MS = 86_400_000
MAX_TIME = 40  # characters
_READ = (
    b"content-length", b"inference-header-content-length", b"expect", b"content-encoding", b"accept-encoding",
    b"transfer-encoding", b"authorization", b"request-deadline-ms", b"mooring-event-time",
)  # fmt: skip
_LENGTHS = frozenset(len(name) for name in _READ)  # a cheap first look: most headers are none of ours
_ENCODINGS = frozenset({b"gzip", b"deflate"})


class Head(msgspec.Struct):
    """What is read of a request's head. `length` is that of the body; `fields` how many headers there were."""

    method: bytes = b""
    target: bytes = b""
    length: int = 0
    json_length: int | None = None
    keep_alive: bool = True
    deadline_ms: int = 0
    event_s: float = 0.0
    encoding: bytes = b""
    accepts: bytes = b""
    authorization: bytes = b""
    expects: bool = False
    chunked: bool = False
    fields: int = 0
    query: bytes = b""
    named: list[tuple[bytes, bytes]] = msgspec.field(default_factory=list)  # every header, for scripts that ask
    named_bytes: int = 0

    def add(self, name: bytes, value: bytes) -> None:
        """One header. Raises Refused."""
        self.fields += 1
        self.named_bytes += len(name) + len(value)
        self.named.append((name, value))
        if len(name) not in _LENGTHS:
            return
        name = name.lower()
        if name == b"content-length":
            self.length = _number("Content-Length", value)
        elif name == b"inference-header-content-length":
            self.json_length = _number("Inference-Header-Content-Length", value)
        elif name == b"expect":
            self.expects = value.lower() == b"100-continue"
        elif name == b"content-encoding":
            self.encoding = _encoding(value.lower())
        elif name == b"accept-encoding":
            self.accepts = value.lower() if value.lower() in _ENCODINGS else b""
        elif name == b"transfer-encoding":
            self.chunked = True
        elif name == b"authorization":
            self.authorization = value
        elif name == b"request-deadline-ms":
            self.deadline_ms = _deadline(_number("Request-Deadline-Ms", value))
        elif name == b"mooring-event-time":
            self.event_s = _event_time(value)


class Heads:
    """The heads of late, by their bytes; the oldest goes first."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Head] = {}
        self.find = self._kept.get

    def keep(self, raw: bytes, head: Head) -> None:
        """Where `raw` is surely this head and nothing else, and ends nothing."""
        lines = raw.count(b"\r\n")
        plain = head.keep_alive and not head.chunked and not head.expects and not head.event_s
        if not plain or lines != head.fields + 2 or raw.count(b"\n") != lines:
            return
        if len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[raw] = head


def _number(name: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise Refused(400, f"{name}: expected a number, got {value[:40].decode('latin-1')!r}")
    return int(value)


def _deadline(ms: int) -> int:
    if not 1 <= ms <= MAX_DEADLINE_MS:
        raise Refused(400, f"Request-Deadline-Ms: expected 1 to {MAX_DEADLINE_MS}, got {ms}")
    return ms


def _event_time(value: bytes) -> float:
    try:
        seconds = float(value) if len(value) <= MAX_TIME else math.nan
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        got = value[:40].decode("latin-1")
        raise Refused(400, f"Mooring-Event-Time: expected seconds since the epoch, got {got!r}")
    return seconds


def _encoding(value: bytes) -> bytes:
    if value == b"identity":
        return b""
    if value not in _ENCODINGS:
        raise Refused(
            415, f"expected a body encoded by gzip, deflate or not at all, got {value[:40].decode('latin-1')}"
        )
    return value
