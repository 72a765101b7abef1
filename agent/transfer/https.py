"""Files over HTTPS in ranges: from the hub, a store or a CDN, by the address that the hub offers.

The hub is checked by its own authority, every other host by the system's. What comes is checked by whoever asked. No
request carries anything secret but the address itself: no certificate, no token, no cookie.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, RemoteDisconnected
from typing import Final
from urllib.parse import urljoin, urlsplit

from agent.errors import LinkDown, LinkError, LinkTimeout, Refused
from agent.https import Connection
from agent.transfer.offers import Offering

THREADS: Final = 6
IDLE_S: Final = 30.0
MAX_REDIRECTS: Final = 3
REDIRECTS: Final = (301, 302, 303, 307, 308)
MAX_URL_CHARS: Final = 4096
_STALE: Final = (RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

Origin = tuple[str, int]


@dataclass(frozen=True)
class Reply:
    """`more`: the body did not end with what is here."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    more: bool


@dataclass
class _Idle:
    connection: Connection
    since: float


@dataclass
class _Request:
    """One question, while a thread works on it. `unwanted`: nobody waits for the answer any more."""

    origin: Origin
    path: str
    headers: Mapping[str, str]
    most: int
    ends_at: float
    connection: Connection | None = None
    unwanted: bool = False

    def abandon(self) -> None:
        """The thread must not wait on for what nobody wants."""
        self.unwanted = True
        if self.connection is not None:
            self.connection.abort()


class Pool:
    """Connections that are kept for a while, and the threads that wait on them. `connect` makes one to an origin."""

    def __init__(self, connect: Callable[[Origin], Connection], name: str, threads: int = THREADS) -> None:
        self._connect, self._threads = connect, threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[_Idle]] = {}
        self._closed = False
        self._later: asyncio.TimerHandle | None = None

    async def get(self, origin: Origin, path: str, headers: Mapping[str, str], most: int, timeout_s: float) -> Reply:
        """At most `most` bytes of the answer, within `timeout_s` in all. Raises LinkDown, LinkTimeout, LinkError."""
        request = _Request(origin, path, headers, most, time.monotonic() + timeout_s)
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._get, request)
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError as error:
            raise LinkTimeout(f"{origin[0]}:{origin[1]}: no answer within {timeout_s:g} s") from error
        finally:
            self._sweep_later()
            if not work.done() or work.cancelled():
                request.abandon()

    def sweep(self, older_than_s: float = IDLE_S) -> None:
        """Closes connections that nobody has used for so long."""
        limit = time.monotonic() - older_than_s
        with self._lock:
            old = [(origin, idle) for origin, kept in self._idle.items() for idle in kept if idle.since <= limit]
            for origin, idle in old:
                self._idle[origin].remove(idle)
        for _, idle in old:
            idle.connection.close()

    def close(self) -> None:
        """Ends everything; threads that wait end at their deadlines."""
        self._closed = True
        if self._later is not None:
            self._later.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.sweep(0.0)

    def _sweep_later(self) -> None:
        """The last connections of a download are not kept until the next one."""
        if self._later is not None:
            self._later.cancel()
        if not self._closed:
            self._later = asyncio.get_running_loop().call_later(IDLE_S + 1.0, self.sweep)

    def _get(self, request: _Request) -> Reply:
        where = f"{request.origin[0]}:{request.origin[1]}"
        try:
            kept = self._take(request.origin)
            if kept is not None:
                try:
                    return self._ask(request, kept)
                except _STALE:
                    # The other side had ended it meanwhile; asking again for bytes is safe.
                    if request.unwanted:
                        raise
            return self._ask(request, self._connect(request.origin))
        except TimeoutError as error:
            raise LinkTimeout(f"{where}: {error}") from error
        except ssl.SSLCertVerificationError as error:
            why = getattr(error, "verify_message", "") or error
            raise LinkError(f"{where}: its certificate is not good: {why}", "bad-certificate") from error
        except OSError as error:
            raise LinkDown(f"{where}: {error}") from error
        except (HTTPException, ValueError) as error:
            raise LinkError(f"{where}: {error!r}", "bad-answer") from error

    def _ask(self, request: _Request, connection: Connection) -> Reply:
        keep = False
        request.connection = connection
        try:
            connection.until(request.ends_at)
            connection.request("GET", request.path, headers={"Accept-Encoding": "identity", **request.headers})
            with connection.getresponse() as answer:
                body = answer.read(request.most + 1)
                more = len(body) > request.most
                if not more and answer.length:
                    raise ConnectionResetError(f"expected {answer.length} bytes more, and it ended")
                keep = not more and not answer.will_close
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Reply(answer.status, headers, body[: request.most], more)
        finally:
            request.connection = None
            if not (keep and self._give_back(request.origin, connection)):
                connection.close()

    def _take(self, origin: Origin) -> Connection | None:
        self.sweep()
        with self._lock:
            kept = self._idle.get(origin)
            return kept.pop().connection if kept else None

    def _give_back(self, origin: Origin, connection: Connection) -> bool:
        with self._lock:
            kept = self._idle.setdefault(origin, [])
            if self._closed or len(kept) >= self._threads:
                return False
            kept.append(_Idle(connection, time.monotonic()))
            return True


