"""Build a data set: samples with their labels, split for training and for judging, as Parquet files among the blobs.

One pass over the database into a spool, one over the spool into the files, so that memory stays small and the files
show one state. Nothing is recorded before every file is stored: what a crash leaves are blobs without an owner, which
the next sweep removes. Called by the API and by `retraining`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.datasets.builds import builds_of
from cloud_hub.datasets.columns import TensorColumns, columns_of
from cloud_hub.datasets.parquet import ParquetPieces
from cloud_hub.datasets.rows import SampleTable
from cloud_hub.datasets.selecting import Selection
from cloud_hub.datasets.settings import DatasetSettings
from cloud_hub.datasets.spool import LabelColumns, Row, Spool
from cloud_hub.datasets.wishes import HELDOUT, TRAIN, ColumnType, NewDataset
from cloud_hub.errors import TooLarge, Unprocessable
from cloud_hub.operations.progress import tell
from cloud_hub.query import Moment
from cloud_hub.registry import ModelFile
from cloud_hub.store.engine import Store

SPOOL_PAGE: Final = 8 * 1024 * 1024
MIB: Final = 2**20


class Made(msgspec.Struct, frozen=True):
    """What was built and is not yet called anything. `heldout_labels` are labelled rows that training does not see."""

    query: NewDataset
    rows: int
    heldout_rows: int
    labelled_rows: int
    first_at: float | None
    last_at: float | None
    columns: tuple[ColumnType, ...]
    files: tuple[ModelFile, ...]


class DatasetBuilder:
    """Builds one data set at a time: two would only slow each other down. `tensors` are the blobs of samples."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        tensors: Blobs,
        clock: Clock,
        settings: DatasetSettings,
        offline_after_s: float = 900.0,
    ) -> None:
        self._offline_after_s = offline_after_s
        self._store, self._blobs, self._tensors, self._clock, self._settings = store, blobs, tensors, clock, settings
        self._turn = asyncio.Lock()

    async def build(self, asked: NewDataset, mine: Collection[str] | None = None) -> Made:
        """Raises NotFound (`module-not-found`, `blob-not-found`), Unprocessable (`dataset-empty`, `schema-mixed`),
        TooLarge `dataset-too-large`, BadRequest `query-invalid`.
        """
        selection = Selection(self._store, self._tensors, Moment(self._clock(), self._offline_after_s), mine)
        query = await self._closed(asked, selection)
        builds = await builds_of(self._store, self._blobs, query.module, query.version)
        columns = columns_of(build.manifest for build in builds.values())
        base = () if not query.base else (ModelFile(query.base_path, await self._blobs.size(query.base), query.base),)
        async with self._turn, _work() as folder:
            with Spool(folder / "rows") as spool:
                async for page in selection.pages(query, builds):
                    await asyncio.to_thread(spool.add, page)
                    self._check_size(spool)
                    tell("rows read", spool.rows)
                if not spool.rows:
                    raise Unprocessable(
                        "dataset-empty", f"data set {query.name}: no sample matches the query; nothing was built"
                    )
                tell("writing files", 0, spool.rows)
                written = await asyncio.to_thread(_write, spool, query, columns, folder)
                files = [await self._kept(folder / path, path) for path in (HELDOUT, TRAIN)]
        return Made(
            query, spool.rows, written.heldout_rows, spool.labelled, spool.first_at, spool.last_at, written.columns,
            (*base, *files),
        )  # fmt: skip

    async def _closed(self, asked: NewDataset, selection: Selection) -> NewDataset:
        """With nothing left open, so that it can be asked again."""
        return msgspec.structs.replace(
            asked,
            until=asked.until or self._clock(),
            upto=asked.upto or await selection.newest(),
            salt=asked.salt or asked.module,
        )

    def _check_size(self, spool: Spool) -> None:
        settings = self._settings
        if spool.rows > settings.max_rows or spool.bytes > settings.max_mib * MIB:
            raise TooLarge(
                "dataset-too-large",
                f"data set: expected at most {settings.max_rows} rows and {settings.max_mib} MiB ([datasets] in "
                "hub.toml); nothing was built. Ask for less time, fewer devices, or only what is labelled",
            )

    async def _kept(self, file: Path, path: str) -> ModelFile:
        return ModelFile(path, file.stat().st_size, await self._blobs.put_file(file))


class _Written(msgspec.Struct, frozen=True):
    heldout_rows: int
    columns: tuple[ColumnType, ...]


def _write(spool: Spool, query: NewDataset, columns: tuple[TensorColumns, ...], folder: Path) -> _Written:
    labels = LabelColumns(spool.kinds)
    table = SampleTable(columns, labels.fields, of_hub=False)
    counts = dict.fromkeys((TRAIN, HELDOUT), 0)
    pieces = {path: ParquetPieces(table.schema) for path in counts}
    for path in counts:
        (folder / path).touch()
    for page in spool.read(SPOOL_PAGE):
        for path in counts:
            rows = [row for row in page if query.is_heldout(row.taken.sample.prediction_id) == (path == HELDOUT)]
            counts[path] += len(rows)
            _append(folder / path, pieces[path].add(_batch(table, labels, rows)))
    for path in counts:
        _append(folder / path, pieces[path].end())
    return _Written(counts[HELDOUT], tuple(ColumnType(field.name, str(field.type)) for field in table.schema))


def _batch(table: SampleTable, labels: LabelColumns, rows: list[Row]) -> pa.RecordBatch:
    return table.batch([row.taken for row in rows], labels.arrays(rows))


def _append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)


@asynccontextmanager
async def _work() -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mooring-dataset-"))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)
