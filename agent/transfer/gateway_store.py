"""The bytes that a gateway gives its neighbours: from its slots, from its cache, or fetched from the hub, each once.

A neighbour's grant is shown to the hub before anything is given, also for what is here, because only the hub can tell
whether it is good. Ranges that several neighbours ask for at the same time are fetched once. What is fetched cannot be
checked before all of it is here: neighbours check every chunk themselves. Called by `gateway` for neighbours, and by
the device's own downloads (`OwnSource`).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial as bind
from pathlib import Path
from typing import Final, TypeVar

from agent.config import FetchLimits
from agent.errors import LinkDown, LinkError, LinkTimeout, Refused
from agent.link import Link
from agent.transfer.gateway_cache import UNIT_BYTES, Cache, NoRoom, Part
from agent.transfer.lane import Lane
from agent.transfer.offers import Offering
from agent.transfer.partial import file_sha256
from agent.transfer.schedule import Gate
from modules.bundle import check_digest
from modules.messages import MAX_BLOCK_BYTES

PROVEN_S: Final = 300.0  # how long the hub's word on a grant is taken; it is asked again for each byte that it sends
MAX_PROVEN: Final = 1024
PROOFS_AT_ONCE: Final = 4
TRIES: Final = 3

_T = TypeVar("_T")


class _Hub:
    """The hub over the device's one connection, with the grants of neighbours; a `Source`."""

    name = "mqtt"

    def __init__(self, link: Link) -> None:
        self.grants: OrderedDict[str, str] = OrderedDict()
        self.fetched_bytes = 0
        self._link = link

    def show(self, sha256: str, grant: str) -> None:
        """The grant to use for this file from now on."""
        self.grants[sha256] = grant
        self.grants.move_to_end(sha256)
        while len(self.grants) > MAX_PROVEN:
            self.grants.popitem(last=False)

    async def size(self, sha256: str, grant: str, timeout_s: float) -> int:
        """Asks for one byte, which proves the grant. Raises as `Link.get`."""
        return (await self._link.get("blob", sha256, 0, 1, timeout_s, grant=grant)).total

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        grant = self.grants.get(sha256, "")
        data = (await self._link.get("blob", sha256, offset, length, timeout_s, grant=grant)).data
        self.fetched_bytes += len(data)
        return data


