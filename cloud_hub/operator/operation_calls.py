"""The part of the hub's client that has to do with long operations. Mixed into `client.HubClient`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloud_hub.operations.book import Operation
from cloud_hub.operator.dataset_calls import no_progress
from cloud_hub.operator.long_work import PREFER
from cloud_hub.operator.transport import Progress, Query, Transport, path_of

if TYPE_CHECKING:
    from cloud_hub.datasets.counts import CountQuery
    from cloud_hub.monitoring.samples import SampleQuery


class OperationCalls:
    _http: Transport

    async def operations(self, state: str = "", limit: int = 100) -> list[Operation]:
        """Newest first: one's own, or as an admin all."""
        query: Query = {"state": state, "limit": limit}
        return await self._http.ask(list[Operation], "GET", "/operations", query=query)

    async def operation(self, operation: str, wait_s: float = 0.0) -> Operation:
        """With `wait_s` as soon as it has come further, or after so many seconds."""
        path = path_of("operations", operation)
        return await self._http.ask(Operation, "GET", path, query={"wait_s": wait_s})

    async def cancel_operation(self, operation: str) -> Operation:
        return await self._http.ask(Operation, "POST", path_of("operations", operation, "cancel"))

    async def operation_result(self, operation: str, target: Path, progress: Progress = no_progress) -> int:
        """The answer, or the file, that it has made; bytes written to `target`."""
        return await self._http.download(path_of("operations", operation, "result"), target, progress)

    async def begin_samples_export(self, query: SampleQuery, parquet: bool = False) -> Operation:
        """As `export_samples`, made at the hub: fetch it with `operation_result` when it is done."""
        fields = msgspec.structs.asdict(query) | {"format": "parquet" if parquet else "ndjson"}
        got = await self._http.exchange("GET", "/samples/export", None, fields, headers=PREFER)
        return self._http.parsed(Operation, got)

    async def begin_windows_export(self, query: CountQuery) -> Operation:
        """As `export_windows`, made at the hub."""
        fields = msgspec.structs.asdict(query)
        got = await self._http.exchange("GET", "/windows/export", None, fields, headers=PREFER)
        return self._http.parsed(Operation, got)

    async def begin_audit_export(self) -> Operation:
        """As `export_audit`, made at the hub."""
        return self._http.parsed(Operation, await self._http.exchange("GET", "/audit/export", headers=PREFER))
