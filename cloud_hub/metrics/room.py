"""Answers a scrape: what was counted, and what was looked up at most `refresh_s` seconds ago. Called by `api.metrics`.

However many ask at a time, one looks up and the others wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cloud_hub import __version__
from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unavailable
from cloud_hub.events import Events
from cloud_hub.link import HubLink
from cloud_hub.metrics import snapshot
from cloud_hub.metrics.exposition import Found, Told
from cloud_hub.metrics.meters import Meters
from cloud_hub.monitoring.committing import Job
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.monitoring.intake import CountedWindow, Problem
from cloud_hub.outward.room import Outward
from cloud_hub.store.engine import Store

BLOBS_EVERY_S: Final = 600.0
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class Watched:
    """What is looked at. `signed` is how often each key was used."""

    config: HubConfig
    paths: HubPaths
    store: Store
    blobs: Blobs
    clock: Clock
    events: Events
    signed: Counter[str]
    link: HubLink
    outward: Outward


class Metrics:
    """`meters` are for those who count."""

    def __init__(self, watched: Watched) -> None:
        self.meters = Meters()
        self._watched = watched
        self._told = Told(Found(__version__))
        self._turn = asyncio.Lock()
        self._looked_at = -float("inf")
        self._walked_at = -float("inf")
        self.meters.registry.register(self._told)

    async def text(self) -> bytes:
        """In Prometheus' text format."""
        async with self._turn:
            if time.monotonic() - self._looked_at >= self._watched.config.metrics.refresh_s:
                await self._look()
        self._count()
        return generate_latest(self.meters.registry)

    def committed(self, job: Job) -> None:
        """Counts one batch of a device."""
        refused = sum(isinstance(item, Problem) for item in job.parsed)
        size = sum(len(body) for _, body in job.fresh)
        self.meters.committed(job.batch.stream, len(job.parsed) - refused, refused, size)
        now = self._watched.clock()
        for item in job.parsed:
            if isinstance(item, CountedWindow):
                self.meters.lagged(now - item.window.end)

    async def _look(self) -> None:
        watched, found = self._watched, self._told.found
        begun, now = time.monotonic(), watched.clock()
        async with watched.store.read() as connection:
            found.snapshot = await snapshot.read(connection, now, watched.config.offline_after_s)
            found.metadata_ends = await snapshot.metadata_ends(connection)
        found.ends = await snapshot.ends(watched.paths, now)
        if begun - self._walked_at >= BLOBS_EVERY_S:
            self._walked_at = begun
            with suppress(Unavailable):  # the figure before stays
                found.blob_bytes = float(await watched.blobs.total_bytes())
        self._looked_at = time.monotonic()
        found.took_s = self._looked_at - begun

    def _count(self) -> None:
        watched, found = self._watched, self._told.found
        found.connected, found.sessions = watched.link.connected.is_set(), watched.link.session
        found.dropped, found.recorded = watched.link.dropped, watched.events.recorded
        found.delivered, found.taken = watched.outward.delivered, watched.outward.taken
        found.signed = watched.signed


def metrics(watched: Watched, ingest: Ingest) -> Metrics:
    """Counts what `ingest` commits from now on."""
    made = Metrics(watched)
    ingest.on_job = made.committed
    return made
