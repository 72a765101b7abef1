"""Chunks that this device has already, in whatever file of whatever module: found by digest, copied, never trusted.

Only digests that are wanted are remembered. A copy is checked like a block from the air. Blocking; called by
`agent.transfer.fetch` in the thread that owns the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from agent.transfer.partial import Partial
from modules.bundle import FileEntry

# All files of all modules on this device, with where they lie.
Library = Callable[[], Iterable[tuple[Path, FileEntry]]]
_SYNC_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Copy:
    """One chunk: from `offset` in the file at `path` to the chunk `index` of `partial`."""

    path: Path
    offset: int
    partial: Partial
    index: int

    @property
    def size(self) -> int:
        return self.partial.plan.stretches[self.index].size


def find_copies(partials: Sequence[Partial], library: Library) -> list[Copy]:
    """What need not come over the air, as the manifests on this device say; in the order of the files read."""
    wanted: dict[str, list[tuple[Partial, int]]] = {}
    for partial in partials:
        for index, one in enumerate(partial.plan.stretches):
            if one.sha256 and not partial.has(index):
                wanted.setdefault(one.sha256, []).append((partial, index))
    copies: list[Copy] = []
    for path, entry in library() if wanted else ():
        offset = 0
        for chunk in entry.chunks:
            copies += [Copy(path, offset, *place) for place in wanted.pop(chunk.sha256, ())]
            offset += chunk.size
    return copies


def bytes_of(copies: Sequence[Copy]) -> Mapping[str, int]:
    """How many bytes the copies give to each file, by its digest."""
    total: dict[str, int] = {}
    for copy in copies:
        total[copy.partial.plan.sha256] = total.get(copy.partial.plan.sha256, 0) + copy.size
    return total


def perform(copies: Sequence[Copy]) -> Generator[int, None, None]:
    """Copies one chunk at each step and gives the bytes verified with it; 0 where it was not what it should be.

    A file that cannot be read is passed over. Raises OSError when the partial file cannot be written.
    """
    for path, group in groupby(copies, key=lambda copy: copy.path):
        file = -1
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        if file < 0:
            continue
        try:
            for copy in group:
                yield _perform(copy, file)
        finally:
            os.close(file)


def _perform(copy: Copy, file: int) -> int:
    try:
        data = os.pread(file, copy.size, copy.offset)
    except OSError:
        return 0
    if len(data) != copy.size:
        return 0
    start, _ = copy.partial.chunk(copy.index)
    return copy.partial.write(start, data, _SYNC_BYTES).count
