"""What a worker's sources and the parent say to each other: one ask, one answer, over a stream socket.

A frame is a 4-byte big-endian length and MessagePack; an answer to Dial has a descriptor beside it (SCM_RIGHTS). Which
folder, broker or device a source means stands in the signed manifest and the device's settings, never in an ask.
"""

from __future__ import annotations

import re
import struct

import msgspec

LENGTH = struct.Struct(">I")
MAX_ASK_BYTES = 2 * 1024 * 1024
MAX_RESULT_BYTES = 1024 * 1024
MAX_FILES = 1024  # in one ask
MAX_NAME = 255
VIDEO_RESULTS = 1000  # that are kept of a video: the next ones take their places
VIDEO_RESULT = re.compile(r"[0-9]{3}")


class File(msgspec.Struct, frozen=True, array_like=True):
    """A file of a folder as it was seen: another size or time makes another one of it."""

    name: str
    size: int
    changed_ns: int


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """May this worker's sources begin? Not while another worker of the module is at it."""


class Dial(msgspec.Struct, frozen=True, tag="dial"):
    """A connection to the broker of this source (its number in the manifest)."""

    source: int


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """Which of these files were not done yet?"""

    source: int
    files: tuple[File, ...]


class Note(msgspec.Struct, frozen=True, tag="note"):
    """These files are done, for good."""

    source: int
    files: tuple[File, ...]


class Write(msgspec.Struct, frozen=True, tag="write"):
    """A result as a file of this name in the source's folder for results."""

    source: int
    name: str
    data: bytes


Ask = Begin | Dial | Claim | Note | Write


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`why` says what kept it from being done, empty where it was. `fresh` are the numbers of files that are to do."""

    why: str = ""
    fresh: tuple[int, ...] = ()


asks: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def framed(message: Ask | Answer) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def is_name(name: str) -> bool:
    """Whether it may be the name of a file that is read or made: in the folder, not hidden, and text."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # bytes that are no UTF-8, which nobody could be told about
        return False
    return 0 < size <= MAX_NAME and name[0] != "." and not set(name) & {"/", "\0"}
