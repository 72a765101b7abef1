"""All rooms of a running hub in one frozen value: what `service` builds and API handlers get.

Only types are imported here, so that a handler's file stays light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud_hub.arms.candidates import Candidates
    from cloud_hub.arms.comparisons import Comparisons
    from cloud_hub.arms.gates import Gates
    from cloud_hub.asking.room import Asking
    from cloud_hub.blobs import Blobs
    from cloud_hub.broker import Broker
    from cloud_hub.capabilities import Capabilities
    from cloud_hub.claims import Claims
    from cloud_hub.clock import Clock
    from cloud_hub.config import HubConfig, HubPaths
    from cloud_hub.configuration.room import Configuring
    from cloud_hub.datasets.room import DataSets
    from cloud_hub.desired import Desired
    from cloud_hub.devices import Devices
    from cloud_hub.events import Events
    from cloud_hub.expulsion import Expulsion
    from cloud_hub.fleet import Fleet
    from cloud_hub.groups.book import Groups
    from cloud_hub.groups.saved import SavedQueries
    from cloud_hub.labels.room import LabelRoom
    from cloud_hub.link import HubLink
    from cloud_hub.metrics.room import Metrics
    from cloud_hub.mirror import Mirror
    from cloud_hub.monitoring.alerts import Alerts
    from cloud_hub.monitoring.ingest import Ingest
    from cloud_hub.monitoring.samples import Samples
    from cloud_hub.offline import Offline
    from cloud_hub.operations.room import Operations
    from cloud_hub.outward.room import Outward
    from cloud_hub.packaging import Packaging
    from cloud_hub.patches.choose import Patches
    from cloud_hub.people import People
    from cloud_hub.presence import PresenceBook
    from cloud_hub.registry import Registry
    from cloud_hub.renewals import Renewals
    from cloud_hub.replicas.room import Replica
    from cloud_hub.retraining.room import Retraining
    from cloud_hub.revocations import Revocations
    from cloud_hub.ringing import Ringing
    from cloud_hub.rollouts.controller import Controller
    from cloud_hub.rollouts.preview import Previews
    from cloud_hub.sites.room import Sites
    from cloud_hub.store.engine import Store
    from cloud_hub.trust.ca import CertificateAuthority
    from cloud_hub.trust.ceremony import Ceremony
    from cloud_hub.trust.director import Director
    from cloud_hub.trust.image import ImageRepository


@dataclass(frozen=True)
class Rooms:
    """Each field is the one object of its kind in this process."""

    config: HubConfig
    paths: HubPaths
    clock: Clock
    store: Store
    blobs: Blobs
    tensors: Blobs  # of samples
    events: Events
    people: People
    registry: Registry
    sites: Sites
    packaging: Packaging
    image: ImageRepository
    director: Director
    ceremony: Ceremony
    ca: CertificateAuthority
    devices: Devices
    presence: PresenceBook
    fleet: Fleet
    groups: Groups
    saved: SavedQueries
    claims: Claims
    capabilities: Capabilities
    revocations: Revocations
    renewals: Renewals
    expulsion: Expulsion
    desired: Desired
    offline: Offline
    rollouts: Controller
    previews: Previews
    ingest: Ingest
    alerts: Alerts
    comparisons: Comparisons
    gates: Gates
    candidates: Candidates
    patches: Patches
    samples: Samples
    asking: Asking
    labels: LabelRoom
    datasets: DataSets
    retraining: Retraining
    broker: Broker
    link: HubLink
    ringing: Ringing
    replica: Replica
    mirror: Mirror | None
    outward: Outward
    operations: Operations
    metrics: Metrics
    configuring: Configuring
