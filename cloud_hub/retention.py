"""What a hub forgets: old windows, samples, looks and labels, patches without a use, files without an owner.

Events are kept. Ages stand in `hub.toml`. Deleting goes in slices, so that devices' batches never wait long for the
writer. Called by `service` from time to time and by `mooring-hub gc`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import Column, Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.api.kept import KEPT_S, forget_requests
from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig
from cloud_hub.datasets.book import blobs_of_datasets
from cloud_hub.events import Events
from cloud_hub.operations.book import blobs_of_operations
from cloud_hub.patches import queue
from cloud_hub.patches.wishes import Wishes
from cloud_hub.retraining.records import blobs_of_retraining
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import labels, look_scopes, looks, model_files, modules, outcomes, samples, windows
from modules.manifest import decode_manifest

DAY_S: Final = 86_400.0
SWEEP_EVERY_S: Final = 6 * 3600.0
SLICE: Final = 1000
FILES_SLICE: Final = 256  # removed in one transaction
_log = logging.getLogger(__name__)


class Swept(msgspec.Struct, frozen=True):
    """How much one sweep removed: rows, files and their bytes."""

    windows: int = 0
    samples: int = 0
    looks: int = 0
    labels: int = 0
    outcomes: int = 0
    patches: int = 0
    requests: int = 0
    files: int = 0
    bytes: int = 0


class Retention:
    """`sweep` removes what is older than the settings say; safe to repeat and beside a hub that runs."""

    def __init__(self, config: HubConfig, store: Store, blobs: Blobs, events: Events, clock: Clock) -> None:
        self._config, self._store, self._blobs, self._events, self._clock = config, store, blobs, events, clock
        self._wishes = Wishes(store, blobs, config.patches)

    async def keep_sweeping(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception:
                # Old rows cost room, nothing else; whatever it was, the next round meets it again.
                _log.exception("old data could not be removed; trying again in %s s", SWEEP_EVERY_S)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> Swept:
        """One round over everything."""
        now, config = self._clock(), self._config
        patches = await self._patches()
        files, size = await self._files(now - config.uploads_days * DAY_S)
        swept = Swept(
            windows=await self._rows(windows, windows.c.received_at, now - config.windows_days * DAY_S),
            samples=await self._rows(samples, samples.c.received_at, now - config.samples_days * DAY_S),
            looks=await self._looks(now - config.looks_days * DAY_S),
            labels=await self._rows(labels, labels.c.received_at, now - config.labels_days * DAY_S),
            outcomes=await self._rows(outcomes, outcomes.c.joined_at, now - config.labels_days * DAY_S),
            patches=patches,
            requests=await forget_requests(self._store, now - KEPT_S),
            files=files,
            bytes=size,
        )
        if swept != Swept():
            async with self._store.write() as connection:
                counts = msgspec.structs.asdict(swept)
                await self._events.record(connection, "retention.swept", "hub", "hub", **counts)
        return swept

    async def _rows(self, table: Table, age: Column[Any], before: float) -> int:
        """The oldest rows, up to the first that is younger. Numbers ascend with the time of receipt."""
        count = 0
        while True:
            async with self._store.write() as connection:
                query = select(table.c.id, age).order_by(table.c.id).limit(SLICE)
                oldest = (await connection.execute(query)).all()
                old = [number for number, at in oldest if at < before]
                if old:
                    await connection.execute(delete(table).where(table.c.id.in_(old)))
            count += len(old)
            if len(old) < SLICE:
                return count

    async def _looks(self, before: float) -> int:
        """Look by look, the oldest first; then who had none but those."""
        count = 0
        while True:
            async with self._store.write() as connection:
                query = select(looks.c.start).where(looks.c.start < before).order_by(looks.c.start).limit(SLICE)
                oldest = (await connection.execute(query)).scalars().all()
                if oldest:
                    gone = await connection.execute(delete(looks).where(looks.c.start <= oldest[-1]))
                    count += gone.rowcount
                if len(oldest) < SLICE:
                    await connection.execute(delete(look_scopes).where(look_scopes.c.last < before))
                    return count

    async def _patches(self) -> int:
        """Patches from what no device holds any more, or to what none is to have. Their blobs go as other files do.

        Also those whose blob is gone (a backup was restored without it): if they are wished for, they are built again.
        """
        async with self._store.read() as connection:
            known = await queue.pairs(connection)
        lost = {pair for pair, sha256 in known.items() if sha256 and not await self._blobs.holds(sha256)}
        unwanted = known.keys() - {(wish.target, wish.base) for wish in await self._wishes.now()}
        async with self._store.write() as connection:
            await queue.forget(connection, unwanted | lost)
        return len(unwanted | lost)

    async def _files(self, before: float) -> tuple[int, int]:
        """Files last stored before then that belong to no model, module or patch. How many, and their bytes."""
        old = await self._blobs.stored_before(before)
        if not old:
            return 0, 0
        async with self._store.read() as connection:
            manifests = await _manifests(connection)
            unknown = old - await _named(connection) - await self._with_files(manifests)
        gone: list[int] = []
        ordered = sorted(unknown)
        for start in range(0, len(ordered), FILES_SLICE):
            gone += await self._remove(ordered[start : start + FILES_SLICE], manifests, before)
        return len(gone), sum(gone)

    async def _remove(self, unknown: Collection[str], manifests: set[str], before: float) -> list[int]:
        """Their sizes. Looks again under the writer's lock: somebody may have registered one of them meanwhile."""
        async with self._store.write() as connection:
            new = await _manifests(connection) - manifests
            still = set(unknown) - await _named(connection) - await self._with_files(new)
            sizes = await asyncio.gather(*(self._blobs.remove(sha256, before) for sha256 in sorted(still)))
        return [size for size in sizes if size is not None]

    async def _with_files(self, manifests: set[str]) -> set[str]:
        found = set(manifests)
        for sha256 in manifests:
            found |= {entry.sha256 for entry in decode_manifest(await self._blobs.read(sha256)).files}
        return found


async def _named(connection: AsyncConnection) -> set[str]:
    """Files of models, data sets and retraining plans, patches, and results of operations."""
    models = set((await connection.execute(select(model_files.c.sha256))).scalars())
    return (
        models
        | await queue.digests(connection)
        | await blobs_of_datasets(connection)
        | await blobs_of_retraining(connection)
        | await blobs_of_operations(connection)
    )


async def _manifests(connection: AsyncConnection) -> set[str]:
    return set((await connection.execute(select(modules.c.manifest_sha256))).scalars())
