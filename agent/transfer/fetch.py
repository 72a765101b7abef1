"""Gets a module's files into the staging folder by the cheapest way, verified, resumable at any byte.

Called by the update's `fetching` step. First what the device has (whole files, then chunks of any file), then patches
where they are cheaper, then blocks from whoever has them. Staging holds `<sha256>` (complete, verified) and what
`agent.transfer.partial` keeps of a file on its way. Files end up in slots by `agent.slots`. The hub keeps nothing
about a transfer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from agent.config import FetchLimits
from agent.errors import AgentError, FetchError
from agent.files import sync_folder
from agent.link import Link
from agent.transfer.partial import Partial, Plan, file_sha256
from agent.transfer.patched import Patcher, Rebuild
from agent.transfer.plan import best_patch, worth_asking
from agent.transfer.pull import Pull
from agent.transfer.reuse import Copy, Library, bytes_of, find_copies, perform
from agent.transfer.schedule import Gate
from agent.transfer.source import MqttSource, Source
from agent.transfer.traffic import Traffic
from modules.bundle import FileEntry, check_digest
from modules.messages import MAX_OFFERS, Way

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Find = Callable[[str], Path | None]
_T = TypeVar("_T")
_COPIES_AT_ONCE = 16


class Ways(Protocol):
    """How else files may be had, see `agent.transfer.offers`."""

    async def ways(self, files: Sequence[FileEntry], held: Sequence[str]) -> Mapping[str, Way]:
        """By the file's digest; nothing where the hub offers nothing. Raises AgentError."""
        ...


def no_library() -> Collection[tuple[Path, FileEntry]]:
    return ()


