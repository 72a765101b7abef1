"""Everything about data sets in one value: what `service` builds, and `Rooms.datasets` is."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.blobs import Blobs
from cloud_hub.datasets.exporting import ParquetExports
from cloud_hub.monitoring.samples import Samples
from cloud_hub.store.engine import Store


@dataclass(frozen=True)
class DataSets:
    exports: ParquetExports


def data_sets(store: Store, blobs: Blobs, look_s: float) -> DataSets:
    return DataSets(ParquetExports(store, blobs, Samples(store), look_s))
