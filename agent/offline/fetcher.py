"""The fetcher of a device that can be installed from a folder: from there first, while there is one.

No cap and no hours: a stick costs nobody a line. Where the folder fails and the hub can be reached, it gives the rest.
Made by the composition root.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.config import FetchLimits
from agent.errors import FetchError
from agent.link import Link
from agent.offline.source import FolderSource
from agent.transfer.fetch import Fetcher, Find, Progress, Ways, no_library
from agent.transfer.patched import Rebuild
from agent.transfer.reuse import Library
from agent.transfer.schedule import Gate
from agent.transfer.source import Source
from modules.bundle import FileEntry

GONE_S = 5.0  # for a stick that is put back at once

_logger = logging.getLogger(__name__)


class FolderFetcher(Fetcher):
    """As `Fetcher`, whose further arguments are for the way over the network."""

    def __init__(
        self,
        folder: FolderSource,
        link: Link,
        staging: Path,
        limits: FetchLimits,
        find: Find,
        *,
        library: Library = no_library,
        sources: Sequence[Source] = (),
        offering: Ways | None = None,
        rebuild: Rebuild | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(
            link, staging, limits, find, library=library, sources=sources, offering=offering, rebuild=rebuild, gate=gate
        )
        plain = msgspec.structs.replace(limits, offline_s=GONE_S, hours=(), max_bytes_per_s=0, patches=False)
        self._near = Fetcher(link, staging, plain, find, library=library, sources=(folder,))
        self._folder, self._connected = folder, link.connected

    async def fetch(self, entries: Sequence[FileEntry], progress: Progress | None = None) -> dict[str, Path]:
        if self._folder.folder is None:
            return await super().fetch(entries, progress)
        try:
            return await self._near.fetch(entries, progress)
        except FetchError as error:
            if error.key == "disk-full" or not self._connected.is_set():
                raise
            _logger.info("the folder did not give all, asking the hub", extra={"key": error.key, "why": str(error)})
        return await super().fetch(entries, progress)

    def close(self) -> None:
        self._near.close()
        super().close()
