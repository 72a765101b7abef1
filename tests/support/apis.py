"""The API of a hub over TLS, in this process, without a broker: what a client of it can be tried against."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from cloud_hub.api.app import application
from cloud_hub.api.route import Route
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.config import HubPaths
from cloud_hub.operator.context import HubContext
from cloud_hub.rooms import Rooms
from cloud_hub.service import gate, open_hub


@dataclass(frozen=True)
class Api:
    """`context` is the operator's, who is admin."""

    context: HubContext
    rooms: Rooms


@asynccontextmanager
async def serving_api(paths: HubPaths, more: Sequence[Route] = ()) -> AsyncIterator[Api]:
    """The hub's own routes and some more, at the port that its settings say."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(paths.server_crt, paths.server_key)
    async with open_hub(paths) as rooms, rooms.operations:
        runner = web.AppRunner(application(rooms, (*more, *EVERY_ROUTE), gate(rooms)), shutdown_timeout=5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", rooms.config.api_port, ssl_context=tls).start()
            yield Api(HubContext.load(paths.context), rooms)
        finally:
            await runner.cleanup()
