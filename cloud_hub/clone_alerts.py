"""What the hub says when two devices hold one key: an event and an alert, open until the device has a new identity.

What gives them away is `clones`. Called by `devices`, in the transaction of the report or of the enrolment.
"""

from __future__ import annotations

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import CLONE, AlertEvidence, ProblemCount, find_open
from cloud_hub.monitoring.alert_life import AlertLife
from cloud_hub.monitoring.looks import Group


class CloneAlerts:
    """At most one open alert per device; the event is recorded when it opens."""

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._life = AlertLife(events, clock)

    async def suspect(self, connection: AsyncConnection, device: str, why: str) -> None:
        """Again only counts."""
        group = Group("", device)
        alert = await find_open(connection, CLONE, group)
        if alert is None:
            evidence = AlertEvidence(threshold=0.0, since=self._clock(), problems=(ProblemCount(CLONE, 1, why),))
            await self._life.open(connection, CLONE, "", group, evidence, severity="critical")
            await self._events.record(connection, "device.clone-suspected", device, device, text=why)
            return
        count = sum(problem.count for problem in alert.evidence.problems) + 1
        evidence = msgspec.structs.replace(alert.evidence, problems=(ProblemCount(CLONE, count, why),))
        await self._life.update(connection, alert.id, evidence)

    async def resolve(self, connection: AsyncConnection, device: str) -> None:
        """The device has another key, or none any more."""
        alert = await find_open(connection, CLONE, Group("", device))
        if alert is not None:
            await self._life.resolve(connection, alert, "superseded")