class GatewayStore:
    """`async with`, as often as needed: the cache is open inside. `gate` holds back what is asked of the hub."""

    def __init__(self, link: Link, cache: Cache, limits: FetchLimits, gate: Gate) -> None:
        self._cache, self._gate, self._limits = cache, gate, limits
        self._hub = _Hub(link)
        self._lane = Lane(self._hub, limits, lambda: False)
        self._disk: ThreadPoolExecutor | None = None
        self._proven: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._proofs: dict[tuple[str, str], asyncio.Task[int]] = {}
        self._proving = asyncio.Semaphore(PROOFS_AT_ONCE)
        self._coming: dict[tuple[str, int], asyncio.Task[None]] = {}  # by file and unit
        self._finishing: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> GatewayStore:
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway-disk")
        await self._on_disk(self._cache.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = {*self._proofs.values(), *self._coming.values(), *self._finishing.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._on_disk(self._cache.close)
        if self._disk is not None:
            self._disk.shutdown(wait=False)
            self._disk = None

    @property
    def fetched_bytes(self) -> int:
        """Bytes of files that came from the hub for neighbours."""
        return self._hub.fetched_bytes

    async def read(self, sha256: str, offset: int, length: int, grant: str, *, own: bool = False) -> bytes:
        """Bytes [offset, offset+length) of the blob, unverified; fewer at its end.

        `own`: the caller has passed the gate. Raises Refused (not-allowed; not-found also for what does not fit in the
        cache), LinkDown (also while it is not open), LinkTimeout, LinkError, OSError.
        """
        if self._disk is None:
            raise LinkDown("the gateway is not open")
        size = await self._size(check_digest(sha256), grant)
        stop = min(offset + min(length, MAX_BLOCK_BYTES), size)
        if offset >= stop:
            return b""
        try:
            part = await self._on_disk(lambda: self._cache.look(sha256, size))
        except NoRoom as error:
            raise Refused(f"{sha256}: {error}", "not-found") from error
        if isinstance(part, Path):
            return await self._on_disk(bind(_read, part, offset, stop))
        return await self._from_part(part, offset, stop, own)

    async def _from_part(self, part: Part, offset: int, stop: int, own: bool) -> bytes:
        part.users += 1
        try:
            await self._fill(part, offset, stop, own)
            return await self._on_disk(lambda: self._part_read(part, offset, stop))
        finally:
            part.users -= 1

    async def _size(self, sha256: str, grant: str) -> int:
        """The file's size, when the hub says that the grant opens it."""
        if not grant:  # asked without one, the hub would say what this device itself may have
            raise Refused(f"{sha256}: expected a grant", "not-allowed")
        key = sha256, grant
        size, until = self._proven.get(key, (0, 0.0))
        if time.monotonic() < until:
            self._hub.show(sha256, grant)
            return size
        if key not in self._proofs:
            self._proofs[key] = asyncio.create_task(self._prove(sha256, grant), name="gateway-proof")
            self._proofs[key].add_done_callback(lambda task: self._proved(key, task))
        return await asyncio.shield(self._proofs[key])

    async def _prove(self, sha256: str, grant: str) -> int:
        async with self._proving:
            size = await self._hub.size(sha256, grant, self._limits.chunk_timeout_s)
        self._proven[sha256, grant] = size, time.monotonic() + PROVEN_S
        self._hub.show(sha256, grant)
        while len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)
        return size

    def _proved(self, key: tuple[str, str], task: asyncio.Task[int]) -> None:
        self._proofs.pop(key, None)
        _heard(task)

    async def _fill(self, part: Part, start: int, stop: int, own: bool) -> None:
        """Returns when all of it is here. What one asks for, others that ask meanwhile wait for."""
        while missing := list(part.missing(start, stop)):
            for group in self._groups(part.sha256, missing):
                task = asyncio.create_task(self._fetch(part, group, own), name=f"gateway-fetch-{group.start}")
                for unit in group:
                    self._coming[part.sha256, unit] = task
                task.add_done_callback(bind(self._arrived, part.sha256, group))
            waited = {self._coming[part.sha256, unit] for unit in missing if (part.sha256, unit) in self._coming}
            # Whoever asked first may leave; those who wait for the same do not leave with them.
            await asyncio.gather(*(asyncio.shield(task) for task in waited))

    def _groups(self, sha256: str, missing: list[int]) -> list[range]:
        """Neighbouring units that nobody fetches yet, at most a block each."""
        most = max(1, min(self._lane.window.block, MAX_BLOCK_BYTES) // UNIT_BYTES)
        groups: list[range] = []
        for unit in missing:
            if (sha256, unit) in self._coming:
                continue
            if groups and groups[-1].stop == unit and len(groups[-1]) < most:
                groups[-1] = range(groups[-1].start, unit + 1)
            else:
                groups.append(range(unit, unit + 1))
        return groups

    async def _fetch(self, part: Part, group: range, own: bool) -> None:
        start, stop = group.start * UNIT_BYTES, min(group.stop * UNIT_BYTES, part.size)
        data = b""
        for last in (*[False] * (TRIES - 1), True):
            try:
                data = await self._ask(part.sha256, start, stop, own)
                break
            except LinkTimeout:
                self._lane.failed()
                if last:
                    raise
        if len(data) != stop - start:
            got = f"{len(data)} bytes from {start}"
            raise LinkError(f"{part.sha256}: expected {stop - start} bytes from {start}, got {got}", "bad-answer")
        self._lane.good()
        await self._on_disk(lambda: part.write(start, data))
        if part.complete and part.sha256 not in self._finishing:
            task = asyncio.create_task(self._finish(part), name="gateway-finish")
            self._finishing[part.sha256] = task
            task.add_done_callback(bind(self._finished, part.sha256))

    async def _ask(self, sha256: str, start: int, stop: int, own: bool) -> bytes:
        await self._lane.pause()
        await self._lane.admit()
        try:
            limited = False if own else await self._gate.admit(stop - start)
        except BaseException:
            self._lane.leave()
            raise
        flight = self._lane.sent(stop - start, limited=limited)
        try:
            return await self._lane.read(flight, sha256, start, stop - start)
        finally:
            self._lane.settle(flight)

    def _arrived(self, sha256: str, group: range, task: asyncio.Task[None]) -> None:
        for unit in group:
            self._coming.pop((sha256, unit), None)
        _heard(task)

    async def _finish(self, part: Part) -> None:
        """Hashes the whole file in a thread of its own, so that nobody waits for it."""
        digest = await asyncio.to_thread(file_sha256, part.path)
        await self._on_disk(lambda: self._cache.finish(part, digest))

    def _finished(self, sha256: str, task: asyncio.Task[None]) -> None:
        self._finishing.pop(sha256, None)
        _heard(task)

    def _part_read(self, part: Part, offset: int, stop: int) -> bytes:
        """From where it lies by now: it may have become whole, or been thrown away, since it was filled."""
        whole = self._cache.whole(part.sha256)
        if whole is not None:
            return _read(whole, offset, stop)
        try:
            return part.read(offset, stop)
        except OSError as error:
            raise LinkError(f"{part.sha256}: what came was not this file", "bad-answer") from error

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        if self._disk is None:
            raise LinkDown("the gateway is not open")
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


class OwnSource:
    """The gateway's own downloads, through the same store: what they bring, neighbours need not fetch again."""

    name = "gateway"

    def __init__(self, store: GatewayStore, offering: Offering) -> None:
        self._store, self._offering = store, offering

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                grant = await self._offering.grant(sha256)
                return await self._store.read(sha256, offset, length, grant, own=True)
        except TimeoutError as error:
            raise LinkTimeout(f"{sha256}: not here within {timeout_s:g} s") from error
        except OSError as error:
            raise Refused(f"{sha256}: {error}", "not-found") from error


def _heard(task: asyncio.Task[_T]) -> None:
    """Whoever waits for it gets its error; nobody may be waiting any more."""
    if not task.cancelled():
        task.exception()


def _read(path: Path, offset: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(stop - offset)
