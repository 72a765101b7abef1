"""One delivery over HTTP: signed, to an address that was judged, with a deadline, and what the answer means.

Redirects are not followed and of the answer only its status is used, so that a webhook cannot be turned into a window
onto what the hub can reach. Called by `courier` and `webhooks`; owned by `room`.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp

from cloud_hub import __version__
from cloud_hub.outward.cloud_events import MEDIA_TYPE, CloudEvent, encode
from cloud_hub.outward.destinations import any_socket, public_socket, trusted
from cloud_hub.outward.secrets import signature
from cloud_hub.outward.settings import OutwardSettings

MAX_REASON_CHARS: Final = 300
# Answers that speak of the message and not of the endpoint's state: sending it for a day will not help.
_OF_THE_MESSAGE: Final = frozenset({400, 413, 415, 422})


class Meaning(enum.Enum):
    """What an answer means."""

    DELIVERED = "delivered"
    LATER = "later"  # may succeed when it is sent again
    REFUSED = "refused"  # of this message
    GONE = "gone"  # the endpoint wants nothing any more (410)


@dataclass(frozen=True)
class Answer:
    """`status` is 0 where no answer came. `wait_s` is how long the endpoint asks to be left alone."""

    meaning: Meaning
    status: int
    reason: str
    wait_s: float = 0.0


class Sender:
    """`async with` opens and closes the connections' pool; each delivery has a connection of its own."""

    def __init__(self, settings: OutwardSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Raises OSError for authorities that cannot be read."""
        connector = aiohttp.TCPConnector(
            ssl=await asyncio.to_thread(trusted, self._settings.ca),
            socket_factory=any_socket if self._settings.private_addresses else public_socket,
            force_close=True,  # the address is judged for each delivery
            use_dns_cache=False,
            limit=0,  # each webhook sends one at a time, and there are not many of them
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
            auto_decompress=False,
            trust_env=False,  # a proxy would connect in our place, to addresses that we have not judged
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, url: str, keys: Sequence[bytes], event: CloudEvent, now: float) -> Answer:
        """Never raises for what the network or the endpoint does. `keys` sign, newest first."""
        if self._session is None:
            raise RuntimeError("the sender is not open")
        body, timestamp = encode(event), int(now)
        headers = {
            "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
            "User-Agent": f"mooring-hub/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(keys, event.id, timestamp, body),
        }
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return _meaning(response.status, response.headers.get("Retry-After", ""))
        except TimeoutError:
            return Answer(Meaning.LATER, 0, f"no answer within {self._settings.timeout_s:g} s")
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            return Answer(Meaning.LATER, 0, _words(error))


def _meaning(status: int, retry_after: str) -> Answer:
    if 200 <= status < 300:
        return Answer(Meaning.DELIVERED, status, "")
    if status == 410:
        return Answer(Meaning.GONE, status, "the endpoint answered 410 Gone")
    if status in _OF_THE_MESSAGE:
        return Answer(Meaning.REFUSED, status, f"the endpoint answered {status}")
    wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 8 else 0.0
    why = "; redirects are not followed" if 300 <= status < 400 else ""
    return Answer(Meaning.LATER, status, f"the endpoint answered {status}{why}", wait_s)


def _words(error: Exception) -> str:
    inner = getattr(error, "os_error", None) or error
    return f"{type(inner).__name__}: {inner}"[:MAX_REASON_CHARS]
