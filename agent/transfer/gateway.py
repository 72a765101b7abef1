"""A gateway: serves files to neighbours on the local network over mutual TLS, as far as their grants go.

`GET /blobs/SHA256/OFFSET-LENGTH/GRANT` gives bytes [OFFSET, OFFSET+LENGTH); 403 when the hub refuses the grant, 404 for
what the hub or the cache has no room for, 503 when it cannot be had now. HTTP/1.1 by `agent.endpoint`, with the same
limits and deadlines. Made by `service` where `gateway.listen` is set; `run` is a unit of the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Awaitable
from typing import Final

import msgspec

from agent.config import GatewaySettings, StatePaths, parse_place
from agent.endpoint.exchange import BYTES, RETRY, Limits, Refused, Reply, Request
from agent.endpoint.http import Endpoint
from agent.errors import ConfigError, LinkError
from agent.errors import Refused as HubRefused
from agent.neighbours import gateway_tls
from agent.transfer.gateway_store import GatewayStore
from modules.messages import MAX_BLOCK_BYTES

LOOK_S: Final = 30.0
DRAIN_S: Final = 2.0
BACKLOG: Final = 128
_TARGET: Final = re.compile(rb"/blobs/([0-9a-f]{64})/(\d{1,15})-(\d{1,9})/([A-Za-z0-9._-]{0,80})")
_STATUS: Final = {"not-allowed": 403, "not-found": 404, "bad-request": 400}

_log = logging.getLogger(__name__)


class Neighbours:
    """Answers requests from the store. A `Handler`: it never raises."""

    def __init__(self, store: GatewayStore, settings: GatewaySettings) -> None:
        self._store, self._settings = store, settings
        self._under_way = 0

    def handle(self, request: Request) -> Reply | Awaitable[Reply]:
        match = _TARGET.fullmatch(request.target)
        if request.method != b"GET":
            return self.refused(Refused(405, "expected GET"))
        if match is None or not 1 <= int(match[3]) <= MAX_BLOCK_BYTES:
            return self.refused(Refused(404, "expected /blobs/SHA256/OFFSET-LENGTH/GRANT"))
        if self._under_way >= self._settings.requests:
            return self.refused(Refused(503, f"expected at most {self._settings.requests} requests at a time", RETRY))
        self._under_way += 1
        return self._answer(match[1].decode(), int(match[2]), int(match[3]), match[4].decode())

    def refused(self, error: Refused) -> Reply:
        return Reply(error.status, msgspec.json.encode({"error": str(error)}), headers=error.headers)

    async def _answer(self, sha256: str, offset: int, length: int, grant: str) -> Reply:
        try:
            async with asyncio.timeout(self._settings.request_s):
                return Reply(200, await self._store.read(sha256, offset, length, grant), kind=BYTES)
        except HubRefused as error:
            return self.refused(Refused(_STATUS.get(error.key, 503), error.key, b"" if error.key in _STATUS else RETRY))
        except (LinkError, TimeoutError):
            return self.refused(Refused(503, "it cannot be had now", RETRY))
        except OSError as error:
            _log.warning("a neighbour's request failed: why=%s", error)
            return self.refused(Refused(503, "it cannot be had now", RETRY))
        finally:
            self._under_way -= 1


class Gateway:
    """`ready` is set while it listens, at `port`."""

    def __init__(self, settings: GatewaySettings, paths: StatePaths, store: GatewayStore) -> None:
        self._settings, self._paths, self._store = settings, paths, store
        self._context: tuple[tuple[int, ...], ssl.SSLContext] | None = None
        self.ready = asyncio.Event()
        self.port = 0

    async def run(self) -> None:
        """Until cancelled. Raises OSError when it cannot listen or keep anything."""
        await self._known()
        limits = Limits(
            body_bytes=0,
            header_bytes=4096,
            connections=self._settings.connections,
            pipeline=4,
            body_s=20.0,
            idle_s=60.0,
        )
        async with self._store:
            endpoint = Endpoint(Neighbours(self._store, self._settings), limits, self._tls)
            place = parse_place(self._settings.listen, device=False)
            sock = _listening(place.host, place.port)
            self.port = sock.getsockname()[1]
            try:
                await endpoint.start([sock])
                _log.info("gateway listens: host=%s port=%s", place.host, self.port)
                self.ready.set()
                await asyncio.Event().wait()
            finally:
                self.ready.clear()
                await asyncio.shield(endpoint.drain(DRAIN_S))

    async def _known(self) -> None:
        """Waits until this device knows who its neighbours are. Says once that it waits."""
        told = False
        while True:
            try:
                self._tls()
            except (ConfigError, OSError) as error:
                if not told:
                    _log.warning("gateway not started yet: why=%s", error)
                told = True
                await asyncio.sleep(LOOK_S)
            else:
                return

    def _tls(self) -> ssl.SSLContext:
        """With the certificate of now: a renewal puts another one there."""
        files = (self._paths.certificate, self._paths.key, self._paths.device_ca)
        stamp = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
        if self._context is None or self._context[0] != stamp:
            self._context = stamp, gateway_tls(self._paths)
        return self._context[1]


def _listening(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
