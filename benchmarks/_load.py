"""Open-loop load for `handover.py`, in a process of its own: `python _load.py SPEC`, until its standard input ends.

Requests are due at fixed times whatever the answers do, and a latency counts from the time when its request was due.
Most go over kept connections (TCP and Unix socket in turn), every tenth over a fresh one. Nothing is tried again: an
answer that is not 200, a refused or reset connection, an end in place of an answer are failures. A kept connection
that the server has announced to close, or has closed while idle, is opened anew, as every HTTP client does.
SPEC is a JSON file: rate, kept, host, port, path, request (hex), out. `out` gets two doubles for each request: when it
was due (monotonic clock), and its latency in seconds, or -1.
"""

from __future__ import annotations

import array
import errno
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

FRESH_EVERY = 10
GIVE_UP_S = 10.0
AHEAD_S = 0.0002  # busy from here on: a sleep ends late


class Wire:
    """One connection. `due` is that of the request under way, or 0."""

    def __init__(self, load: Load, address: tuple[str, int] | str, kept: bool) -> None:
        self.load, self.kept = load, kept
        self.due = 0.0
        self._answer = b""
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.setblocking(False)
        self.connecting = self.socket.connect_ex(address) == errno.EINPROGRESS

    def send(self, due: float) -> None:
        self.due = due
        if self.connecting:
            return  # `connected` sends
        try:
            self.socket.sendall(self.load.request)
        except OSError as error:
            self.load.fail(self, f"send: {error}")

    def connected(self) -> None:
        self.connecting = False
        if self.due:
            self.send(self.due)

    def readable(self) -> None:
        try:
            data = self.socket.recv(65536)
        except OSError as error:
            self.load.fail(self, f"recv: {error}")
            return
        if not data:
            self.load.fail(self, "closed in place of an answer") if self.due else self.load.drop(self)
            return
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        lower = head.lower()
        if not end or len(body) < int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        self._answer = b""
        if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
            self.load.fail(self, head.split(b"\r\n", 1)[0].decode())
        else:
            self.load.answered(self, b"connection: close" in lower)


class Load:
    def __init__(self, spec: dict[str, object]) -> None:
        self.request = bytes.fromhex(str(spec["request"]))
        self._period_s = 1.0 / float(str(spec["rate"]))
        self._addresses: list[tuple[str, int] | str] = [(str(spec["host"]), int(str(spec["port"]))), str(spec["path"])]
        self._turn = 0
        self._open: dict[int, Wire] = {}
        self._idle: deque[Wire] = deque()
        self._waiting: deque[float] = deque()  # due, but every kept connection is busy
        self._kept = int(str(spec["kept"]))
        self.records = array.array("d")
        self.reasons: dict[str, int] = {}

    def run(self) -> None:
        for _ in range(self._kept):
            self._idle.append(self._connect(kept=True))
        number, start = 0, time.monotonic() + 0.1
        while True:
            now = time.monotonic()
            while (due := start + number * self._period_s) <= now:
                number += 1
                if number % FRESH_EVERY == 0:
                    self._connect(kept=False).send(due)
                else:
                    self._waiting.append(due)
            while self._waiting and self._idle:
                self._idle.popleft().send(self._waiting.popleft())
            if not self._turn_over(max(0.0, due - time.monotonic() - AHEAD_S)):
                return
            if number % 256 == 0:
                self._give_up(now)

    def _turn_over(self, wait_s: float) -> bool:
        connecting = [number for number, wire in self._open.items() if wire.connecting]
        readable, writable, _ = select.select([0, *self._open], connecting, [], wait_s)
        for number in writable:
            self._open[number].connected()
        for number in readable:
            if number == 0:
                return bool(sys.stdin.buffer.raw.read(1))
            if number in self._open:
                self._open[number].readable()
        return True

    def _connect(self, *, kept: bool) -> Wire:
        self._turn += 1
        wire = Wire(self, self._addresses[self._turn % 2], kept)
        self._open[wire.socket.fileno()] = wire
        return wire

    def _give_up(self, now: float) -> None:
        for wire in [one for one in self._open.values() if one.due and now - one.due > GIVE_UP_S]:
            self.fail(wire, "no answer in time")

    def answered(self, wire: Wire, last: bool) -> None:
        self.records.extend((wire.due, time.monotonic() - wire.due))
        wire.due = 0.0
        if last or not wire.kept:
            self.drop(wire)
        else:
            self._idle.append(wire)

    def fail(self, wire: Wire, why: str) -> None:
        self.records.extend((wire.due, -1.0))
        self.reasons[why] = self.reasons.get(why, 0) + 1
        self.drop(wire)

    def drop(self, wire: Wire) -> None:
        self._open.pop(wire.socket.fileno(), None)
        wire.socket.close()
        if wire in self._idle:
            self._idle.remove(wire)
        if wire.kept:
            self._idle.append(self._connect(kept=True))


def records(path: Path) -> Iterator[tuple[float, float]]:
    """What a run has left: (when due, latency or -1), in seconds."""
    values = array.array("d", path.read_bytes())
    return iter(zip(values[::2], values[1::2], strict=True))


def main() -> None:
    import gc

    spec = json.loads(Path(sys.argv[1]).read_text())
    load = Load(spec)
    gc.disable()
    load.run()
    Path(spec["out"]).write_bytes(load.records.tobytes())
    print(json.dumps(load.reasons), flush=True)


if __name__ == "__main__":
    main()