class Fetcher:
    """Fetches several things at a time, which share the link. `find` looks up a whole file that the device has.

    `library` gives all files of all modules on the device; `sources` are asked in their order (the hub over `link`
    where none are given); `offering` and `rebuild` make patches possible. `gate` is one that others wait at as well.
    `traffic` counts where bytes came from.
    """

    def __init__(
        self,
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
        self.traffic = Traffic()
        self._staging, self._limits, self._find = staging, limits, find
        self._library = library if limits.reuse else no_library
        self._offering = offering if limits.patches and rebuild is not None else None
        self._gate = gate or Gate(limits.hours, limits.max_bytes_per_s)
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch-disk")
        self._pull = Pull(sources or (MqttSource(link),), limits, self._on_disk, self._gate, self.traffic)
        self._patcher = Patcher(staging, self._pull, rebuild or _no_rebuild, self._on_disk, self.traffic)
        self._claims: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def waiting(self) -> str:
        """For what a download stands still, in words: outside the allowed hours. Empty while it does not."""
        return self._gate.waiting

    async def fetch(self, entries: Sequence[FileEntry], progress: Progress | None = None) -> dict[str, Path]:
        """Where each file lies, by digest: in staging, or where `find` has it (verified again in either case).

        Cancelling keeps what has arrived. Raises FetchError: disk-full (partial files removed), chunk-mismatch,
        file-mismatch, not-found, refused, stalled, offline, deadline, io. `progress` gets (done, total) bytes.
        """
        wanted = {entry.sha256: entry for entry in entries}
        before = self.traffic.totals()
        async with self._claimed(wanted):
            job = _Job(wanted, progress)
            try:
                await self._fetch(job)
            except OSError as error:
                raise await self._failed(error, job) from error
            except FetchError as error:
                if error.key == "disk-full":
                    await self._on_disk(job.discard)
                raise
            finally:
                await asyncio.shield(self._on_disk(job.close))
                if came := self.traffic.since(before):
                    log.info("fetched: files=%s bytes=%s by=%s", len(job.found), sum(came.values()), came)
            return job.found

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

    async def _fetch(self, job: _Job) -> None:
        await self._on_disk(lambda: self._survey(job))
        job.tell()
        if not job.partials:
            return
        copies = await self._on_disk(lambda: find_copies(job.partials, self._library))
        await self._patch(job, copies)
        await self._reuse(job, copies)
        await self._pull.run(job.partials, job.add)
        for partial in job.partials:
            job.found[partial.plan.sha256] = await self._on_disk(partial.finish)

    def _survey(self, job: _Job) -> None:
        """What is here, what is here in part, and whether the rest has room."""
        self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        for digest, entry in job.wanted.items():
            held = next((path for path in (self.path(digest), self._find(digest)) if _is(path, digest)), None)
            if held is not None:
                job.found[digest] = held
            else:
                job.partials.append(Partial(self._staging, Plan.of(entry)))
        sync_folder(self._staging)  # a part whose name is lost in a power cut would be fetched again
        need = sum(partial.size - partial.present_bytes for partial in job.partials)
        free, margin = self._free_bytes(), self._limits.disk_margin_bytes
        if job.partials and free < need + margin:
            text = f"{self._staging}: expected {need} bytes and {margin} to spare, got {free} free"
            raise FetchError(text, "disk-full")

    async def _patch(self, job: _Job, copies: Sequence[Copy]) -> None:
        """Files that a patch makes cheaper than blocks. What does not work out is left for the blocks."""
        held = await self._on_disk(lambda: {entry.sha256: path for path, entry in self._library()})
        if self._offering is None or not held:
            return
        here = bytes_of(copies)
        missing = {p.plan.sha256: p.size - p.present_bytes - here.get(p.plan.sha256, 0) for p in job.partials}
        asked = [job.wanted[digest] for digest, count in missing.items() if worth_asking(count)][:MAX_OFFERS]
        if not asked:
            return
        try:
            ways = await self._offering.ways(asked, tuple(held)[:MAX_OFFERS])
        except AgentError as error:
            log.info("no offers, fetching without: why=%s", error)
            return
        for partial in tuple(job.partials):
            digest = partial.plan.sha256
            offer = best_patch(missing[digest], ways.get(digest), held, self._patcher.spoilt)
            if offer is None or self._free_bytes() < partial.size + offer.size + self._limits.disk_margin_bytes:
                continue
            made = await self._patcher.make(partial.plan, held[offer.base], offer)
            if made is not None:
                await self._on_disk(partial.discard)
                job.made(partial, made)

    async def _reuse(self, job: _Job, copies: Sequence[Copy]) -> None:
        """A few chunks at a time, so that it can be cancelled."""
        steps = perform([copy for copy in copies if copy.partial in job.partials])
        try:
            while (counts := await self._on_disk(lambda: list(islice(steps, _COPIES_AT_ONCE)))) != []:
                self.traffic.add("reused", sum(counts))
                job.add(sum(counts))
        finally:
            await self._on_disk(steps.close)

    def _free_bytes(self) -> int:
        space = os.statvfs(self._staging)
        return space.f_bavail * space.f_frsize

    async def _failed(self, error: OSError, job: _Job) -> FetchError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            await self._on_disk(job.discard)
            return FetchError(f"{self._staging}: {error}; the partial files were removed", "disk-full")
        return FetchError(f"{self._staging}: {error}", "io")

    @asynccontextmanager
    async def _claimed(self, digests: Collection[str]) -> AsyncIterator[None]:
        """Nobody else fetches these files meanwhile: two writers of one partial file would be in each other's way."""
        locks = [self._claims.setdefault(digest, asyncio.Lock()) for digest in sorted(digests)]
        async with AsyncExitStack() as stack:
            for lock in locks:  # everybody takes them in the same order
                await stack.enter_async_context(lock)
            yield

    def _on_disk(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """In the order of the calls, one after the other."""
        return asyncio.get_running_loop().run_in_executor(self._disk, work)


class _Job:
    """One fetch: what is wanted, what is found, what is on its way, and how many bytes are here."""

    def __init__(self, wanted: Mapping[str, FileEntry], progress: Progress | None) -> None:
        self.wanted, self._progress = wanted, progress
        self.found: dict[str, Path] = {}
        self.partials: list[Partial] = []
        self._total, self._done = sum(entry.size for entry in wanted.values()), 0

    def tell(self) -> None:
        """Counts what is here at the beginning."""
        self.add(sum(self.wanted[digest].size for digest in self.found) + sum(p.present_bytes for p in self.partials))

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def made(self, partial: Partial, path: Path) -> None:
        """A patch has made the file."""
        self.partials.remove(partial)
        self.found[partial.plan.sha256] = path
        self.add(partial.size - partial.present_bytes)

    def close(self) -> None:
        """Keeps what is there, also over a power cut. What cannot be synced is fetched again."""
        for partial in self.partials:
            with suppress(OSError):
                partial.close(sync=True)

    def discard(self) -> None:
        for partial in self.partials:
            partial.discard()


def _is(path: Path | None, digest: str) -> bool:
    with suppress(OSError):
        return path is not None and file_sha256(path) == digest
    return False


async def _no_rebuild(base: Path, patch: Path, out: Path, size: int, deadline_s: float) -> None:
    raise AgentError("this agent has no decoder for patches", "patch")
