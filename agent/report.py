"""The device manifest: what runs here and how the last update went, signed by this device, sent on every change.

The only source of truth that rollouts have. The counter is on the disk before a report leaves, so that it never
repeats. Also writes `status.json` for the command line. One unit of the supervisor; made by `agent.service`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from agent.config import ReportLimits
from agent.errors import LinkError, NotAuthorised
from agent.identity import Credentials, Identity
from agent.link import Link, LinkStatus
from agent.store import AgentStore
from modules.messages import DeviceReport, SignedReport, encode, encode_report
from modules.topics import up
from modules.vitals import Vitals

_COUNTER = "report-counter"
STATUS_EVERY_S = 10.0  # counts change without a change of state; the file follows at this pace
RETRY_S = 5.0

_logger = logging.getLogger(__name__)

Compose = Callable[[], DeviceReport]  # everything but counter and time


class Status(msgspec.Struct, frozen=True):
    """`status.json`: the report as last composed, how the link stands, and what waits for the hub.

    `traffic`: bytes of files since the start, by where they came from, see `agent.transfer.traffic`.
    """

    report: DeviceReport
    link: LinkStatus
    waiting: Mapping[str, int]
    pid: int
    written_at: float
    traffic: Mapping[str, int] = {}


class Reporter:
    """`changed` may be called often, from the loop; what follows is debounced. `vitals` is called in a thread, for a
    report that goes out: how the machine is has never changed anything.
    """

    def __init__(
        self,
        identity: Identity | Credentials,
        store: AgentStore,
        link: Link,
        limits: ReportLimits,
        compose: Compose,
        write_status: Callable[[DeviceReport], None],
        vitals: Callable[[], Vitals | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._store = store
        self._link = link
        self._limits = limits
        self._compose = compose
        self._write_status = write_status
        self._vitals = vitals
        self._clock = clock
        self._changed = asyncio.Event()
        self._dirty = True  # the hub has not seen the newest report

    def changed(self) -> None:
        self._dirty = True
        self._changed.set()

    async def run(self) -> None:
        """Publishes on change, on every connection and every `every_s`, until cancelled."""
        sent_at = time.monotonic() - self._limits.every_s
        while True:
            self._write_status(self._now(await self._counter()))
            due = self._dirty or time.monotonic() - sent_at >= self._limits.every_s
            if due and self._link.connected.is_set() and await self._publish():
                sent_at = time.monotonic()
            await self._pause(RETRY_S if self._dirty and self._link.connected.is_set() else STATUS_EVERY_S)

    async def _pause(self, most_s: float) -> None:
        """Until something has changed, and a little longer so that changes come together."""
        try:
            async with asyncio.timeout(most_s):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(self._limits.debounce_s)
        self._changed.clear()

    async def _publish(self) -> bool:
        """Whether the broker has it. A failure leaves the report to the next round; being offline is normal."""
        self._dirty = False
        vitals = await asyncio.to_thread(self._vitals)
        report = msgspec.structs.replace(self._now(await self._counter() + 1), vitals=vitals)
        await self._store.put(_COUNTER, report.counter)
        body = encode_report(report)
        payload = encode(SignedReport(body, self._identity.sign(body)))
        try:
            await self._link.publish(up(self._identity.device, "state"), payload, retain=True)
        except LinkError as error:
            self._dirty = True
            level = logging.ERROR if isinstance(error, NotAuthorised) else logging.INFO
            _logger.log(level, "report not sent, trying again", extra={"key": error.key, "why": str(error)})
            return False
        return True

    async def _counter(self) -> int:
        return await self._store.get(_COUNTER, int) or 0

    def _now(self, counter: int) -> DeviceReport:
        return msgspec.structs.replace(self._compose(), counter=counter, at=self._clock())


def write_status(path: Path, status: Status) -> None:
    """Replaced in one step; not synced, because after a power cut it is stale anyway."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(status)) + b"\n")
    os.replace(fresh, path)


def read_status(path: Path) -> Status | None:
    """None when no agent has written one. Raises msgspec.DecodeError when it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Status)
    except FileNotFoundError:
        return None
