"""Data sets as they are kept: the next version recorded, found, deleted. Called by the API and by `retraining`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import Row, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.datasets.building import DatasetBuilder
from cloud_hub.datasets.references import refuse_used
from cloud_hub.datasets.wishes import Dataset, NewDataset, digest_of
from cloud_hub.errors import NotFound
from cloud_hub.events import Events
from cloud_hub.registry import ModelFile
from cloud_hub.store.behind import behind
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import dataset_counters, datasets

MAX_LISTED: Final = 500


class DatasetBook:
    """All data sets of the hub."""

    def __init__(self, store: Store, events: Events, builder: DatasetBuilder, clock: Clock) -> None:
        self._store, self._events, self._builder, self._clock = store, events, builder, clock

    async def build(self, asked: NewDataset, actor: str, mine: Collection[str] | None = None, run: str = "") -> Dataset:
        """The next version of `asked.name`. Raises as `DatasetBuilder.build`."""
        made = await self._builder.build(asked, mine)
        async with self._store.write() as connection:
            done = Dataset(
                **{name: getattr(made, name) for name in made.__struct_fields__},
                name=asked.name,
                version=await _next_version(connection, asked.name),
                module=asked.module,
                digest=digest_of(made.files),
                run=run,
                author=actor,
                created_at=self._clock(),
            )
            await connection.execute(insert(datasets).values(msgspec.to_builtins(done)))
            await self._events.record(
                connection, "dataset.built", actor, f"{done.name}:{done.version}", module=done.module, rows=done.rows,
                digest=done.digest, run=run,
            )  # fmt: skip
        return done

    async def get(self, name: str, version: int = 0) -> Dataset:
        """The newest with version 0. Raises NotFound `dataset-not-found`."""
        query = select(datasets).where(datasets.c.name == name).order_by(datasets.c.version.desc()).limit(1)
        if version:
            query = query.where(datasets.c.version == version)
        async with self._store.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _unknown(name, version)
        return _dataset(row)

    async def of_run(self, run: str) -> Dataset | None:
        """What was built for a retraining run."""
        query = select(datasets).where(datasets.c.run == run).order_by(datasets.c.version.desc()).limit(1)
        async with self._store.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _dataset(row)

    async def list(self, name: str = "", limit: int = 100, after: tuple[str, int] | None = None) -> list[Dataset]:
        """By name, newest versions first; behind the name and version of `after`."""
        query = select(datasets).order_by(datasets.c.name, datasets.c.version.desc()).limit(min(limit, MAX_LISTED + 1))
        if name:
            query = query.where(datasets.c.name == name)
        if after is not None:
            query = query.where(behind(((datasets.c.name, False), (datasets.c.version, True)), after))
        async with self._store.read() as connection:
            return [_dataset(row) for row in await connection.execute(query)]

    async def delete(self, name: str, version: int, actor: str) -> None:
        """Its files go with the next sweep, unless something else needs them.

        Raises NotFound `dataset-not-found`, Conflict `dataset-in-use` while a model version names it.
        """
        async with self._store.write() as connection:
            here = and_(datasets.c.name == name, datasets.c.version == version)
            if not (await connection.execute(delete(datasets).where(here))).rowcount:
                raise _unknown(name, version)
            await refuse_used(connection, name, version)
            await self._events.record(connection, "dataset.deleted", actor, f"{name}:{version}")


def file_of(dataset: Dataset, path: str) -> ModelFile:
    """Raises NotFound `file-not-found`."""
    for file in dataset.files:
        if file.path == path:
            return file
    raise NotFound("file-not-found", f"data set {dataset.name}:{dataset.version} has no file {path[:200]!r}")


async def blobs_of_datasets(connection: AsyncConnection) -> set[str]:
    """The digests of all files of data sets: what retention must leave."""
    rows = (await connection.execute(select(datasets.c.files))).scalars()
    return {file["sha256"] for files in rows for file in files}


def _unknown(name: str, version: int) -> NotFound:
    what = f"{name[:80]} version {version}" if version else name[:80]
    return NotFound("dataset-not-found", f"no data set {what}", name=name[:80], version=version)


async def _next_version(connection: AsyncConnection, name: str) -> int:
    here = dataset_counters.c.name == name
    last = (await connection.execute(select(dataset_counters.c.version).where(here))).scalar_one_or_none()
    if last is None:
        await connection.execute(insert(dataset_counters).values(name=name, version=1))
        return 1
    await connection.execute(update(dataset_counters).where(here).values(version=last + 1))
    return int(last) + 1


def _dataset(row: Row[Any]) -> Dataset:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, Dataset)
