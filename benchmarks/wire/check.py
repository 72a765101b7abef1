"""Whether a wire does what was asked: round trip, rate and loss, measured with datagrams from end to end.

Run alone it prints a table of asked against measured; benchmarks/transfer.py puts its own wires' numbers into its
metrics. A wire that is off by more than a twentieth would make every figure over it worthless.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.common import median, report
from benchmarks.wire import MTU, Shape, Wire

PINGS = 10
HEADERS = 28  # of a datagram: IP and UDP
RATES = 3
LOSS_PACKETS = 5000
RECEIVED_BYTES = 16 * 1024 * 1024
SO_RCVBUFFORCE = 33  # socket(7); Python does not name it
PATIENCE_S = 0.5


@dataclass(frozen=True)
class Measured:
    """`rate_bits` is 0 where the wire has no rate of its own."""

    rtt_ms: float
    rate_bits: float
    loss: float


def measure(wire: Wire) -> Measured:
    """Takes a second or two. The wire must be idle."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(wire.socket(side)) for side in ("near", "far"))
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVED_BYTES)
            end.settimeout(2 * (wire.shape.delay_ms + wire.shape.jitter_ms) / 1000 + PATIENCE_S)
        loss = _loss(near, far) if wire.shape.loss else 0.0
        rate = median(_rate(wire.shape, near, far) for _ in range(RATES)) if wire.shape.rate_bits else 0.0
        return Measured(_round_trip(near, far), rate, loss)


def _round_trip(near: socket.socket, far: socket.socket) -> float:
    times: list[float] = []
    while len(times) < PINGS:
        began = time.monotonic()
        with suppress(TimeoutError):  # lost, as was asked for
            near.sendto(b"ping", far.getsockname())
            far.sendto(far.recv(MTU), near.getsockname())
            near.recv(MTU)
            times.append(1000 * (time.monotonic() - began))
    return median(times)


def _rate(shape: Shape, near: socket.socket, far: socket.socket) -> float:
    """Of full packets that fill the queue once, by their arrivals; the first quarter is left out for its jitter."""
    arrivals = _arrivals(near, far, shape.queue_bytes // MTU, b"x" * (MTU - HEADERS))
    steady = arrivals[len(arrivals) // 4 :]
    return (len(steady) - 1) * MTU * 8 / (steady[-1] - steady[0])


def _loss(near: socket.socket, far: socket.socket) -> float:
    return 1 - len(_arrivals(near, far, LOSS_PACKETS, b"x")) / LOSS_PACKETS


def _arrivals(near: socket.socket, far: socket.socket, count: int, datagram: bytes) -> list[float]:
    for _ in range(count):
        near.sendto(datagram, far.getsockname())
    times: list[float] = []
    with suppress(TimeoutError):
        while len(times) < count:
            far.recv(MTU)
            times.append(time.monotonic())
    return times


def main() -> None:
    metrics: dict[str, float] = {}
    shapes = {
        "50ms": Shape(delay_ms=25),
        "600ms": Shape(delay_ms=300),
        "20mbit": Shape(rate_bits=20_000_000, delay_ms=25),
        "satellite": Shape(rate_bits=25_000_000, delay_ms=300, jitter_ms=25, loss=0.02, queue_bytes=2 * 1024 * 1024),
    }
    for name, shape in shapes.items():
        with Wire(shape) as wire:
            found = measure(wire)
        print(f"{name:10} {shape} measured {found}")
        metrics |= {f"rtt_ms_{name}": found.rtt_ms, f"mbit_{name}": found.rate_bits / 1e6, f"loss_{name}": found.loss}
    report("wire", metrics)


if __name__ == "__main__":
    main()
