"""An application on a device, in a thread: predictions one after the other until it is told to stop."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from support.built import rows

TIMEOUT_S = 15.0
PAUSE_S = 0.004  # between two predictions: an application that keeps up a pace, not a load test


class Traffic:
    """`asked` holds the ids of all predictions, in order, `answered` those answered with status 200, `failed` words
    about the others.

    With `kept` the connection is kept open between predictions; one that the other side has closed meanwhile is opened
    again without counting as a failure, as HTTP/1.1 asks of clients. The thread works inside `place`: the device's
    network, where that is not the test's.
    """

    def __init__(
        self,
        address: str,
        prefix: str,
        *,
        kept: bool,
        name: str = "iris",
        pause_s: float = PAUSE_S,
        place: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.failed: list[str] = []
        self.versions: list[str] = []  # that answered, in order, each once
        url = urlsplit(address)
        self._host, self._port = url.hostname or "", url.port or 0
        self._prefix, self._kept, self._name = prefix, kept, name
        self._pause_s, self._place = pause_s, place
        self._stop = threading.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(asyncio.to_thread(self._run), name=f"traffic-{self._prefix}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task

    def _run(self) -> None:
        with self._place():
            self._keep_asking()

    def _keep_asking(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(self._pause_s):
            id_ = f"{self._prefix}-{len(self.asked)}"
            self.asked.append(id_)
            try:
                connection = self._predict(connection, id_)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{id_}: {type(error).__name__}: {error}")
                connection = None
        if connection is not None:
            connection.close()

    def _predict(self, kept: http.client.HTTPConnection | None, id_: str) -> http.client.HTTPConnection | None:
        """The connection for the next prediction, None for a new one."""
        if kept is not None:
            try:
                self._ask(kept, id_)
                return kept
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                kept.close()
        fresh = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            self._ask(fresh, id_)
        except BaseException:
            fresh.close()
            raise
        if self._kept and fresh.sock is not None:
            return fresh
        fresh.close()
        return None

    def _ask(self, connection: http.client.HTTPConnection, id_: str) -> None:
        path = f"/v2/models/{self._name}/infer"
        connection.request("POST", path, json_request(id_), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            self.failed.append(f"{id_}: status {response.status}: {body[:200]!r}")
            return
        version = json.loads(body)["model_version"]
        if version not in self.versions:
            self.versions.append(version)
        self.answered.append(id_)


def json_request(id_: str) -> bytes:
    """The first row of iris."""
    tensor = {"name": "X", "shape": [1, 4], "datatype": "FP32", "data": rows(1).ravel().tolist()}
    return json.dumps({"id": id_, "inputs": [tensor]}).encode()


async def predict(address: str, prefix: str, count: int, name: str = "iris") -> list[str]:
    """`count` predictions one after the other; their ids. Raises OSError, AssertionError."""
    ids = [f"{prefix}-{number}" for number in range(count)]
    for id_ in ids:
        status, _ = await post(address, f"/v2/models/{name}/infer", json_request(id_), {})
        assert status == 200, id_
    return ids


async def post(address: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    """Status, and the response with its bytes. Raises OSError."""

    def ask() -> tuple[int, Any]:
        url = urlsplit(address)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, (dict(response.getheaders()), response.read())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)
