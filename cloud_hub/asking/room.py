"""Builds this room for `service`: commands, policies, and the blobs of samples."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.asking.commands import Commands
from cloud_hub.asking.pieces import SampleBlobs
from cloud_hub.asking.policies import Policies, Ring
from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig
from cloud_hub.desired import Desired
from cloud_hub.events import Events
from cloud_hub.link import HubLink
from cloud_hub.store.engine import Store

DAY_S = 86_400.0


@dataclass(frozen=True)
class Asking:
    """What `Rooms` holds of it."""

    commands: Commands
    policies: Policies
    blobs: SampleBlobs


def asking(
    config: HubConfig,
    store: Store,
    blobs: Blobs,
    tensors: Blobs,
    events: Events,
    desired: Desired,
    link: HubLink,
    ring: Ring,
    clock: Clock,
) -> Asking:
    return Asking(
        Commands(store, blobs, events, clock, link.command, config.offline_after_s),
        Policies(store, blobs, events, desired, ring, clock, config.offline_after_s),
        SampleBlobs(store, tensors, events, clock, config.samples_days * DAY_S),
    )
