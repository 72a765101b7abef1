"""Pulls files in chunks over the link into the staging folder, each chunk verified on arrival, resumable at any byte.

Called by the update's `fetching` step. Staging holds `<sha256>` (complete, verified) and what `agent.transfer.partial` keeps of
a file on its way. Files end up in slots by `agent.slots`. The hub keeps nothing about a transfer.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from agent.config import FetchLimits
from agent.errors import FetchError
from agent.link import Link
from agent.transfer.partial import Partial, file_sha256
from agent.transfer.pull import Pull
from modules.bundle import FileEntry, check_digest

Progress = Callable[[int, int], None]
Find = Callable[[str], Path | None]
_T = TypeVar("_T")


class Fetcher:
    """One fetch at a time. `find` looks up a whole file by digest that the device already has (in a slot)."""

    def __init__(self, link: Link, staging: Path, limits: FetchLimits, find: Find) -> None:
        self._link, self._staging, self._limits, self._find = link, staging, limits, find
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch-disk")
        self._turn = asyncio.Lock()

    async def fetch(self, entries: Sequence[FileEntry], progress: Progress | None = None) -> dict[str, Path]:
        """Where each file lies, by digest: in staging, or where `find` has it (verified again in either case).

        Cancelling keeps what has arrived. Raises FetchError: disk-full (partial files removed), chunk-mismatch,
        file-mismatch, not-found, refused, stalled, offline, io. `progress` gets (done, total) bytes.
        """
        async with self._turn:
            wanted = {entry.sha256: entry for entry in entries}
            found: dict[str, Path] = {}
            partials: list[Partial] = []
            try:
                await self._on_disk(lambda: self._survey(wanted, found, partials))
                tally = _Tally(sum(entry.size for entry in wanted.values()), progress)
                tally.add(sum(wanted[digest].size for digest in found) + sum(p.present_bytes for p in partials))
                await Pull(self._link, self._limits, self._on_disk, tally.add).run(partials)
                for partial in partials:
                    found[partial.entry.sha256] = await self._on_disk(partial.finish)
            except OSError as error:
                raise await self._failed(error, partials) from error
            except FetchError as error:
                if error.key == "disk-full":
                    await self._on_disk(lambda: _discard(partials))
                raise
            finally:
                await asyncio.shield(self._on_disk(lambda: _close(partials)))
            return found

    def path(self, sha256: str) -> Path:
        """Where the complete file lies or will lie in staging."""
        return self._staging / check_digest(sha256)

    def clear(self, keep: Collection[str] = frozenset()) -> None:
        """Removes everything from staging but the files (and parts) of the digests to keep. Blocking, short."""
        for path in self._staging.iterdir() if self._staging.is_dir() else ():
            if path.name.partition(".")[0] not in keep:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._disk.shutdown(wait=False, cancel_futures=True)

    def _survey(self, wanted: dict[str, FileEntry], found: dict[str, Path], partials: list[Partial]) -> None:
        """What is here, what is here in part, and whether the rest has room."""
        self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        for digest, entry in wanted.items():
            held = next((path for path in (self.path(digest), self._find(digest)) if _is(path, digest)), None)
            if held is not None:
                found[digest] = held
            else:
                partials.append(Partial(self._staging, entry))
        need = sum(partial.entry.size - partial.present_bytes for partial in partials)
        space = os.statvfs(self._staging)
        free = space.f_bavail * space.f_frsize
        if partials and free < need + self._limits.disk_margin_bytes:
            margin = self._limits.disk_margin_bytes
            text = f"{self._staging}: expected {need} bytes and {margin} to spare, got {free} free"
            raise FetchError(text, "disk-full")

    async def _failed(self, error: OSError, partials: list[Partial]) -> FetchError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            await self._on_disk(lambda: _discard(partials))
            return FetchError(f"{self._staging}: {error}; the partial files were removed", "disk-full")
        return FetchError(f"{self._staging}: {error}", "io")

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


class _Tally:
    """How many bytes are here, told to whoever asked."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _is(path: Path | None, digest: str) -> bool:
    with suppress(OSError):
        return path is not None and file_sha256(path) == digest
    return False


def _close(partials: list[Partial]) -> None:
    for partial in partials:
        partial.close()


def _discard(partials: list[Partial]) -> None:
    for partial in partials:
        partial.discard()
