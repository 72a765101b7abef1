"""The part of the hub's client that has to do with data sets and exports. Mixed into `client.HubClient`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cloud_hub.datasets.wishes import Dataset, NewDataset
from cloud_hub.operator.long_work import Watch, unwatched, work_out
from cloud_hub.operator.transport import Progress, Transport, path_of

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

    async def build_dataset(self, new: NewDataset, watch: Watch = unwatched) -> Dataset:
        """As a long operation: `watch` hears how far it is."""
        return await work_out(self._http, Dataset, "/datasets", new, watch)

    async def datasets(self, name: str = "", limit: int = 100) -> list[Dataset]:
        """By name, newest versions first."""
        return await self._http.ask(list[Dataset], "GET", "/datasets", query={"name": name, "limit": limit})

    async def dataset(self, name: str, version: int) -> Dataset:
        return await self._http.ask(Dataset, "GET", path_of("datasets", name, version))

    async def download_dataset_file(
        self, name: str, version: int, path: str, target: Path, progress: Progress = no_progress
    ) -> int:
        """Bytes written to `target`."""
        return await self._http.download(path_of("datasets", name, version, "files") + "/" + path, target, progress)

    async def delete_dataset(self, name: str, version: int) -> None:
        await self._http.raw("DELETE", path_of("datasets", name, version))
