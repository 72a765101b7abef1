"""The place where one module is put together: a folder of its own, and the hub's blobs. Used by `packaging`."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud_hub.blobs import Blobs
from cloud_hub.chunking import file_entry
from modules.bundle import FileEntry


@dataclass(frozen=True)
class Bench:
    """`folder` is removed at the end, whatever happens."""

    blobs: Blobs
    folder: Path

    async def fetch(self, sha256: str, path: str) -> Path:
        """A copy of what was uploaded, at `path` inside the folder. Raises NotFound with the digest."""
        target = self.folder / path
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        await self.blobs.copy(sha256, target)  # a digest that is not stored is a 404 with its name
        return target

    async def store(self, sources: Mapping[str, Path]) -> tuple[FileEntry, ...]:
        """Puts the files, by module path, among the blobs and cuts them into chunks."""
        digests = {path: await self.blobs.put_file(source) for path, source in sources.items()}
        return tuple(
            [await asyncio.to_thread(file_entry, path, sources[path], digests[path]) for path in sorted(sources)]
        )


@asynccontextmanager
async def bench(blobs: Blobs) -> AsyncIterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="mooring-build-"))
    try:
        yield Bench(blobs, folder)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)
