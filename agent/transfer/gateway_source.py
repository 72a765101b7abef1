"""Files from a gateway next door, which fetches for several devices at once. It is not trusted with what it gives.

Called by `agent.transfer.pull`, which checks every chunk: a gateway that lies costs its bytes, and is told of to the
operator. It learns the digests of the files asked for, and gets a grant for them, which opens nothing else.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Sequence
from typing import Final

from agent.config import Place, StatePaths
from agent.errors import ConfigError, LinkDown, LinkError, LinkTimeout, Refused
from agent.https import Connection
from agent.neighbours import check_neighbour, device_authorities, neighbour_tls
from agent.news import Tell, nobody
from agent.transfer.https import Origin, Pool, Reply
from agent.transfer.offers import Offering

THREADS: Final = 4
_log = logging.getLogger(__name__)


class GatewaySource:
    """Asks the first of `places`, and the next one when that fails."""

    name = "gateway"

    def __init__(self, places: Sequence[Place], paths: StatePaths, offering: Offering, tell: Tell = nobody) -> None:
        self._places, self._paths, self._offering, self._tell = tuple(places), paths, offering, tell
        self._at = 0
        self._pool = Pool(self._connect, "gateway", THREADS)

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        """As `Source.read`. A grant that has ended is asked for anew, once. Refused (not-found): none is given."""
        ends_at = time.monotonic() + timeout_s
        place = self._places[self._at]
        for last in (False, True):
            grant = await self._offering.grant(sha256)
            if not grant:
                raise Refused(f"{sha256}: the hub gives no grant for it", "not-found")
            path = f"/blobs/{sha256}/{offset}-{length}/{grant}"
            left = max(0.001, ends_at - time.monotonic())
            try:
                reply = await self._pool.get((place.host, place.port), path, {}, length, left)
            except (LinkDown, LinkTimeout, LinkError):
                self._next(place)
                raise
            if reply.status == 403 and not last:
                self._offering.forget(sha256)
                continue
            return self._body(reply, sha256, place)
        raise AssertionError("unreachable")

    def wrong(self, sha256: str) -> None:
        """What came from it was not the file: the next gateway's turn, and the operator hears of it."""
        place = self._places[self._at]
        _log.warning("a gateway gave wrong bytes: gateway=%s:%s file=%s", place.host, place.port, sha256)
        text = (
            f"the gateway {place.device or place.host}:{place.port} gave bytes that are not of the file {sha256[:16]}"
        )
        self._tell("warning", "gateway-wrong", text, "")
        self._next(place)

    def close(self) -> None:
        self._pool.close()

    def _body(self, reply: Reply, sha256: str, place: Place) -> bytes:
        if reply.status == 200 and not reply.more:
            return reply.body
        if reply.status in (403, 404):
            key = "not-allowed" if reply.status == 403 else "not-found"
            raise Refused(f"{sha256}: gateway {place.host}: refused with status {reply.status}", key)
        if reply.status == 503:
            raise Refused(f"{sha256}: gateway {place.host}: not now", "busy")
        self._next(place)
        raise LinkError(f"{sha256}: gateway {place.host}: expected bytes, got status {reply.status}", "bad-answer")

    def _next(self, failed: Place) -> None:
        if self._places[self._at] == failed:
            self._at = (self._at + 1) % len(self._places)

    def _connect(self, origin: Origin) -> Connection:
        """Raises OSError. Read anew each time: certificates are renewed."""
        device = next(one.device for one in self._places if (one.host, one.port) == origin)
        try:
            check = check_neighbour(device_authorities(self._paths), device)
            return Connection(*origin, neighbour_tls(self._paths), check)
        except ConfigError as error:
            raise ssl.SSLError(str(error)) from error
