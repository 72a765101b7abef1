"""Everything about data sets in one value: what `service` builds, and `Rooms.datasets` is."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig
from cloud_hub.datasets.book import DatasetBook
from cloud_hub.datasets.building import DatasetBuilder
from cloud_hub.datasets.exporting import ParquetExports
from cloud_hub.events import Events
from cloud_hub.monitoring.samples import Samples
from cloud_hub.store.engine import Store


@dataclass(frozen=True)
class DataSets:
    exports: ParquetExports
    book: DatasetBook


def data_sets(config: HubConfig, store: Store, blobs: Blobs, tensors: Blobs, events: Events, clock: Clock) -> DataSets:
    """`tensors` are the blobs of samples."""
    builder = DatasetBuilder(store, blobs, tensors, clock, config.datasets, config.offline_after_s)
    exports = ParquetExports(store, blobs, Samples(store), config.look_s)
    return DataSets(exports, DatasetBook(store, events, builder, clock))
