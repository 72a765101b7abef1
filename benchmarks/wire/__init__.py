"""Two network namespaces with a wire between them that has a rate, a delay, jitter, loss and a bounded queue.

`near` is the hub's end (10.77.0.1), `far` the device's (10.77.0.2); each namespace has its own loopback, so nothing
touches the machine's network. The wire is wire.c, compiled when it is needed: root, gcc and /dev/net/tun must be there
(`missing` says what is not). Namespaces and wire end with this process, however it ends. Used by benchmarks/transfer.py
and the soak of the link; decision 0020 says why it is not `tc netem`.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

Side = Literal["near", "far"]
Result = TypeVar("Result")

ADDRESS: dict[Side, str] = {"near": "10.77.0.1", "far": "10.77.0.2"}
MTU = 1500
HEADERS = 52  # IPv4 and TCP with its timestamps: what a full packet carries besides payload
QUEUE_BYTES = 256 * 1024
COMPILE_DEADLINE_S = 60.0
REPLY_DEADLINE_S = 10.0
CLONE_NEWNET = 0x40000000
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_SOURCE = Path(__file__).with_name("wire.c")
_libc = ctypes.CDLL(None, use_errno=True)


class WireError(Exception):
    """The wire cannot be made, or has ended."""


@dataclass(frozen=True)
class Shape:
    """What the wire does to each packet, the same in both directions.

    `rate_bits` per second of IP packets, 0 for no limit; `delay_ms` one way, `jitter_ms` is added or taken, uniformly;
    `loss` as a share of the packets; `queue_bytes` may wait for the rate, the rest is dropped.
    """

    rate_bits: int = 0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_bytes: int = QUEUE_BYTES

    @property
    def payload_rate(self) -> float:
        """Bytes per second of TCP payload in full packets: the most that any transfer over TCP can reach."""
        return self.rate_bits / 8 * (MTU - HEADERS) / MTU

    def words(self) -> list[str]:
        """As wire.c reads it."""
        in_us = [round(1000 * value) for value in (self.delay_ms, self.jitter_ms)]
        return [str(number) for number in (self.rate_bits, *in_us, round(1e6 * self.loss), self.queue_bytes)]


@dataclass(frozen=True)
class Count:
    """One direction so far. `lost` by chance or while the wire was down, `dropped` because the queue was full."""

    packets: int
    carried_bytes: int
    lost: int
    dropped: int


def missing() -> str:
    """What this machine lacks for a wire, in words; empty when nothing."""
    if os.geteuid() != 0:
        return "root is needed to make network namespaces"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing; the wire is made of TUN devices"
    lacking = [name for name in ("gcc", "nsenter") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} must be installed: the emulated wire needs it" if lacking else ""


class Wire:
    """`with Wire(Shape(rate_bits=20_000_000, delay_ms=25)) as wire:`. Raises WireError when it cannot be made.

    `congestion` is the congestion control of TCP at both ends, empty for what the machine is set to: what a wire with
    loss or a full queue carries depends on it. The kernel must allow it (net.ipv4.tcp_allowed_congestion_control).
    """

    def __init__(self, shape: Shape, seed: int = 1, congestion: str = "") -> None:
        self.shape = shape
        self._seed, self._congestion = seed, congestion
        self._process: subprocess.Popen[bytes] | None = None
        self._spaces: dict[Side, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if lacking := missing():
            raise WireError(lacking)
        with tempfile.TemporaryDirectory(prefix="mooring-wire-") as folder:
            program = Path(folder) / "wire"
            _compile(program)
            arguments = [str(program), *self.shape.words(), str(self._seed)]
            # A session of its own: Ctrl-C reaches it as the end of its input, when we are done with it.
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            try:
                word, *descriptors = self._line().split()
            except BaseException:
                self.close()
                raise
        if word != "ready":
            raise WireError(f"the wire began with {word!r}")
        for side, descriptor in zip(ADDRESS, descriptors, strict=True):
            self._spaces[side] = f"/proc/{self._process.pid}/fd/{descriptor}"
        if self._congestion:
            self._control()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The wire ends; processes still inside keep their namespace, without it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def command(self, side: Side, arguments: Sequence[str] = ()) -> list[str]:
        """The same command, run in that namespace. Without arguments: what to put before one."""
        return ["nsenter", f"--net={self._spaces[side]}", "--", *arguments]

    @contextmanager
    def inside(self, side: Side) -> Iterator[None]:
        """Sockets that this thread opens, and processes and threads that it starts, are in that namespace."""
        with Path("/proc/thread-self/ns/net").open("rb") as before, Path(self._spaces[side]).open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def call(self, side: Side, work: Callable[[], Result]) -> Result:
        """What `work` returns, run in that namespace."""
        with self.inside(side):
            return work()

    def socket(self, side: Side, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """One bound to that end's address. It stays in its namespace whoever uses it."""
        with self.inside(side):
            made = socket.socket(socket.AF_INET, kind)
        made.bind((ADDRESS[side], 0))
        return made

    def reshape(self, shape: Shape) -> None:
        """From the next packet on."""
        self._ask(" ".join(("set", *shape.words())))
        self.shape = shape

    def change(self, **fields: float) -> None:
        """As `reshape`, with these fields of the shape changed."""
        self.reshape(replace(self.shape, **fields))  # type: ignore[arg-type]

    def cut(self) -> None:
        """Nothing passes until `mend`, and what was on the wire is lost."""
        self._ask("down")

    def mend(self) -> None:
        self._ask("up")

    def counts(self) -> dict[Side, Count]:
        """What each side has sent."""
        numbers = [int(word) for word in self._ask("count").split()]
        return {"near": Count(*numbers[:4]), "far": Count(*numbers[4:])}

    @property
    def congestion(self) -> str:
        """The congestion control in use."""
        return self.call("near", _CONGESTION.read_text).strip()

    def _control(self) -> None:
        for side in ADDRESS:
            try:
                self.call(side, lambda: _CONGESTION.write_text(self._congestion))
            except OSError as error:
                self.close()
                allowed = _ALLOWED.read_text().strip()
                raise WireError(f"congestion control: expected one of {allowed}, got {self._congestion}") from error

    def _ask(self, line: str) -> str:
        with self._lock:
            if self._process is None or self._process.stdin is None:
                raise WireError("the wire has ended")
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
            answer = self._line()
        if answer == "what?":
            raise WireError(f"the wire does not understand {line!r}")
        return answer

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], REPLY_DEADLINE_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise WireError("the wire gave no answer; its own words are on stderr")
        return line.decode().strip()


def _compile(program: Path) -> None:
    arguments = ["gcc", "-O2", "-o", str(program), str(_SOURCE)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=COMPILE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise WireError(f"gcc did not end within {COMPILE_DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        raise WireError(f"wire.c was not compiled: {done.stderr.strip()[-500:]}")


def _enter(descriptor: int) -> None:
    """setns(2); Python has it from 3.12 on."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise WireError(f"setns: {os.strerror(code)}")
