"""The composition root: every room of a hub, built on one ground. Nothing else constructs collaborators.

Built from below: who is who and who may sign (`_identity`), what is made of what devices send (`_watch`), how devices
get their files (`_delivery`), and at last what ties them together. Called by `service`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from cloud_hub.arms.candidates import Candidates
from cloud_hub.arms.comparisons import Comparisons
from cloud_hub.arms.gates import Gates
from cloud_hub.asking.room import asking
from cloud_hub.blobs import Blobs
from cloud_hub.broker import Broker
from cloud_hub.bucket.opening import open_blobs, open_tensors
from cloud_hub.building.resolve import Resolver
from cloud_hub.capabilities import Capabilities
from cloud_hub.claims import Claims
from cloud_hub.clock import Clock
from cloud_hub.clone_alerts import CloneAlerts
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.configuration.checking import RolloutCheck
from cloud_hub.configuration.fitting import Fitting
from cloud_hub.configuration.room import configuring
from cloud_hub.datasets.room import data_sets
from cloud_hub.desired import Desired
from cloud_hub.devices import Devices
from cloud_hub.events import Events
from cloud_hub.expulsion import Expulsion
from cloud_hub.fleet import Fleet
from cloud_hub.groups.book import Groups
from cloud_hub.groups.saved import SavedQueries
from cloud_hub.images.bases import Bases
from cloud_hub.intake.waiting import Intake
from cloud_hub.labels.room import LabelRoom, label_room
from cloud_hub.link import Handlers, HubLink
from cloud_hub.metrics.room import Watched, metrics
from cloud_hub.mirror import Mirror
from cloud_hub.monitoring.alerts import Alerts
from cloud_hub.monitoring.ingest import GATHER_S, Ingest
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.reports import Reports, WatchSettings
from cloud_hub.monitoring.samples import Samples
from cloud_hub.offline import Offline
from cloud_hub.operations.room import Operations
from cloud_hub.outward.room import outward
from cloud_hub.packaging import Packaging
from cloud_hub.patches.choose import Patches
from cloud_hub.people import People
from cloud_hub.presence import PresenceBook
from cloud_hub.registry import Registry
from cloud_hub.renewals import Renewals
from cloud_hub.replicas.lease import Lease
from cloud_hub.replicas.room import Replica
from cloud_hub.replicas.turns import Commit, in_turn
from cloud_hub.retraining.room import retraining
from cloud_hub.revocations import Revocations
from cloud_hub.ringing import Ringing
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.preview import Previews
from cloud_hub.rollouts.targeting import Targeting
from cloud_hub.rooms import Rooms
from cloud_hub.serving import Serving
from cloud_hub.sites.room import site_room
from cloud_hub.store.engine import Store
from cloud_hub.trust.ca import CertificateAuthority
from cloud_hub.trust.ceremony import Ceremony
from cloud_hub.trust.director import Director
from cloud_hub.trust.image import ImageRepository
from cloud_hub.trust.issuer import Issuer
from cloud_hub.trust.keys import Keys, key_folders
from cloud_hub.trust.setup import load_authority
from cloud_hub.ways import Ways
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, Presence, SignedReport

OnReport = Callable[[str, SignedReport], Awaitable[object]]


@dataclass(frozen=True)
class Ground:
    """What every room stands on."""

    config: HubConfig
    paths: HubPaths
    store: Store
    blobs: Blobs
    tensors: Blobs  # of samples
    events: Events
    catalog: dict[str, DeviceProfile]
    clock: Clock

    @classmethod
    def of(
        cls, config: HubConfig, paths: HubPaths, store: Store, catalog: dict[str, DeviceProfile], clock: Clock
    ) -> Ground:
        blobs, tensors = open_blobs(config, paths), open_tensors(config, paths)
        return cls(config, paths, store, blobs, tensors, Events(store, clock), catalog, clock)


@dataclass(frozen=True)
class _Identity:
    keys: Keys
    ca: CertificateAuthority
    broker: Broker
    image: ImageRepository
    director: Director
    claims: Claims
    revocations: Revocations
    renewals: Renewals
    devices: Devices


@dataclass(frozen=True)
class _Watch:
    alerts: Alerts
    ingest: Ingest
    comparisons: Comparisons
    labels: LabelRoom


@dataclass(frozen=True)
class _Delivery:
    capabilities: Capabilities
    serving: Serving
    patches: Patches
    mirror: Mirror | None
    ways: Ways


def compose(ground: Ground) -> Rooms:
    """Every room. Nothing listens and nothing connects yet."""
    config, paths, store, blobs, events, clock = (
        ground.config, ground.paths, ground.store, ground.blobs, ground.events, ground.clock,
    )  # fmt: skip
    identity, watch = _identity(ground), _watch(ground)
    delivery = _delivery(ground, identity)
    registry, desired = Registry(store, blobs, events, clock), Desired(store, clock)

    async def on_reports(reports: Sequence[tuple[str, DeviceReport]]) -> None:
        await rollouts.on_reports(reports)
        await asked.commands.heard_many([device for device, _ in reports])

    async def ring(device: str, director_version: int) -> None:
        delivery.serving.forget(device)
        await link.ring(device, director_version)

    async def sign_again(module: str, version: int, profile: str) -> None:
        await identity.image.sign_module(module, version, profile, "rollout")

    async def ready(some: Collection[str]) -> None:
        for device in some:
            delivery.serving.forget(device)
        await identity.director.sign_ahead(some)  # before they ask, all at once

    presence = PresenceBook(store, clock)
    intake = Intake(identity.devices.take_reports, on_reports)

    lease = Lease(store, config.replicas)
    commit = in_turn(watch.ingest.commit) if config.replicas.name else watch.ingest.commit
    handlers = _handlers(identity, delivery, commit, intake.take, presence.note)
    link = HubLink(config, paths, handlers, lambda: lease.held)
    ringing = Ringing(ready, link.ring_many)
    out = outward(config, paths, store, events, clock, link)
    targeting = Targeting(clock, config.offline_after_s)
    fitting = Fitting(blobs)
    rollouts = Controller(store, events, desired, ringing.ring_all, clock, targeting, sign_again, RolloutCheck(fitting))
    asked = asking(config, store, blobs, ground.tensors, events, desired, link, ring, clock)
    packaging = _packaging(ground, registry)
    datasets = data_sets(config, store, blobs, ground.tensors, events, clock)
    return Rooms(
        config=config,
        paths=paths,
        clock=clock,
        store=store,
        blobs=blobs,
        tensors=ground.tensors,
        events=events,
        people=People(store, events, clock),
        registry=registry,
        sites=site_room(paths, store, blobs, events, watch.ingest, clock),
        packaging=packaging,
        image=identity.image,
        director=identity.director,
        ceremony=Ceremony(store, blobs, events, identity.keys, clock),
        ca=identity.ca,
        devices=identity.devices,
        presence=presence,
        fleet=Fleet(store, clock, config.offline_after_s),
        groups=Groups(store, events, clock, config.offline_after_s, rollouts.join),
        saved=SavedQueries(store, events, clock),
        claims=identity.claims,
        capabilities=delivery.capabilities,
        revocations=identity.revocations,
        renewals=identity.renewals,
        expulsion=_expulsion(ground, identity, link),
        desired=desired,
        offline=Offline(store, blobs, events, identity.keys, clock),
        rollouts=rollouts,
        previews=Previews(store, blobs, targeting, clock, config.patches.enabled),
        ingest=watch.ingest,
        alerts=watch.alerts,
        comparisons=watch.comparisons,
        gates=Gates(store, watch.comparisons, rollouts, clock, config.look_s),
        candidates=Candidates(store, blobs, events, rollouts, watch.comparisons, ringing.ring_all, clock),
        patches=delivery.patches,
        samples=Samples(store),
        asking=asked,
        labels=watch.labels,
        datasets=datasets,
        retraining=retraining(
            config.retraining, store, blobs, events, clock, datasets.book, registry, packaging, identity.image, rollouts
        ),
        broker=identity.broker,
        link=link,
        ringing=ringing,
        replica=Replica.of(store, config.replicas, lease, link),
        mirror=delivery.mirror,
        metrics=metrics(
            Watched(config, paths, store, blobs, clock, events, identity.keys.signed, link, out), watch.ingest
        ),
        outward=out,
        operations=_operations(config, store, events, clock),
        configuring=configuring(store, events, rollouts, fitting, clock),
    )


def _identity(ground: Ground) -> _Identity:
    config, paths, store, events, clock = ground.config, ground.paths, ground.store, ground.events, ground.clock
    certificate_life, crl_life = timedelta(days=config.certificate_days), timedelta(days=config.crl_days)
    keys, broker = Keys(*key_folders(paths)), Broker(config, paths)
    ca = load_authority(paths, certificate_life)
    issuer = Issuer(ca, config.ca, certificate_life)
    claims = Claims(store, events, ca.server_ca_sha256, ground.catalog, clock)
    image = ImageRepository(store, ground.blobs, events, keys, clock)
    director = Director(store, keys, clock)
    shared = bool(config.replicas.name)
    revocations = Revocations(store, events, ca, issuer, paths.crl, crl_life, clock, broker.reload, shared)
    renewals = Renewals(store, events, issuer, revocations, clock)
    clones = CloneAlerts(events, clock)
    devices = Devices(
        config, store, events, ca, issuer, claims, revocations, renewals, image, director, ground.catalog, clock, clones
    )
    return _Identity(keys, ca, broker, image, director, claims, revocations, renewals, devices)


def _watch(ground: Ground) -> _Watch:
    config, store, blobs, events, clock = ground.config, ground.store, ground.blobs, ground.events, ground.clock
    settings = WatchSettings(config.look_s, config.false_alarm_months)
    references = References(store, blobs)
    reports = Reports(store, references, clock, settings)
    alerts = Alerts(store, events, references, reports, clock, settings, config.monitoring.group_by)
    comparisons = Comparisons(store, references, clock, config.look_s)
    labels = label_room(store, blobs, events, alerts, clock, settings)
    ingest = Ingest(
        store, events, references, clock, config.look_s, alerts.touched, config.monitoring, labels.desk, GATHER_S
    )
    return _Watch(alerts, ingest, comparisons, labels)


def _delivery(ground: Ground, identity: _Identity) -> _Delivery:
    config, store, blobs, clock = ground.config, ground.store, ground.blobs, ground.clock
    capabilities = Capabilities(ground.paths, clock, bool(config.replicas.name))
    serving = Serving(store, blobs, identity.image, identity.director, partial(capabilities.allows, "grant"))
    patches = Patches(store, blobs, config.patches)
    mirror = Mirror(config.transfer.s3, blobs, clock, serving.assigned) if config.transfer.s3.bucket else None
    ways = Ways(config.transfer, serving, capabilities, clock, patches, mirror)
    return _Delivery(capabilities, serving, patches, mirror, ways)


def _handlers(
    identity: _Identity,
    delivery: _Delivery,
    commit: Commit,
    on_report: OnReport,
    on_presence: Callable[[str, Presence], None],
) -> Handlers:
    """Who answers what devices say."""
    return Handlers(
        delivery.serving.answer,
        identity.renewals.answer,
        commit,
        on_report,
        identity.devices.behind,
        delivery.ways.answer,
        on_presence,
    )


def _operations(config: HubConfig, store: Store, events: Events, clock: Clock) -> Operations:
    api = config.api
    keep_s = api.operation_hours * 3600.0
    return Operations(store, events, clock, api.operations, api.operations_waiting, keep_s, not config.replicas.name)


def _packaging(ground: Ground, registry: Registry) -> Packaging:
    config, paths = ground.config, ground.paths
    resolver, bases = Resolver(config.building, paths.wheel_cache), Bases(config.images)
    store, blobs, events = ground.store, ground.blobs, ground.events
    return Packaging(store, blobs, events, registry, ground.catalog, config.publisher, ground.clock, resolver, bases)


def _expulsion(ground: Ground, identity: _Identity, link: HubLink) -> Expulsion:
    devices, director, revocations = identity.devices, identity.director, identity.revocations
    return Expulsion(ground.config, ground.paths, identity.ca, devices, director, revocations, link, ground.clock)
