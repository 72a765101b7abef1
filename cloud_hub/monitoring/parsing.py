"""Entries of many batches, parsed together: windows of one module are read as arrays, whichever devices they are of.

Used by `committing`, before its writing transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cloud_hub.monitoring.intake import (
    Known,
    Parsed,
    Problem,
    manifests_of,
    peek_sample,
    peek_window,
    read_event,
    read_piece,
    read_sample,
    read_windows,
)
from cloud_hub.monitoring.references import References
from modules.messages import AgentEvent, Sample, Stream
from modules.pieces import BlobPiece
from modules.windows import Window

MAX_CELLS: Final = 64_000_000  # of all windows that are read together, and are in memory as numbers

Entries = Sequence[tuple[int, bytes]]
_Peeked = Window | Sample | AgentEvent | BlobPiece | Problem
_PEEK: Final[Mapping[Stream, Callable[[bytes], _Peeked]]] = {
    "window": peek_window,
    "sample": peek_sample,
    "event": read_event,
    "blob": read_piece,
}


class TooMuchError(Exception):
    """These batches are more than may be read together: read them one by one."""


async def parse(references: References, batches: Sequence[tuple[Stream, Entries]], now: float) -> list[list[Parsed]]:
    """What the entries of each batch are. Raises TooMuchError, for several batches only."""
    peeked = [[_PEEK[stream](body) for _, body in entries] for stream, entries in batches]
    manifests = manifests_of(item for items in peeked for item in items if not isinstance(item, AgentEvent | BlobPiece))
    known = {sha256: await references.get(sha256) for sha256 in manifests}
    if len(batches) > 1 and _cells(peeked, known) > MAX_CELLS:
        raise TooMuchError
    return await asyncio.to_thread(_read, [entries for _, entries in batches], peeked, known, now)


def _cells(peeked: Sequence[Sequence[_Peeked]], known: Known) -> int:
    windows = (item for items in peeked for item in items if isinstance(item, Window))
    return sum(watched.layout.cells for item in windows if (watched := known[item.manifest_sha256]) is not None)


def _read(
    batches: Sequence[Entries], peeked: Sequence[Sequence[_Peeked]], known: Known, now: float
) -> list[list[Parsed]]:
    pairs = [list(zip(items, entries, strict=True)) for items, entries in zip(peeked, batches, strict=True)]
    sent = [(item, body) for pair in pairs for item, (_, body) in pair if isinstance(item, Window)]
    windows = iter(read_windows(sent, known, now))

    def one(item: _Peeked, body: bytes) -> Parsed:
        if isinstance(item, Window):
            return next(windows)
        return read_sample(item, body, known, now) if isinstance(item, Sample) else item

    return [[one(item, body) for item, (_, body) in pair] for pair in pairs]
