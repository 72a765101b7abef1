"""Alerts, groups and references on PostgreSQL: the same answers as on SQLite."""

import numpy as np

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.monitoring.reference import Reference
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.monitoring import LOOK_S, Monitored, build_module
from support.watched import START, Fleet, know_devices

NAMES = tuple(f"cam-{place}" for place in range(6))
TAGS = {name: {"site": ("north", "south", "west")[place // 2]} for place, name in enumerate(NAMES)}


async def test_a_bad_site_is_one_alert_which_is_seen_to_and_becomes_normal(
    store: Store, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    hub = Monitored(store, blobs, events, clock, group_by=("site",))
    await know_devices(store, TAGS)
    fleet = Fleet(hub, await build_module(store, blobs, np.random.default_rng(7).normal(size=(3000, 2))), NAMES, 2)
    bad = {name: lambda: fleet.rows(1.2) for name, own in TAGS.items() if own["site"] == "south"}
    await fleet.live(3)
    await fleet.live(4, bad)
    (alert,) = await fleet.open()
    assert alert.scope == "group:site=south"
    await hub.alerts.acknowledge(alert.id, "ann", "on my way")
    await hub.alerts.snooze(alert.id, 60.0, "ann")
    await hub.alerts.resolve(alert.id, "ann", "this is right", normal=True)
    await fleet.live(3, bad)
    assert [again.scope for again in await fleet.open() if again.scope.startswith("group")] == []
    watch = await hub.alerts.watches.set("digits", "fleet", Reference("period", START - LOOK_S, clock()), "ann")
    assert watch in await hub.alerts.watches.all("digits")
    (report,) = await hub.reports.drift_of("digits", device="cam-0", reference=Reference("fleet"))
    assert report.reference == "fleet"
