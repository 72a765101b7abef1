"""Builds this room for `composition`: packs, merges and receipts."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.sites.merging import Merging
from cloud_hub.sites.packing import Packing
from cloud_hub.sites.receipts import Receipts
from cloud_hub.sites.registry import SiteRegistry
from cloud_hub.sites.seal import Seal
from cloud_hub.store.engine import Store


@dataclass(frozen=True)
class Sites:
    """What `Rooms` holds of it."""

    seal: Seal
    registry: SiteRegistry
    packing: Packing
    merging: Merging
    receipts: Receipts


def site_room(paths: HubPaths, store: Store, blobs: Blobs, events: Events, ingest: Ingest, clock: Clock) -> Sites:
    seal = Seal(paths.root / "site.key")
    return Sites(
        seal,
        SiteRegistry(store, events, clock),
        Packing(store, events, seal, clock),
        Merging(store, blobs, events, ingest, seal, clock),
        Receipts(store, events),
    )
