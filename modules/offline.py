"""The folder of an offline installation: what lies where, and the note in it that says what it is for.

The hub's export writes it, the agent's install reads it. Nobody signs the note: it is for people and for quick
answers; what is installed is decided by the signed metadata beside it. Names are plain and files at most 1 GiB, so that
any file system of a USB stick can hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from modules.bundle import check_digest
from modules.errors import MALFORMED, MessageError

NOTE_FILE = "mooring-offline.json"
MAX_NOTE_BYTES = 64 * 1024
FORMAT = 1
PART_BYTES = 1024**3  # FAT32 ends at 4 GiB
IMAGE_FOLDER, DIRECTOR_FOLDER, BLOBS_FOLDER, ROOTS_FOLDER = "image", "director", "blobs", "director-roots"
MAX_DEVICES = 100
Moment = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Note(msgspec.Struct, frozen=True):
    """`mooring-offline.json`: for which devices, until when (seconds since the epoch), and whether all of it is there.

    `complete` is false while an export is under way: what is written first and last.
    """

    format: int
    devices: tuple[str, ...]
    made_at: Moment
    valid_until: Moment
    files: int = 0
    bytes: int = 0
    complete: bool = False


def read_note(data: bytes) -> Note:
    """Raises MessageError when it is not one, or of a later format."""
    try:
        note = msgspec.json.decode(data, type=Note)
    except MALFORMED as error:
        raise MessageError(f"{NOTE_FILE}: {error}") from error
    if note.format != FORMAT:
        raise MessageError(f"{NOTE_FILE}: expected format {FORMAT}, got {note.format}; a newer agent may know it")
    return note


def write_note(note: Note) -> bytes:
    return msgspec.json.format(msgspec.json.encode(note)) + b"\n"


def parts_of(sha256: str, size: int) -> Iterator[tuple[str, int, int]]:
    """The files that hold a blob, as (name, from, to); a blob of no bytes has one part of none."""
    name = check_digest(sha256)
    for number in range(max(1, -(-size // PART_BYTES))):
        start = number * PART_BYTES
        yield part_name(name, number), start, min(size, start + PART_BYTES)


def part_name(sha256: str, number: int) -> str:
    """The first part has the digest's name."""
    return f"{check_digest(sha256)}.{number}" if number else check_digest(sha256)
