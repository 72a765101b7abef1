"""The part of the hub's client that has to do with data sets and exports. Mixed into `client.HubClient`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cloud_hub.operator.transport import Progress, Transport

if TYPE_CHECKING:
    from cloud_hub.datasets.counts import CountQuery
    from cloud_hub.monitoring.samples import SampleQuery


def no_progress(_more: int) -> None:
    """For callers who show none."""


class DataSetCalls:
    _http: Transport

    async def export_samples_parquet(self, query: SampleQuery, target: Path, progress: Progress = no_progress) -> int:
        """All that match as one Parquet file; bytes written to `target`."""
        fields = {name: getattr(query, name) for name in query.__struct_fields__}
        return await self._http.download("/samples/export", target, progress, query=fields | {"format": "parquet"})

    async def export_windows(self, query: CountQuery, target: Path, progress: Progress = no_progress) -> int:
        """The counts that match as one Parquet file; bytes written to `target`."""
        fields = {name: getattr(query, name) for name in query.__struct_fields__}
        return await self._http.download("/windows/export", target, progress, query=fields)