class HttpsSource:
    """`hub` is the origin of the hub's API, which `hub_tls` verifies."""

    name = "https"

    def __init__(
        self,
        offering: Offering,
        hub: Origin,
        hub_tls: Callable[[], ssl.SSLContext],
        system_tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._offering, self._hub = offering, hub
        self._make = {True: hub_tls, False: system_tls}
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._pool = Pool(self._connect, "https")

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        """As `Source.read`. An address that has ended is asked for anew, once. Refused (not-found): none is offered."""
        ends_at = time.monotonic() + timeout_s
        for last in (False, True):
            url = await self._offering.url(sha256)
            if not url:
                raise Refused(f"{sha256}: the hub offers no address for it", "not-found")
            reply = await self._get(url, offset, length, ends_at)
            if reply.status in (401, 403, 410) and not last:
                self._offering.forget(sha256)
                continue
            return stretch(reply, sha256, offset, length)
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._pool.close()

    async def _get(self, url: str, offset: int, length: int, ends_at: float) -> Reply:
        url = _joined(f"https://{bracketed(self._hub[0])}:{self._hub[1]}/", url)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        origin, path = split(url)
        for _ in range(MAX_REDIRECTS + 1):
            reply = await self._pool.get(origin, path, headers, length, max(0.001, ends_at - time.monotonic()))
            if reply.status not in REDIRECTS:
                return reply
            url = _joined(url, reply.headers.get("location", ""))
            origin, path = split(url)
        raise LinkError(f"{origin[0]}: expected at most {MAX_REDIRECTS} redirects, got more", "bad-answer")

    def _connect(self, origin: Origin) -> Connection:
        ours = origin == self._hub
        if ours not in self._contexts:
            self._contexts[ours] = self._make[ours]()
        return Connection(*origin, self._contexts[ours])


def split(url: str) -> tuple[Origin, str]:
    """Origin and path of an https address. Raises LinkError (bad-answer) on any other."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise LinkError(f"address: {error}", "bad-answer") from error
    if parts.scheme != "https" or not host or parts.username is not None:
        # Not shown whole: what follows the path is a right.
        raise LinkError(
            f"address: expected https://HOST/PATH, got {parts.scheme[:20]}://{(host or '')[:80]}", "bad-answer"
        )
    return (host, port), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def stretch(reply: Reply, what: str, offset: int, length: int) -> bytes:
    """The bytes asked for out of an answer. Raises Refused, LinkError (bad-answer)."""
    status = reply.status
    if status == 416:
        return b""
    if status in (401, 403, 410):
        raise Refused(f"{what}: refused with status {status}", "not-allowed")
    if status == 404:
        raise Refused(f"{what}: not there", "not-found")
    if status in (429, 503):
        raise Refused(f"{what}: not now (status {status})", "busy")
    if status == 200 and offset == 0:
        return reply.body  # the whole file in the place of a range, which a server may send
    began = reply.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0].strip()
    if status != 206 or began != str(offset):
        got = f"status {status}, from {began or 'nowhere'}"
        raise LinkError(f"{what}: expected at most {length} bytes from {offset}, got {got}"[:300], "bad-answer")
    if reply.more:
        raise LinkError(f"{what}: expected at most {length} bytes from {offset}, got more", "bad-answer")
    return reply.body


def bracketed(host: str) -> str:
    """As it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _joined(base: str, url: str) -> str:
    if len(url) > MAX_URL_CHARS or not (url.isascii() and url.isprintable()) or " " in url:
        raise LinkError("address: expected at most 4096 plain characters", "bad-answer")
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise LinkError("address: expected https://HOST/PATH", "bad-answer") from error
