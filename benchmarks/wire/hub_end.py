"""The hub's end of benchmarks/transfer.py, a process: Mosquitto, the hub's link, and a plain web server.

Runs on the folder of a hub that was set up and stopped before. Takes one JSON object per line on standard input and
answers each with one: `ring` begins to ring a device's doorbell (a command to it, QoS 1, by the hub's own connection)
every so often, `quiet` ends that and says when each was rung (seconds of CLOCK_MONOTONIC, which all processes share).
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.wire.lines import answering
from cloud_hub.config import HubPaths
from cloud_hub.link import HubLink
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub

FIRST_RING = 1_000_000  # far above any version that the hub itself would ring
DEADLINE_S = 20.0


class Bells:
    """Rings one device after a fixed time, whether or not the last ring is through."""

    def __init__(self, link: HubLink) -> None:
        self._link = link
        self._rung: dict[int, float] = {}
        self._next = FIRST_RING
        self._task: asyncio.Task[None] | None = None
        self._rings: set[asyncio.Task[None]] = set()

    async def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "ring":
            self._rung = {}
            self._task = asyncio.create_task(self._keep_ringing(asked["device"], asked["every_s"]), name="bells")
            return {}
        if self._task is not None:
            self._task.cancel()
        await asyncio.gather(*self._rings)
        return {"rung": self._rung}

    async def _keep_ringing(self, device: str, every_s: float) -> None:
        while True:
            self._next += 1
            self._rung[self._next] = time.monotonic()
            ring = asyncio.create_task(self._link.ring(device, self._next))
            self._rings.add(ring)
            ring.add_done_callback(self._rings.discard)
            await asyncio.sleep(every_s)


async def main(folder: Path) -> None:
    paths = HubPaths(folder)
    async with AsyncExitStack() as parts:
        rooms = await parts.enter_async_context(open_hub(paths))
        await rooms.revocations.tick()
        await parts.enter_async_context(rooms.broker)
        await rooms.broker.ready(DEADLINE_S)
        await parts.enter_async_context(rooms.link)
        await asyncio.wait_for(rooms.link.connected.wait(), DEADLINE_S)
        runner = web.AppRunner(_plain(rooms), access_log=None)
        await runner.setup()
        parts.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, rooms.config.public_host, 0, ssl_context=_tls(paths))
        await site.start()
        port = runner.addresses[0][1]
        await answering({"https": f"https://{rooms.config.public_host}:{port}"}, Bells(rooms.link).answer)


def _plain(rooms: Rooms) -> web.Application:
    """What any web server does: a file, in one answer."""

    async def blob(request: web.Request) -> web.FileResponse:
        return web.FileResponse(rooms.blobs.path(request.match_info["sha256"]))

    application = web.Application()
    application.router.add_get("/{sha256:[0-9a-f]{64}}", blob)
    return application


def _tls(paths: HubPaths) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(paths.server_crt, paths.server_key)
    return context


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
