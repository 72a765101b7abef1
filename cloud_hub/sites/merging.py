"""Merges a site's pack: first its seal, then what its devices sent, exactly once, by the same way as over MQTT.

Devices of a site are called SITE.DEVICE here. A pack that comes again, or an older one after a newer, adds nothing
that was there. What a device may not send in a day, and what belongs to a module that this hub does not have, is held
back with all behind it: the receipt does not speak of it, so the next pack carries it again. Called by `api.sites`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import Unprocessable
from cloud_hub.events import Events
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.sites import book
from cloud_hub.sites.form import Carried, End, Frame, Head, SiteDevice, frames
from cloud_hub.sites.receipts import Receipt
from cloud_hub.sites.seal import Seal, fingerprint, holds
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.errors import MALFORMED
from modules.messages import Batch

AT_ONCE: Final = 200  # frames between two looks at what else there is to do
MAX_ID: Final = 63
MAX_TOLD: Final = 20
MAX_ASKED: Final = 500


class _Of(msgspec.Struct):
    """As much of a window or a sample as says what it belongs to."""

    module: str
    manifest_sha256: str


_of: Final = msgspec.msgpack.Decoder(_Of)


class Merged(msgspec.Struct, frozen=True):
    """What came of a pack: entries that it carries, and of these how many could not be taken now.

    `unknown` are modules of which this hub does not have the build, with its digest.
    """

    site: str
    made_at: float
    devices: int
    entries: int
    held: int
    receipt: str
    unknown: tuple[str, ...] = ()


class Merging:
    def __init__(self, store: Store, blobs: Blobs, events: Events, ingest: Ingest, seal: Seal, clock: Clock) -> None:
        self._store, self._blobs, self._events = store, blobs, events
        self._ingest, self._seal, self._clock = ingest, seal, clock

    async def merge(self, site: str, sha256: str, actor: str, skip_unknown: bool = False) -> Merged:
        """An uploaded pack. With `skip_unknown` what belongs to modules that are not here is left out for good.

        Raises NotFound `site-not-found` or `blob-not-found`, Unprocessable `pack-invalid` or
        `seal-invalid`; then nothing was merged.
        """
        async with self._store.read() as connection:
            public_key = await book.key_of(connection, site)
        async with self._blobs.at_hand(sha256) as (path,):
            head = await asyncio.to_thread(_checked, path, public_key)
            counted = _Counted(site, head, skip_unknown)
            for some in _slices(path):
                await self._take(counted, some)
        receipt = Receipt(head.epoch, counted.upto()).sealed(self._seal)
        async with self._store.write() as connection:
            await book.merged(connection, site, head.made_at, self._clock())
            await self._events.record(
                connection, "site.merged", actor, site, sha256=sha256, made_at=head.made_at, devices=counted.devices,
                entries=counted.entries, held=counted.held,
            )  # fmt: skip
        unknown = tuple(sorted(counted.unknown)[:MAX_TOLD])
        return Merged(site, head.made_at, counted.devices, counted.entries, counted.held, receipt, unknown)

    async def _take(self, counted: _Counted, some: list[Frame]) -> None:
        told = [(_named(counted.site, one.id), one) for one in some if isinstance(one, SiteDevice)]
        if told:
            async with self._store.write() as connection:
                await book.keep_devices(connection, counted.site, told, counted.head.made_at)
            counted.devices += len(told)
        for one in some:
            if isinstance(one, Carried):
                batch = one.batch if counted.skip_unknown else await self._of_known(counted, one.batch)
                ack = await self._ingest.commit(_named(counted.site, one.device), batch)
                counted.note(one, ack.upto if ack is not None else 0)

    async def _of_known(self, counted: _Counted, batch: Batch) -> Batch:
        """The entries up to the first of a module that is not here: the others of its device wait behind it."""
        found = [(number, body, _belongs(body)) for number, body in batch.entries]
        await self._learn(counted, {one.manifest_sha256 for _, _, one in found if one is not None})
        taken: list[tuple[int, bytes]] = []
        for number, body, one in found:
            if one is not None and one.manifest_sha256 not in counted.known:
                counted.unknown.add(f"{one.module[:63]} ({one.manifest_sha256[:12]})")
                break
            taken.append((number, body))
        return msgspec.structs.replace(batch, entries=tuple(taken))

    async def _learn(self, counted: _Counted, manifests: set[str]) -> None:
        """Which of them are builds of this hub."""
        new = manifests - counted.known
        if not new:
            return
        async with self._store.read() as connection:
            query = select(modules.c.manifest_sha256).where(modules.c.manifest_sha256.in_(sorted(new)[:MAX_ASKED]))
            counted.known.update((await connection.execute(query)).scalars())


class _Counted:
    """What has been taken, and up to where everything of a stream has."""

    def __init__(self, site: str, head: Head, skip_unknown: bool) -> None:
        self.site, self.head, self.skip_unknown = site, head, skip_unknown
        self.known: set[str] = set()
        self.unknown: set[str] = set()
        self.devices = self.entries = self.held = 0
        self._last: dict[str, int] = {}
        self._missing: dict[str, int] = {}

    def note(self, carried: Carried, upto: int) -> None:
        batch = carried.batch
        numbers = [number for number, _ in batch.entries]
        left = [number for number in numbers if number > upto]
        self.entries, self.held = self.entries + len(numbers), self.held + len(left)
        self._last[batch.stream] = max(self._last.get(batch.stream, 0), *numbers)
        if left:
            self._missing[batch.stream] = min(self._missing.get(batch.stream, left[0]), left[0])

    def upto(self) -> dict[str, int]:
        return {stream: min(last, self._missing.get(stream, last + 1) - 1) for stream, last in self._last.items()}


def _belongs(body: bytes) -> _Of | None:
    """None for what cannot be read: the ingest says so."""
    try:
        return _of.decode(body)
    except MALFORMED:
        return None


def _named(site: str, device: str) -> str:
    name = f"{site}{book.SEPARATOR}{device}"
    if len(name) > MAX_ID:
        raise Unprocessable("pack-invalid", f"{name[:80]}: expected at most {MAX_ID} characters; name the site shorter")
    return name


def _checked(path: Path, public_key: str) -> Head:
    """The head of a pack that is whole and that the site has sealed. Blocks."""
    head: Head | None = None
    sealed = False
    with path.open("rb") as file:
        for number, (frame, before) in enumerate(frames(file)):
            if sealed or isinstance(frame, Head) != (number == 0):
                raise Unprocessable("pack-invalid", "the pack's frames are not in order; nothing was merged")
            if isinstance(frame, Head):
                head = frame
            elif isinstance(frame, End):
                if not holds(public_key, before, frame.signature):
                    text = f"not sealed by the site with the key {fingerprint(public_key)[:16]}...; nothing was merged"
                    raise Unprocessable("seal-invalid", f"the pack is {text}")
                sealed = True
            elif isinstance(frame, Carried) and not frame.batch.entries:
                raise Unprocessable("pack-invalid", "the pack holds an empty batch; nothing was merged")
    if head is None or not sealed:
        raise Unprocessable("pack-invalid", "the pack is cut off: it has no seal at its end; nothing was merged")
    return head


def _slices(path: Path) -> Iterator[list[Frame]]:
    some: list[Frame] = []
    with path.open("rb") as file:
        for frame, _ in frames(file):
            some.append(frame)
            if len(some) == AT_ONCE:
                yield some
                some = []
    yield some
