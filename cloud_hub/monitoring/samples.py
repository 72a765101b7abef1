"""Samples that devices sent back: listed page by page, and exported as a stream of JSON lines.

Stored as they came, decoded here. Written by `ingest`, served by `api.monitoring`.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import Row, Select, func, select

from cloud_hub.bounds import AnyVersion, Limit, RowId
from cloud_hub.builds import builds_of
from cloud_hub.errors import NotFound
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import samples
from modules.messages import Sample, decode_sample
from modules.tensors import NUMPY_CODES, Tensor

MAX_PAGE: Final = 500
MAX_LISTED: Final = 16_384  # elements; larger tensors are shown as base64
EXPORT_PAGE: Final = 500
PAGE_BYTES: Final = 8 * 1024 * 1024


class SampleQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which samples; empty texts and zeros mean any. Times are seconds since the epoch by the device's clock.

    `after` is the id of the last sample of the page before.
    """

    module: str = ""
    version: AnyVersion = 0
    device: str = ""
    stratum: str = ""
    prediction_id: str = ""
    request: str = ""
    since: float = 0.0
    until: float = 0.0
    after: RowId = 0
    limit: Limit = 100


class TensorValue(msgspec.Struct, frozen=True):
    """A tensor to read: `data` as nested lists (not a number becomes null), or the bytes as `base64`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None  # nested lists of whatever the datatype holds
    base64: str | None = None


class WithheldTensor(msgspec.Struct, frozen=True):
    """A tensor that is not in its sample: dropped on the device (`drop`), or apart from it (`blob`), under `sha256`."""

    name: str
    side: str
    datatype: str
    shape: tuple[int, ...]
    why: str
    sha256: str = ""
    size: int = 0


class SampleRow(msgspec.Struct, frozen=True):
    """One sampled prediction. It stands for 1/`probability` predictions, but in the stratum `asked`: it was asked for
    by the command `request`, and stands for itself alone. `redacted` says what was done to tensors and features, by
    name.
    """

    id: int
    device: str
    module: str
    manifest_sha256: str
    prediction_id: str
    at: float
    received_at: float
    stratum: str
    probability: float
    inputs: tuple[TensorValue, ...]
    outputs: tuple[TensorValue, ...]
    withheld: tuple[WithheldTensor, ...] = ()
    redacted: dict[str, str] = {}
    request: str = ""


class Samples:
    """Reads samples in the order in which they came."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, query: SampleQuery, devices: Collection[str] | None = None) -> list[SampleRow]:
        """At most `query.limit` samples, and never more than MAX_PAGE and one more; with `devices` only theirs.

        Raises NotFound `module-not-found`.
        """
        statement = await self._statement(query, devices)
        async with self._store.read() as connection:
            rows = await connection.execute(statement.limit(max(1, min(query.limit, MAX_PAGE + 1))))
            return [_row(row) for row in rows]

    async def sample(self, id_: int) -> tuple[Sample, str]:
        """The sample as it came, and the device that sent it. Raises NotFound `sample-not-found`."""
        async with self._store.read() as connection:
            row = (await connection.execute(select(samples).where(samples.c.id == id_))).one_or_none()
        if row is None:
            raise NotFound("sample-not-found", f"no sample {id_}", id=id_)
        return decode_sample(row.body), str(row.device)

    async def export(self, query: SampleQuery, devices: Collection[str] | None = None) -> AsyncIterator[bytes]:
        """Every sample as one line of JSON, as `list`; `limit` does not apply. Raises NotFound `module-not-found`."""
        async for page in self.pages(query, devices):
            for row in page:
                yield msgspec.json.encode(_row(row)) + b"\n"

    async def pages(
        self, query: SampleQuery, devices: Collection[str] | None = None
    ) -> AsyncIterator[Sequence[Row[Any]]]:
        """Every sample, page by page, so that neither memory nor a long transaction is held. `limit` does not apply.

        A page has at most EXPORT_PAGE rows and, but for its last row, PAGE_BYTES. Raises NotFound `module-not-found`.
        """
        statement = await self._statement(query, devices)
        sizes = statement.with_only_columns(samples.c.id, func.length(samples.c.body).label("size"))
        after = query.after
        while True:
            async with self._store.read() as connection:
                coming = (await connection.execute(sizes.where(samples.c.id > after).limit(EXPORT_PAGE))).all()
                if not coming:
                    return
                last = _last_within(coming)
                rows = (await connection.execute(statement.where(samples.c.id > after, samples.c.id <= last))).all()
            if rows:
                yield rows
            after = last

    async def _statement(self, query: SampleQuery, devices: Collection[str] | None) -> Select[Any]:
        conditions = [samples.c.id > query.after]
        for column, value in (
            (samples.c.module, query.module),
            (samples.c.device, query.device),
            (samples.c.stratum, query.stratum),
            (samples.c.prediction_id, query.prediction_id),
            (samples.c.request, query.request),
        ):
            if value:
                conditions.append(column == value)
        if devices is not None:
            conditions.append(among(samples.c.device, devices))
        if query.since:
            conditions.append(samples.c.at >= query.since)
        if query.until:
            conditions.append(samples.c.at < query.until)
        if query.module:
            conditions.append(samples.c.manifest_sha256.in_(await self._builds(query.module, query.version)))
        return select(samples).where(*conditions).order_by(samples.c.id)

    async def _builds(self, module: str, version: int) -> tuple[str, ...]:
        async with self._store.read() as connection:
            found = tuple(await builds_of(connection, module, version or None))
        if not found:
            what = f"{module} version {version}" if version else module
            raise NotFound("module-not-found", f"no module {what} on this hub", name=module, version=version)
        return found


