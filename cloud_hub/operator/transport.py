"""HTTP to one hub: TLS checked against the hub's own CA, bearer token, deadlines, answers parsed into types.

Knows no operation of the API; those are `client`. Every failure is one of `errors`.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar, cast, get_origin
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from cloud_hub.api.route import PREFIX, REVISION_HEADER
from cloud_hub.operator import marks
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.errors import ContextError, FileError, HubLost, HubUnreachable, Refused
from cloud_hub.operator.persisting import persist
from cloud_hub.operator.rows import Rows

CONNECT_S: Final = 10.0
ANSWER_S: Final = 120.0  # without a byte
PIECE_BYTES: Final = 256 * 1024
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
Progress = Callable[[int], None]  # how many more bytes have gone over the wire
Query = Mapping[str, str | int | float | Sequence[str]]
NO_QUERY: Final[Query] = MappingProxyType({})
Pull = Callable[[], Awaitable[bytes]]  # the next bytes, as they come; none at the end
KEY_HEADER: Final = "Idempotency-Key"
_REMEMBERS: Final = 2  # the revision of the API from which on hubs remember keys
_NOT_REMEMBERED: Final = ("/login", "/enroll", "/renew")
_Answer = TypeVar("_Answer")
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Got:
    """A whole answer. `next` is the path of the page behind it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    next: str = ""


