"""Which patches a device may be offered, and the list of all for people. Called by `ways` and the API."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.patches import queue
from cloud_hub.patches.queue import Patch, PatchState
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import patches
from modules.messages import PatchOffer

MAX_OFFERED: Final = 4


class Patches:
    """What has been built."""

    def __init__(self, store: Store, blobs: Blobs, settings: PatchSettings) -> None:
        self._store = store
        self._blobs = blobs
        self._settings = settings

    async def offers(self, device: str, file_sha256: str, held: Sequence[str]) -> tuple[PatchOffer, ...]:
        """Patches to the file from one of those held, the cheapest first; addresses and grants are the caller's.

        Whether the device may have the file is the caller's question too.
        """
        del device  # what one device is offered, every device is that may have the file
        if not held or not self._settings.enabled:
            return ()
        columns = patches.c
        query = (
            select(columns.base, columns.sha256, columns.size)
            .where(columns.target == file_sha256, columns.state == PatchState.BUILT.value, among(columns.base, held))
            .order_by(columns.size, columns.base)
            .limit(MAX_OFFERED)
        )
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(
            [PatchOffer(row.base, row.sha256, row.size) for row in rows if await self._blobs.holds(row.sha256)]
        )

    async def list(
        self, module: str = "", limit: int = 200, after: tuple[str, int, str, int, str, str] | None = None
    ) -> list[Patch]:
        """Patches built, waiting, dropped and failed, of one module or of all; newest versions first."""
        async with self._store.read() as connection:
            return await queue.listed(connection, module, limit, after)


async def leading_to(connection: AsyncConnection, files: Collection[str], blobs: Collection[str]) -> frozenset[str]:
    """Those of `blobs` that are patches to one of `files`: whoever may have the file may have the patch."""
    columns = patches.c
    query = select(columns.sha256).where(columns.state == PatchState.BUILT.value, among(columns.sha256, blobs))
    return frozenset((await connection.execute(query.where(among(columns.target, files)))).scalars())
