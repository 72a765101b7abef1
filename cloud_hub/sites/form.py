"""The form of a pack: frames of MessagePack, each behind its length, and at the end a seal over all before it. Pure.

A pack is one file, written and read in a stream: nothing of it has to fit into memory but one frame. Used by `packing`
and `merging`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from cloud_hub.errors import Unprocessable
from modules.errors import MALFORMED
from modules.messages import Batch

MAGIC: Final = b"mooring site pack 1\n"
MAX_FRAME: Final = 16 * 1024 * 1024
_LENGTH: Final = 4


class Head(msgspec.Struct, frozen=True, tag="head"):
    """Begins a pack. `epoch` names one life of the site's database; `made_at` is by its clock (seconds)."""

    epoch: str
    made_at: float


class SiteDevice(msgspec.Struct, frozen=True, tag="device"):
    """A device as the site knows it; `report` is the last that it signed, "" before the first."""

    id: str
    profile: str
    tags: dict[str, str]
    report: bytes = b""
    report_at: float | None = None


class Carried(msgspec.Struct, frozen=True, tag="carried"):
    """What a device sent to the site, numbered by the site's rows."""

    device: str
    batch: Batch


class End(msgspec.Struct, frozen=True, tag="end"):
    """The seal: a signature over the SHA-256 of all bytes before this frame."""

    signature: bytes


Frame = Head | SiteDevice | Carried | End
_decoder: Final = msgspec.msgpack.Decoder(Frame)


def framed(frame: Frame) -> bytes:
    body = msgspec.msgpack.encode(frame)
    return len(body).to_bytes(_LENGTH) + body


def frames(file: BinaryIO) -> Iterator[tuple[Frame, bytes]]:
    """Each with the digest of all that comes before it. Raises Unprocessable `pack-invalid`."""
    digest = hashlib.sha256()
    start = file.read(len(MAGIC))
    if start != MAGIC:
        raise _invalid("it does not begin as a pack does")
    digest.update(start)
    while head := file.read(_LENGTH):
        size = int.from_bytes(head)
        body = file.read(min(size, MAX_FRAME))
        if size > MAX_FRAME or len(body) != size:
            raise _invalid(f"it ends within a frame of {size} bytes")
        try:
            frame = _decoder.decode(body)
        except (*MALFORMED, ValueError) as error:
            raise _invalid(str(error)) from error
        yield frame, digest.digest()
        digest.update(head + body)


def _invalid(why: str) -> Unprocessable:
    return Unprocessable("pack-invalid", f"the pack cannot be read: {why}; nothing was merged")
