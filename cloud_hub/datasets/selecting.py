"""The samples of a data set, page by page, with the labels that count. Called by `building`.

Sorted by when they were taken, so that the same samples give the same file whatever way they came. Tensors that
travelled as blobs are put back where the blob is here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy import Row as SqlRow

from cloud_hub.blobs import Blobs
from cloud_hub.datasets.builds import Build
from cloud_hub.datasets.rows import Taken
from cloud_hub.datasets.spool import Row, answers_of
from cloud_hub.datasets.wishes import NewDataset
from cloud_hub.errors import NotFound
from cloud_hub.groups.resolving import where
from cloud_hub.labels.book import current_labels
from cloud_hub.query import Moment
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import devices, samples
from modules.errors import ModuleError
from modules.messages import Sample, decode_sample
from modules.sampling import ASKED
from modules.tensors import Tensor

PAGE_ROWS: Final = 500
PAGE_BYTES: Final = 8 * 1024 * 1024
_ORDER: Final = (samples.c.at, samples.c.device, samples.c.prediction_id, samples.c.id)


class Selection:
    """`tensors` are the blobs of samples (`asking.pieces`); `mine` bounds the devices where not all may be seen.
    `moment` is when devices are what the target says.
    """

    def __init__(self, store: Store, tensors: Blobs, moment: Moment, mine: Collection[str] | None = None) -> None:
        self._store, self._tensors, self._moment, self._mine = store, tensors, moment, mine

    async def newest(self) -> int:
        """The id of the last sample that has come."""
        async with self._store.read() as connection:
            return int((await connection.execute(select(func.max(samples.c.id)))).scalar_one() or 0)

    async def pages(self, query: NewDataset, builds: dict[str, Build]) -> AsyncIterator[list[Row]]:
        """Raises BadRequest `query-invalid` for a target that is no tag query."""
        statement = await self._statement(query, builds)
        after: tuple[Any, ...] | None = None
        while True:
            page = statement if after is None else statement.where(tuple_(*_ORDER) > tuple_(*after))
            async with self._store.read() as connection:
                coming = (await connection.execute(_sizes(page).limit(PAGE_ROWS))).all()
                if not coming:
                    return
                count = _within(coming)
                rows = (await connection.execute(page.limit(count))).all()
                labels = await current_labels(connection, [row.prediction_id for row in rows])
            found: list[Row] = []
            size = 0
            for row in rows:
                answers = answers_of(labels.get(row.prediction_id, ()), row.device, row.module)
                if answers or not query.labelled_only:
                    build = builds[row.manifest_sha256]
                    sample = await self._whole(decode_sample(row.body))
                    found.append(Row(Taken(sample, row.device, build.version, build.profile), answers))
                    size += sum(len(tensor.data) for tensor in (*sample.inputs, *sample.outputs))
                if size >= PAGE_BYTES:
                    yield found
                    found, size = [], 0
            if found:
                yield found
            last = rows[-1]
            after = (last.at, last.device, last.prediction_id, last.id)

    async def _statement(self, query: NewDataset, builds: Collection[str]) -> Select[Any]:
        conditions: list[ColumnElement[bool]] = [
            samples.c.module == query.module,
            samples.c.manifest_sha256.in_(builds),
            samples.c.id <= query.upto,
            samples.c.at >= query.since,
            samples.c.at < query.until,
        ]
        if not query.asked:
            conditions.append(samples.c.stratum != ASKED)
        if query.strata:
            conditions.append(samples.c.stratum.in_(query.strata))
        if query.devices:
            conditions.append(among(samples.c.device, query.devices))
        if query.target:
            conditions.append(among(samples.c.device, await self._targets(query.target)))
        if self._mine is not None:
            conditions.append(among(samples.c.device, self._mine))
        return select(samples).where(*conditions).order_by(*_ORDER)

    async def _targets(self, target: str) -> set[str]:
        async with self._store.read() as connection:
            which = await where(connection, target, self._moment)  # retired ones too: they have taken samples
            return set((await connection.execute(select(devices.c.id).where(which))).scalars())

    async def _whole(self, sample: Sample) -> Sample:
        """With the tensors that came as blobs."""
        if not any(gone.why == "blob" for gone in sample.withheld):
            return sample
        found: dict[str, list[Tensor]] = {"input": [], "output": []}
        left = []
        for gone in sample.withheld:
            try:
                data = await self._tensors.read(gone.sha256) if gone.why == "blob" else b""
                found[gone.side] += [Tensor(gone.name, gone.datatype, gone.shape, data)] if data else []
            except (NotFound, ModuleError):
                data = b""  # not here yet, or not what it was said to be: it stays withheld
            if not data:
                left.append(gone)
        return msgspec.structs.replace(
            sample,
            inputs=(*sample.inputs, *found["input"]),
            outputs=(*sample.outputs, *found["output"]),
            withheld=tuple(left),
        )


def _sizes(statement: Select[Any]) -> Select[Any]:
    size = func.length(samples.c.body)
    return statement.with_only_columns(samples.c.id, size.label("size"))


def _within(coming: Sequence[SqlRow[Any, Any]]) -> int:
    """How many of them fill a page."""
    total = 0
    for count, row in enumerate(coming, 1):
        total += row.size
        if total >= PAGE_BYTES:
            return count
    return len(coming)
