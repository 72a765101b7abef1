"""The client for asyncio. Raises what the plain one raises, and waits without holding up the loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from mooring_client import words
from mooring_client.client import NO_ROOM, Transport, checked, shareable
from mooring_client.desk import Desk
from mooring_client.errors import ClientError, Gone, Refused, Timeout
from mooring_client.places import Place, find
from mooring_client.prediction import Prediction
from mooring_client.shared import connect, gone
from mooring_client.tensors import Spec
from mooring_client.wire import GROW, MAX_MESSAGE, TAKEN, MoreRoom, Welcome, head, read_welcome, refusal, timed
from mooring_client.words import MAX_HEAD, Head

_Result = TypeVar("_Result")


class AsyncClient:
    """As `Client`, for asyncio: one request at a time, tasks that ask at once wait for each other."""

    def __init__(
        self,
        module: str | os.PathLike[str],
        *,
        state: str | os.PathLike[str] | None = None,
        model: str = "",
        transport: Transport = "auto",
        timeout_s: float = 60.0,
        copy: bool = True,
        token: str = "",
    ) -> None:
        """The arguments are `Client`'s. Raises ClientError when `module` is no name, path or address."""
        self._place = find(module, state, model)
        self._transport = transport
        self._timeout_s = timeout_s
        self._copy = copy
        self._token = token
        self._size = 0
        self._link: _SharedLink | _WebLink | None = None
        self._lock = asyncio.Lock()

    async def metadata(self) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
        """Inputs and outputs. Raises Gone, Timeout, Refused."""
        welcome = await self._locked(self._timeout_s, lambda link: _now(link.welcome))
        return welcome.inputs, welcome.outputs

    async def transport(self) -> str:
        """Either "shared-memory" or "http". Raises Gone, Timeout, Refused."""
        return await self._locked(self._timeout_s, lambda link: _now(link.transport))

    async def predict(self, /, **inputs: object) -> Prediction:
        """Outputs by name. Raises Refused, Gone, Timeout."""
        return await self.ask(inputs)

    async def ask(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        id: str = "",
        timeout_s: float = 0.0,
        event_time: float = 0.0,
    ) -> Prediction:
        """As `Client.ask`; `timeout_s` also counts the wait for other tasks. Raises Refused, Gone, Timeout."""
        wanted, name = checked(outputs, id, event_time)
        return await self._locked(timeout_s or self._timeout_s, lambda link: link.ask(inputs, wanted, name, event_time))

    async def close(self) -> None:
        async with self._lock:
            self._drop()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _locked(self, limit: float, work: Callable[[_SharedLink | _WebLink], Awaitable[_Result]]) -> _Result:
        """`work` on a connection; on another one when this has ended, once."""
        try:
            async with asyncio.timeout(limit), self._lock:
                try:
                    return await self._on_link(work)
                except Gone:
                    return await self._on_link(work)
        except Timeout:
            raise
        except TimeoutError:
            raise Timeout(f"expected an answer within {limit:g} s, got none") from None

    async def _on_link(self, work: Callable[[_SharedLink | _WebLink], Awaitable[_Result]]) -> _Result:
        try:
            if self._link is None:
                self._link = await self._open()
            return await work(self._link)
        except Refused:
            raise
        except BaseException:  # an answer that comes after all must not be taken for that of the next request
            self._drop()
            raise

    async def _open(self) -> _SharedLink | _WebLink:
        if self._transport != "http" and (self._transport == "shared-memory" or shareable(self._place)):
            try:
                return await _SharedLink.open(self._place.fast, self._size, self._copy)
            except Refused as error:
                if error.status != NO_ROOM or self._transport == "shared-memory":
                    raise
        return await _WebLink.open(self._place, self._token)

    def _drop(self) -> None:
        if self._link is not None:
            self._size = max(self._size, self._link.size)
            self._link.close()
            self._link = None


class _SharedLink:
    transport = "shared-memory"

    def __init__(self, sock: socket.socket, welcome: Welcome, size: int, copy: bool) -> None:
        self.welcome = welcome
        self._sock = sock
        self._desk = Desk(welcome, min(size, welcome.area_bytes), copy)

    @classmethod
    async def open(cls, path: str, size: int, copy: bool) -> _SharedLink:
        sock = connect(path)
        sock.setblocking(False)
        try:
            link = cls(sock, read_welcome(await _receive(sock)), size, copy)
        except BaseException:
            sock.close()
            raise
        try:
            await link._show_area()
        except BaseException:
            link.close()
            raise
        return link

    @property
    def size(self) -> int:
        return self._desk.size

    async def ask(self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, event_time: float) -> Prediction:
        before = timed(self.welcome, event_time)
        while True:
            try:
                body, arrays = self._desk.prepare(inputs, outputs)
                await self._send(before + head(-1, id_) + body)
                return self._desk.answer(await _receive(self._sock), arrays)
            except MoreRoom as error:
                await self._grow(error.size)

    def close(self) -> None:
        self._sock.close()
        self._desk.close()

    async def _grow(self, size: int) -> None:
        if size <= self._desk.size:
            raise ClientError(f"the worker asks for room of {size} bytes, and has {self._desk.size}")
        self._desk.make(size)
        await self._send(GROW)
        await self._show_area()

    async def _show_area(self) -> None:
        try:
            socket.send_fds(self._sock, [self._desk.announcement], [self._desk.handle])
        except OSError as error:
            raise gone(error) from error
        if (said := await _receive(self._sock)) != TAKEN:
            raise refusal(said)

    async def _send(self, message: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, message)
        except OSError as error:
            raise gone(error) from error


async def _receive(sock: socket.socket) -> bytes:
    try:
        message = await asyncio.get_running_loop().sock_recv(sock, MAX_MESSAGE)
    except OSError as error:
        raise gone(error) from error
    if not message:
        raise Gone("the worker ended")
    return message


class _WebLink:
    transport = "http"
    size = 0

    def __init__(self, place: Place, token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.welcome = Welcome(place.model, "", 0, frozenset(), (), ())
        self._place = place
        self._token = token
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, place: Place, token: str) -> _WebLink:
        try:
            if place.host:
                streams = await asyncio.open_connection(place.host, place.port, limit=MAX_HEAD)
            else:
                streams = await asyncio.open_unix_connection(place.plain, limit=MAX_HEAD)
        except OSError as error:
            raise Gone(f"{place}: nobody serves here ({error.strerror or error})") from error
        link = cls(place, token, *streams)
        try:
            link.welcome = words.read_metadata(*await link._round(words.metadata_request(place, token)))
        except BaseException:
            link.close()
            raise
        return link

    async def ask(self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, event_time: float) -> Prediction:
        tensors, arrays = words.as_tensors(self.welcome, inputs)
        request = words.infer_request(
            self._place, self._token, self.welcome, tensors, outputs, id_.decode(), event_time
        )
        return words.read_prediction(*await self._round(request), arrays)

    def close(self) -> None:
        self._writer.transport.abort()

    async def _round(self, request: bytes) -> tuple[Head, bytes]:
        try:
            self._writer.write(request)
            await self._writer.drain()
            head = words.read_head(await self._reader.readuntil(b"\r\n\r\n"))
            body = await self._reader.readexactly(head.length)
        except asyncio.LimitOverrunError as error:
            raise ClientError(f"expected headers of at most {MAX_HEAD} bytes, got more") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Gone("the connection ended") from error
        if head.last:
            self._writer.close()
        return head, body


async def _now(value: _Result) -> _Result:
    return value
