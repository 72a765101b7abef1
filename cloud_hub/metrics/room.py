"""Answers a scrape: what was counted, and what was looked up at most `refresh_s` seconds ago. Called by `api.metrics`.

However many ask at a time, one looks up and the others wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cloud_hub import __version__
from cloud_hub.clock import Clock
from cloud_hub.metrics import snapshot
from cloud_hub.metrics.exposition import Found, Told
from cloud_hub.metrics.meters import Meters
from cloud_hub.metrics.settings import MetricsSettings
from cloud_hub.monitoring.committing import Job
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.monitoring.intake import CountedWindow, Problem

if TYPE_CHECKING:
    from cloud_hub.rooms import Rooms

BLOBS_EVERY_S: Final = 600.0
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
log = logging.getLogger(__name__)


class Metrics:
    """`meters` are for those who count."""

    def __init__(self, settings: MetricsSettings, clock: Clock, signed: Counter[str]) -> None:
        """`signed` is how often each key was used."""
        self.meters = Meters()
        self._clock, self._signed = clock, signed
        self._settings = settings
        self._told = Told(Found(__version__))
        self._turn = asyncio.Lock()
        self._looked_at = -float("inf")
        self._walked_at = -float("inf")
        self.meters.registry.register(self._told)

    async def text(self, rooms: Rooms) -> bytes:
        """In Prometheus' text format."""
        async with self._turn:
            if time.monotonic() - self._looked_at >= self._settings.refresh_s:
                await self._look(rooms)
        self._count(rooms)
        return generate_latest(self.meters.registry)

    async def _look(self, rooms: Rooms) -> None:
        found, begun, now = self._told.found, time.monotonic(), rooms.clock()
        async with rooms.store.read() as connection:
            found.snapshot = await snapshot.read(connection, now, rooms.config.offline_after_s)
        found.ends = await snapshot.ends(rooms.paths, now)
        if begun - self._walked_at >= BLOBS_EVERY_S:
            self._walked_at = begun
            found.blob_bytes = await snapshot.blob_bytes(rooms.paths.blobs)
        self._looked_at = time.monotonic()
        found.took_s = self._looked_at - begun

    def _count(self, rooms: Rooms) -> None:
        found = self._told.found
        found.connected, found.sessions = rooms.link.connected.is_set(), rooms.link.session
        found.dropped, found.recorded = rooms.link.dropped, rooms.events.recorded
        found.delivered, found.taken = rooms.outward.delivered, rooms.outward.taken
        found.signed = self._signed

    def committed(self, job: Job) -> None:
        """Counts one batch."""
        refused = sum(isinstance(item, Problem) for item in job.parsed)
        size = sum(len(body) for _, body in job.fresh)
        self.meters.committed(job.batch.stream, len(job.parsed) - refused, refused, size)
        now = self._clock()
        for item in job.parsed:
            if isinstance(item, CountedWindow):
                self.meters.lagged(now - item.window.end)


def metrics(settings: MetricsSettings, clock: Clock, signed: Counter[str], ingest: Ingest) -> Metrics:
    """Counts what `ingest` commits from now on."""
    made = Metrics(settings, clock, signed)
    ingest.on_job = made.committed
    return made