def path_of(*parts: str | int) -> str:
    """A path below the API's prefix, each part quoted; a slash in a part stays one part."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


class Transport:
    """`async with Transport(context)`: one session with the hub."""

    def __init__(self, context: HubContext, reason: str = "") -> None:
        """`reason` is said with every request, for the audit trail."""
        self._context = context
        self._reason = reason
        self._session: aiohttp.ClientSession | None = None
        self._revision: int | None = None  # of the hub's API, as its last answer said

    async def __aenter__(self) -> Self:
        tls = _tls(self._context)
        reason = {"X-Mooring-Reason": self._reason} if self._reason else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            headers={"Authorization": f"Bearer {self._context.token}"} | reason,
            timeout=_patience(ANSWER_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        answer: type[_Answer],
        method: str,
        path: str,
        body: msgspec.Struct | None = None,
        query: Query = NO_QUERY,
        answer_s: float = ANSWER_S,
    ) -> _Answer:
        """The JSON answer as `answer`, within `answer_s` seconds. Values of `query` that are empty are left out.

        A list is a `Rows`, which knows where the next page is.
        """
        return self.parsed(answer, await self.exchange(method, path, body, query, answer_s))

    async def next_page(self, rows: Rows[_Row]) -> Rows[_Row]:
        """The page behind this one."""
        got = await self.exchange("GET", rows.next)
        page = self.parsed(rows.kind, got)
        if not isinstance(page, Rows) or page.next == rows.next:
            raise HubUnreachable("answer-invalid", f"{rows.next[:200]}: the page behind it is the page itself")
        return page

    async def raw(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None = None,
        query: Query = NO_QUERY,
        answer_s: float = ANSWER_S,
    ) -> bytes:
        """The answer's bytes, at most MAX_ANSWER_BYTES."""
        return (await self.exchange(method, path, body, query, answer_s)).body

    async def exchange(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None = None,
        query: Query = NO_QUERY,
        answer_s: float = ANSWER_S,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Got:
        """One question and its whole answer.

        A connection that is lost is made anew and the question asked again, for RETRY_S: questions that change nothing
        always, those with a key if the hub remembers them. Every POST has a key of its own.
        """
        data = None if body is None else msgspec.json.encode(body)
        told = {**headers, **marks.conditions(method)}
        if method == "POST" and path not in _NOT_REMEMBERED:
            told[KEY_HEADER] = f'"{uuid.uuid4()}"'

        async def once() -> Got:
            return await self._once(method, path, data, query, told, answer_s)

        got = await persist(once, partial(self._may_repeat, method, KEY_HEADER in told))
        marks.note(got.headers.get("ETag", ""))
        return got

    async def _may_repeat(self, method: str, keyed: bool) -> bool:
        """Whether the same request again has no second effect."""
        if method in ("GET", "HEAD"):
            return True
        if keyed and self._revision is None:
            await self._once("GET", "/health", None, NO_QUERY, {}, CONNECT_S)
        return keyed and (self._revision or 1) >= _REMEMBERS

    async def _once(
        self, method: str, path: str, data: bytes | None, query: Query, headers: Mapping[str, str], answer_s: float
    ) -> Got:
        parts: list[bytes] = []
        size = 0
        async with self._request(method, path, data, query, headers, answer_s) as response:
            async for part in response.content.iter_chunked(PIECE_BYTES):
                parts.append(part)
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise HubUnreachable("answer-too-large", f"{path}: expected at most {MAX_ANSWER_BYTES} bytes")
            return Got(response.status, response.headers, b"".join(parts), self._next_of(response))

    def parsed(self, answer: type[_Answer], got: Got) -> _Answer:
        """As `ask`."""
        try:
            found = msgspec.json.decode(got.body, type=answer)
        except msgspec.DecodeError as error:
            raise HubUnreachable(
                "answer-invalid", f"{self._context.url}: the answer is not of this version's form ({error})"
            ) from error
        if get_origin(answer) is not list:
            return found
        total = got.headers.get("X-Total-Count", "")
        rows: Rows[Any] = Rows(cast(list[Any], found), cast(type[list[Any]], answer), got.next, _number(total))
        return cast(_Answer, rows)

    def _next_of(self, response: aiohttp.ClientResponse) -> str:
        """The path of the next page below the API's prefix. A link to elsewhere would take the token there."""
        if "next" not in response.links:
            return ""
        url = URL(str(response.links["next"]["url"]))
        if url.origin() != URL(self._context.url).origin() or not url.raw_path.startswith(f"{PREFIX}/"):
            raise HubUnreachable("answer-invalid", f"{response.url.path}: the next page is at {str(url)[:200]}")
        return url.raw_path_qs.removeprefix(PREFIX)

    @asynccontextmanager
    async def stream(self, path: str, query: Query, headers: Mapping[str, str], silent_s: float) -> AsyncIterator[Pull]:
        """Bytes as they come; `silent_s` is how long there may be none."""
        async with self._request("GET", path, None, query, headers, silent_s) as response:

            async def pull() -> bytes:
                with self._named("GET", path):
                    return await response.content.readany()

            yield pull

    async def upload(self, answer: type[_Answer], path: str, file: Path, progress: Progress) -> _Answer:
        """Posts the file's bytes in a stream."""
        size = _size(file)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with self._request("POST", path, _pieces(file, progress), NO_QUERY, headers) as response:
            return msgspec.json.decode(await response.read(), type=answer)

    async def download(self, path: str, target: Path, progress: Progress, query: Query = NO_QUERY) -> int:
        """Writes the answer to `target`, which appears whole or not at all; how many bytes it has."""
        fresh = target.with_name(f".{target.name}.part")
        written = 0
        try:
            with fresh.open("wb") as file:
                async with self._request("GET", path, None, query) as response:
                    async for piece in response.content.iter_chunked(PIECE_BYTES):
                        await asyncio.to_thread(file.write, piece)
                        written += len(piece)
                        progress(len(piece))
            fresh.replace(target)
        except OSError as error:
            raise FileError("not-written", f"{target}: {error.strerror or error}; nothing was kept") from error
        finally:
            fresh.unlink(missing_ok=True)
        return written

    async def append(self, path: str, file: BinaryIO, span: tuple[int, int], progress: Progress) -> None:
        """Writes bytes [from, to) of what is at `path` to the end of `file`. Raises FileError when it cannot."""
        start, end = span
        left = end - start
        headers = {"Range": f"bytes={start}-{end - 1}"}
        async with self._request("GET", path, None, NO_QUERY, headers) as response:
            if response.status != 206 and start:
                raise HubUnreachable(
                    "answer-invalid", f"{path}: expected a part of the file, got status {response.status}"
                )
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                piece = piece[:left]
                try:
                    await asyncio.to_thread(file.write, piece)
                except OSError as error:
                    raise FileError("not-written", f"{file.name}: {error.strerror or error}") from error
                left -= len(piece)
                progress(len(piece))
                if not left:
                    return
        if left:
            raise HubUnreachable("answer-short", f"{path}: expected {end - start} bytes, got {end - start - left}")

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        data: bytes | AsyncIterator[bytes] | None,
        query: Query,
        headers: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the transport is not open")
        url = f"{self._context.url.rstrip('/')}{PREFIX}{path}"
        with self._named(method, path):
            async with self._session.request(
                method,
                URL(url, encoded=True),
                data=data,
                params=_params(query),
                headers=headers,
                timeout=_patience(answer_s),
            ) as response:
                revision = response.headers.get(REVISION_HEADER, "1")
                self._revision = int(revision) if revision.isdecimal() else 1
                if response.status >= 400:
                    raise _refusal(response.status, await response.read(), response.headers.get("Retry-After", ""))
                yield response

    @contextmanager
    def _named(self, method: str, path: str) -> Iterator[None]:
        """What goes wrong on the way, in words."""
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise HubUnreachable(
                "hub-not-trusted",
                f"{self._context.url}: its certificate was not issued by {self._context.ca}, or is for another name "
                f"({error.certificate_error}); nothing was sent",
            ) from error
        except TimeoutError as error:
            raise HubUnreachable("hub-silent", f"{self._context.url}: no answer to {method} {path} in time") from error
        except aiohttp.ClientError as error:
            kind = HubUnreachable if isinstance(error, aiohttp.ClientConnectorError) else HubLost
            raise kind(
                "hub-unreachable", f"{self._context.url}: {error}; is the hub running, and is this its address?"
            ) from error


def _patience(answer_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s)


def _tls(context: HubContext) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=context.ca)
    except (OSError, ssl.SSLError) as error:
        raise ContextError("ca-unreadable", f"CA {context.ca}: {error}; nothing was sent") from error


def _params(query: Query) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        for item in [value] if isinstance(value, str | int | float) else value:
            if item:
                pairs += [(name, "true" if item is True else str(item))]
    return pairs


class _Words(msgspec.Struct, frozen=True):
    key: str
    message: str
    fields: dict[str, object] = {}


class _Problem(msgspec.Struct, frozen=True):
    """The body of a refusal. Hubs of before revision 2 of the API send `error` alone."""

    key: str = ""
    detail: str = ""
    fields: dict[str, object] = {}
    error: _Words | None = None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _refusal(status: int, raw: bytes, retry_after: str = "") -> Refused:
    try:
        told = msgspec.json.decode(raw, type=_Problem)
    except msgspec.DecodeError:
        told = _Problem()
    words = _Words(told.key, told.detail, told.fields) if told.key else told.error
    if words is None:
        text = f"the server answered with status {status}; is this a Mooring hub?"
        return Refused(status, "http-error", text)
    wait_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else None
    return Refused(status, words.key, words.message, words.fields, wait_s)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise FileError("not-readable", f"{file}: {error.strerror}; nothing was sent") from error


async def _pieces(file: Path, progress: Progress) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as source:
        while piece := await asyncio.to_thread(source.read, PIECE_BYTES):
            yield piece
            progress(len(piece))
