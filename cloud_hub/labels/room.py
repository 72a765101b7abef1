"""Builds everything that has to do with labels, for the composition root (`service`)."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.labels.bounds import Bounds
from cloud_hub.labels.desk import Labels
from cloud_hub.labels.known import KnownOutputs
from cloud_hub.labels.quality import Quality
from cloud_hub.labels.watch import LabelWatch
from cloud_hub.monitoring.alerts import Alerts
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.reports import WatchSettings
from cloud_hub.store.engine import Store


@dataclass(frozen=True)
class LabelRoom:
    """`desk` takes labels in, `quality` answers by them, `bounds` say how good is good enough, `watch` alerts."""

    desk: Labels
    quality: Quality
    bounds: Bounds
    watch: LabelWatch


def label_room(
    store: Store, blobs: Blobs, events: Events, alerts: Alerts, clock: Clock, settings: WatchSettings
) -> LabelRoom:
    known = KnownOutputs(store, blobs)
    watch = LabelWatch(store, known, alerts, clock, settings.look_s, settings.false_alarm_months)
    return LabelRoom(
        desk=Labels(store, events, known, clock, watch.touched),
        quality=Quality(store, known, References(store, blobs), clock),
        bounds=Bounds(store, events, clock),
        watch=watch,
    )
