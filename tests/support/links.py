"""A running link for a test, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent.config import LinkLimits
from agent.link import Link
from support.mosquitto import Mosquitto
from support.waiting import until

QUICK = LinkLimits(answer_timeout_s=5.0, publish_timeout_s=5.0, reconnect_first_s=0.05, reconnect_ceiling_s=0.3)


def make_link(broker: Mosquitto, device: str = "cam-17", limits: LinkLimits = QUICK) -> Link:
    """A link of a device with a fresh certificate; not running yet."""
    tls = broker.tls(broker.client(device), device)
    return Link(device, "localhost", broker.port, lambda: tls, limits)


@asynccontextmanager
async def running(link: Link, *, wait: bool = True) -> AsyncIterator[Link]:
    """The link runs inside; with `wait` it is connected first."""
    task = asyncio.create_task(link.run())
    try:
        if wait:
            await until(link.connected.is_set, "the connection")
        yield link
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