def _last_within(coming: Sequence[Row[Any, Any]]) -> int:
    """The id of the row with which a page is full."""
    total = 0
    for row in coming:
        total += row.size
        if total >= PAGE_BYTES:
            return int(row.id)
    return int(coming[-1].id)


def readable(tensor: Tensor) -> TensorValue:
    """A tensor as JSON can hold it."""
    if int(np.prod(tensor.shape)) > MAX_LISTED:
        return _as_base64(tensor)
    if tensor.datatype == "BYTES":
        return _as_texts(tensor)
    values = np.frombuffer(tensor.data, NUMPY_CODES[tensor.datatype]).reshape(tensor.shape)
    return TensorValue(tensor.name, tensor.datatype, tensor.shape, data=values.tolist())


def _as_base64(tensor: Tensor) -> TensorValue:
    return TensorValue(tensor.name, tensor.datatype, tensor.shape, base64=base64.b64encode(tensor.data).decode())


def _as_texts(tensor: Tensor) -> TensorValue:
    """Texts in nested lists; base64 where the elements do not add up or are no texts."""
    texts: list[str] = []
    place = 0
    try:
        while place < len(tensor.data):
            size = int.from_bytes(tensor.data[place : place + 4], "little")
            texts.append(tensor.data[place + 4 : place + 4 + size].decode())
            place += 4 + size
        nested = np.array(texts, dtype=object).reshape(tensor.shape).tolist()
    except ValueError:  # also UnicodeDecodeError
        return _as_base64(tensor)
    return (
        TensorValue(tensor.name, tensor.datatype, tensor.shape, data=nested)
        if place == len(tensor.data)
        else (_as_base64(tensor))
    )


def _row(row: Row[Any]) -> SampleRow:
    sample = decode_sample(row.body)
    return SampleRow(
        id=row.id,
        device=row.device,
        module=row.module,
        manifest_sha256=row.manifest_sha256,
        prediction_id=row.prediction_id,
        at=row.at,
        received_at=row.received_at,
        stratum=row.stratum,
        probability=row.probability,
        inputs=tuple(readable(tensor) for tensor in sample.inputs),
        outputs=tuple(readable(tensor) for tensor in sample.outputs),
        withheld=tuple(WithheldTensor(**msgspec.structs.asdict(one)) for one in sample.withheld),
        redacted=sample.redacted,
        request=sample.request,
    )
