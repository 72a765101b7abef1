"""A whole hub in this process: broker, link, API and ticks, as `mooring-hub serve` runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.service import serve


@asynccontextmanager
async def running_hub(folder: Path, **settings: object) -> AsyncIterator[HubClient]:
    """A client of the API, as the operator; `settings` are fields of HubConfig. The hub lies in `folder`."""
    ports = free_ports(2)
    config = msgspec.structs.replace(
        HubConfig(
            dev=True, public_host="localhost", api_host="127.0.0.1", mqtt_host="127.0.0.1",
            api_port=ports[0], mqtt_port=ports[1],
        ),
        **settings,
    )  # fmt: skip
    paths = await initialise(folder, config)
    async with serving(paths) as client:
        yield client


@asynccontextmanager
async def serving(paths: HubPaths) -> AsyncIterator[HubClient]:
    """The hub of this directory runs inside."""
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(paths, stop.wait, lambda _: ready.set()), name="hub")
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({task, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        async with HubClient(HubContext.load(paths.context)) as client:
            yield client
    finally:
        waiting.cancel()
        stop.set()
        await asyncio.wait_for(task, 30)
