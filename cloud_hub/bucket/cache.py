"""What was read from a bucket, as whole files in a folder: at most so many bytes, the longest unused go first.

A file is there whole or not at all, as in a folder of blobs. Only the process that serves a hub removes files; another
one beside it (`mooring-hub gc`) may add some, which count from the next start on. Used by `cloud_hub.bucket.blobs`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud_hub.blobs import ANY, Incoming


class Cache:
    """Used on one loop. Files that are pinned stay, also when they alone are more than `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sizes = OrderedDict(_found(folder))  # the longest unused first
        self._bytes = sum(self._sizes.values())
        self._pins: Counter[str] = Counter()

    def path(self, sha256: str) -> Path | None:
        """Where it lies; None where it is not here. It counts as used."""
        if sha256 not in self._sizes:
            return None
        self._sizes.move_to_end(sha256)
        return self.place(sha256)

    def size(self, sha256: str) -> int | None:
        """Bytes; None where it is not here."""
        return self._sizes.get(sha256)

    def place(self, sha256: str) -> Path:
        """Where it lies, or would."""
        return self.folder / sha256[:2] / sha256

    async def keep(self, incoming: Incoming) -> None:
        """What has come whole, from now on under its digest."""
        sha256 = await asyncio.to_thread(incoming.keep, self.place)
        self.forget(sha256)
        self._sizes[sha256] = (await asyncio.to_thread(self.place(sha256).stat)).st_size
        self._bytes += self._sizes[sha256]
        await self._make_room()

    @contextmanager
    def pinned(self, sha256: str) -> Iterator[None]:
        """It is not removed inside, whether it is here already or comes meanwhile."""
        self._pins[sha256] += 1
        try:
            yield
        finally:
            self._pins[sha256] -= 1
            if self._pins[sha256] == 0:
                del self._pins[sha256]

    def forget(self, sha256: str) -> None:
        """It is found to be gone."""
        self._bytes -= self._sizes.pop(sha256, 0)

    async def remove(self, sha256: str) -> None:
        """It is not to be here; a file that is in use goes when nobody has it open."""
        self.forget(sha256)
        await asyncio.to_thread(self.place(sha256).unlink, missing_ok=True)

    async def _make_room(self) -> None:
        unused = [sha256 for sha256 in self._sizes if not self._pins[sha256]] if self._bytes > self.limit else []
        for sha256 in unused:
            if self._bytes <= self.limit:
                return
            if not self._pins[sha256]:
                await self.remove(sha256)


def _found(folder: Path) -> list[tuple[str, int]]:
    """Digests and sizes, by when they were last written."""
    found = []
    for path in folder.glob(f"{ANY}/*"):
        about = os.stat(path)
        found.append((about.st_mtime, path.name, about.st_size))
    return [(name, size) for _, name, size in sorted(found)]
