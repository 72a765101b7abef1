"""The messages between a worker and a client of the shared-memory path, protocol 1; docs/extend/client.md has them all.

Each is one packet on a SOCK_SEQPACKET socket, little-endian, with its kind as first byte. What is checked are the
bytes of a packet, which nobody can change any more: only tensors lie in shared memory. Pure; called by `seat` and
`plan`. The client has a file of its own like this (`mooring_client.wire`): neither imports the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from modules.manifest import Manifest
from modules.tensors import TensorSpec, served

PROTOCOL = 1
MAX_MESSAGE = 64 * 1024
MAX_TEXT = 1000  # bytes of a refusal's reason
ALIGN = 64  # tensors begin at multiples of this
WELCOME, AREA, TAKEN, GROW, PREDICT, DONE, MORE, REFUSED = b"W", b"A", b"O", b"G", b"P", b"D", b"M", b"R"
TIMED = struct.Struct("<cd")  # kind E, an event time; a whole PREDICT follows
HEAD = struct.Struct("<chB")  # kind, the client's processor (-1: it does not tell), length of the id
AREA_SIZE = struct.Struct("<cQ")
_BODY = struct.Struct("<QH")  # where outputs may begin, number of inputs
_PLACED = struct.Struct("<HBQQ")  # which tensor of the manifest, number of dimensions, offset, bytes
_COUNT = struct.Struct("<H")
_STATUS = struct.Struct("<cH")


class WireError(Exception):
    """A packet is not what the protocol has at this place. The connection is of no more use."""


class Placed(NamedTuple):
    """A tensor in the area: `tensor` is its number among those of its kind in the welcome."""

    tensor: int
    shape: tuple[int, ...]
    offset: int
    size: int


class Body(NamedTuple):
    """What a request asks for. `outputs` are indices, empty for all; they may be written from `at` on."""

    at: int
    inputs: tuple[Placed, ...]
    outputs: tuple[int, ...]


def welcome(manifest: Manifest, area_bytes: int, cpus: Iterable[int]) -> bytes:
    """What a client needs to know; class labels are left out where they would not fit into a packet."""
    document = {
        "protocol": PROTOCOL,
        "model": manifest.name,
        "version": str(manifest.version),
        "area_bytes": area_bytes,
        "cpus": sorted(cpus),
        "event_times": True,
        "inputs": manifest.inputs,
        "outputs": served(manifest.outputs),
    }
    text = msgspec.json.encode(document)
    if len(text) >= MAX_MESSAGE:
        sides = {"inputs": manifest.inputs, "outputs": served(manifest.outputs)}
        bare = {key: tuple(map(_without_labels, side)) for key, side in sides.items()}
        text = msgspec.json.encode({**document, **bare})
    return WELCOME + text


def read_area(message: bytes) -> int:
    """How large the client says its area is. Raises WireError."""
    if len(message) != AREA_SIZE.size or message[:1] != AREA:
        raise WireError(f"expected an area, got {len(message)} bytes of kind {message[:1]!r}")
    size: int = AREA_SIZE.unpack(message)[1]
    return size


def read_body(body: bytes) -> Body:
    """Raises WireError. Numbers are only read here; whether they can be is for `plan` to check."""
    try:
        at, count = _BODY.unpack_from(body)
        position, inputs = _BODY.size, []
        for _ in range(count):
            index, rank, offset, size = _PLACED.unpack_from(body, position)
            position += _PLACED.size
            shape = struct.unpack_from(f"<{rank}Q", body, position)
            position += 8 * rank
            inputs.append(Placed(index, shape, offset, size))
        (wanted,) = _COUNT.unpack_from(body, position)
        outputs = struct.unpack_from(f"<{wanted}H", body, position + _COUNT.size)
    except struct.error as error:
        raise WireError(f"expected a request, got {len(body)} bytes that end early ({error})") from None
    if len(body) != position + _COUNT.size * (1 + wanted):
        raise WireError(f"expected a request of {position + _COUNT.size * (1 + wanted)} bytes, got {len(body)}")
    return Body(at, tuple(inputs), outputs)


def layout(outputs: Iterable[Placed]) -> bytes:
    """Where outputs lie, as it follows the id in DONE."""
    parts = [_PLACED.pack(o.tensor, len(o.shape), o.offset, o.size) + struct.pack(f"<{len(o.shape)}Q", *o.shape)
             for o in outputs]  # fmt: skip
    return _COUNT.pack(len(parts)) + b"".join(parts)


def done(id_: bytes, where: bytes) -> bytes:
    return b"D%c%b%b" % (len(id_), id_, where)  # DONE; half of a Struct's time


def more(size: int) -> bytes:
    """The area must be of at least this size for the outputs."""
    return AREA_SIZE.pack(MORE, size)


def refused(status: int, text: str) -> bytes:
    return _STATUS.pack(REFUSED, status) + text.encode()[:MAX_TEXT]


def aligned(offset: int) -> int:
    """The next place where a tensor may begin."""
    return -(-offset // ALIGN) * ALIGN


def _without_labels(spec: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(spec, labels=())
