"""The messages to a worker over shared memory, protocol 1; docs/extend/client.md has them all.

Each is one packet on a SOCK_SEQPACKET socket, little-endian, with its kind as first byte. The worker has a file of its
own like this (`agent.fast.wire`): this package stands alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mooring_client.errors import ClientError, Refused
from mooring_client.tensors import Spec, read_specs

PROTOCOL = 1
MAX_MESSAGE = 64 * 1024
MAX_ID = 255
ALIGN = 64
WELCOME, AREA, TAKEN, GROW, PREDICT, DONE, MORE, REFUSED = b"W", b"A", b"O", b"G", b"P", b"D", b"M", b"R"
_HEAD = struct.Struct("<chB")
_TIMED = struct.Struct("<cd")
_SIZE = struct.Struct("<cQ")
_BODY = struct.Struct("<QH")
_PLACED = struct.Struct("<HBQQ")
_COUNT = struct.Struct("<H")
_STATUS = struct.Struct("<cH")


class Welcome(NamedTuple):
    """What the worker says of its module. `cpus` are those that its threads may go to; `event_times`: it takes them."""

    model: str
    version: str
    area_bytes: int
    cpus: frozenset[int]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    event_times: bool = False


class Placed(NamedTuple):
    """A tensor in the area: `tensor` is its number among the module's inputs or outputs."""

    tensor: int
    shape: tuple[int, ...]
    offset: int
    size: int


class MoreRoom(Exception):
    """The outputs need an area of `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def read_welcome(message: bytes) -> Welcome:
    """Raises Refused when the worker turns us away, ClientError when it speaks another protocol."""
    if message[:1] != WELCOME:
        raise refusal(message)
    try:
        said = json.loads(message[1:])
        if said["protocol"] != PROTOCOL:
            raise ClientError(f"expected protocol {PROTOCOL} of shared memory, got {said['protocol']}")
        cpus = frozenset(map(int, said["cpus"]))
        return Welcome(
            str(said["model"]), str(said["version"]), int(said["area_bytes"]), cpus, read_specs(said["inputs"]),
            read_specs(said["outputs"]), said.get("event_times") is True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"the worker's welcome cannot be read: {error!r}") from error


def area(size: int) -> bytes:
    return _SIZE.pack(AREA, size)


def head(cpu: int, id_: bytes) -> bytes:
    return _HEAD.pack(PREDICT, cpu, len(id_)) + id_


def timed(welcome: Welcome, event_time: float) -> bytes:
    """What goes before a request that says when its inputs were. Raises Refused(400) where that is not understood."""
    if not event_time:
        return b""
    if not welcome.event_times:
        raise Refused(400, "event_time: expected an agent of version 0.2.0 for it over shared memory; use HTTP")
    return _TIMED.pack(b"E", event_time)


def body(at: int, inputs: Iterable[Placed], outputs: Sequence[int]) -> bytes:
    """Raises Refused(413) when there are more tensors than a packet holds."""
    placed = [_PLACED.pack(i.tensor, len(i.shape), i.offset, i.size) + struct.pack(f"<{len(i.shape)}Q", *i.shape)
              for i in inputs]  # fmt: skip
    wanted = _COUNT.pack(len(outputs)) + struct.pack(f"<{len(outputs)}H", *outputs)
    packed = _BODY.pack(at, len(placed)) + b"".join(placed) + wanted
    if len(packed) > MAX_MESSAGE - MAX_ID - _HEAD.size - 1:
        raise Refused(413, f"expected tensors that fit into a packet of {MAX_MESSAGE} bytes, got more")
    return packed


def not_done(message: bytes) -> Exception:
    """What a packet means that is no DONE: MoreRoom, Refused or another ClientError."""
    if message[:1] == MORE and len(message) == _SIZE.size:
        return MoreRoom(_SIZE.unpack(message)[1])
    return refusal(message)


def read_layout(layout: bytes) -> list[Placed]:
    """Raises ClientError."""
    try:
        (count,) = _COUNT.unpack_from(layout)
        at, found = _COUNT.size, []
        for _ in range(count):
            tensor, rank, offset, size = _PLACED.unpack_from(layout, at)
            at += _PLACED.size
            found.append(Placed(tensor, struct.unpack_from(f"<{rank}Q", layout, at), offset, size))
            at += 8 * rank
        return found
    except struct.error as error:
        raise ClientError(f"the worker's answer cannot be read: {error}") from error


def refusal(message: bytes) -> ClientError:
    """The exception that a packet of another kind means."""
    if message[:1] == REFUSED and len(message) >= _STATUS.size:
        return Refused(_STATUS.unpack_from(message)[1], message[_STATUS.size :].decode(errors="replace"))
    return ClientError(f"expected an answer of the worker, got {len(message)} bytes of kind {message[:1]!r}")


def aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN
