"""Samples and windows as a stream of Parquet, for one request: filtered, in one pass, with bounded memory.

Called by `api.exports`. Encoding runs in threads, because a page of images takes a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, select, tuple_

from cloud_hub.blobs import Blobs
from cloud_hub.datasets.builds import Build, builds_of
from cloud_hub.datasets.columns import columns_of
from cloud_hub.datasets.counts import CELLS, LOOKS, CountQuery, LookRow, cell_batch, cells_of, look_batch
from cloud_hub.datasets.parquet import ParquetPieces
from cloud_hub.datasets.rows import SampleTable, Taken
from cloud_hub.errors import BadRequest
from cloud_hub.monitoring.integers import unpack
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.samples import SampleQuery, Samples
from cloud_hub.monitoring.scopes import FLEET
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import looks, modules
from modules.messages import decode_sample

PAGE_CELLS: Final = 200_000  # of looks in one row group
PAGE_LOOKS: Final = 500


class ParquetExports:
    """`look_s` is how long a look is, in seconds."""

    def __init__(self, store: Store, blobs: Blobs, samples: Samples, look_s: float) -> None:
        self._store, self._blobs, self._samples, self._look_s = store, blobs, samples, look_s
        self._references = References(store, blobs)

    async def samples(self, query: SampleQuery, devices: Collection[str] | None = None) -> AsyncIterator[bytes]:
        """The file's bytes. Raises BadRequest `module-missing`, NotFound `module-not-found`, Unprocessable
        `schema-mixed`.
        """
        if not query.module:
            raise BadRequest("module-missing", "samples as Parquet: name a module; its tensors are the columns")
        builds = await builds_of(self._store, self._blobs, query.module, query.version)
        table = SampleTable(columns_of(build.manifest for build in builds.values()))
        pieces = ParquetPieces(table.schema)
        async for page in self._samples.pages(query, devices):
            yield await asyncio.to_thread(_encoded, pieces, table, taken(page, builds))
        yield await asyncio.to_thread(pieces.end)

    async def windows(self, query: CountQuery, devices: Collection[str] | None = None) -> AsyncIterator[bytes]:
        """The file's bytes; with `devices` only looks of each of them. Raises NotFound `module-not-found`."""
        pieces = ParquetPieces(CELLS if query.table == "cells" else LOOKS)
        statement = await self._looks(query, devices)
        size, after = PAGE_LOOKS, None
        while True:
            page = statement if after is None else statement.where(_behind(after))
            async with self._store.read() as connection:
                rows = (await connection.execute(page.limit(size))).all()
            if not rows:
                break
            after = rows[-1]
            yield await self._encoded(query, rows, pieces)
            size = max(1, min(PAGE_LOOKS, PAGE_CELLS // max(1, max(len(unpack(row.counts)) for row in rows))))
        yield await asyncio.to_thread(pieces.end)

    async def _encoded(self, query: CountQuery, rows: Sequence[Row[Any]], pieces: ParquetPieces) -> bytes:
        found: list[tuple[LookRow, Any]] = []
        profiles = await self._profiles({row.manifest_sha256 for row in rows})
        for row in rows:
            if watched := await self._references.get(row.manifest_sha256):
                look = LookRow(row, watched.version, profiles[row.manifest_sha256], row.start + self._look_s)
                found.append((look, watched.layout))
        if query.table == "looks":
            return await asyncio.to_thread(lambda: pieces.add(look_batch([look for look, _ in found])))
        return await asyncio.to_thread(
            lambda: pieces.add(cell_batch([(look, cells_of(layout)) for look, layout in found]))
        )

    async def _profiles(self, manifests: Collection[str]) -> dict[str, str]:
        query = select(modules.c.manifest_sha256, modules.c.profile).where(modules.c.manifest_sha256.in_(manifests))
        async with self._store.read() as connection:
            return {row.manifest_sha256: row.profile for row in await connection.execute(query)}

    async def _looks(self, query: CountQuery, devices: Collection[str] | None) -> Select[Any]:
        conditions: list[ColumnElement[bool]] = []
        if query.module:
            builds = await builds_of(self._store, self._blobs, query.module, query.version)
            conditions += [looks.c.module == query.module, looks.c.manifest_sha256.in_(builds)]
        if query.device:
            conditions.append(looks.c.device == query.device)
        elif devices is None:
            conditions.append(looks.c.device != FLEET if query.each else looks.c.device == FLEET)
        if devices is not None:
            conditions.append(among(looks.c.device, devices))
        if query.since:
            conditions.append(looks.c.start >= query.since)
        if query.until:
            conditions.append(looks.c.start < query.until)
        return select(looks).where(and_(True, *conditions)).order_by(*_ORDER)


def _encoded(pieces: ParquetPieces, table: SampleTable, rows: list[Taken]) -> bytes:
    return pieces.add(table.batch(rows))


_ORDER: Final = (looks.c.manifest_sha256, looks.c.device, looks.c.start)  # the primary key: pages follow an index


def _behind(row: Row[Any]) -> ColumnElement[bool]:
    return tuple_(*_ORDER) > tuple_(row.manifest_sha256, row.device, row.start)


def taken(rows: Sequence[Row[Any]], builds: dict[str, Build]) -> list[Taken]:
    """Rows of `samples`, decoded; those of other builds are left out."""
    return [
        Taken(
            decode_sample(row.body),
            row.device,
            builds[row.manifest_sha256].version,
            builds[row.manifest_sha256].profile,
            row.id,
            row.received_at,
        )
        for row in rows
        if row.manifest_sha256 in builds
    ]
