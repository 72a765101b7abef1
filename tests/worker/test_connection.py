"""Limits and deadlines of connections: the real endpoint with small limits, in this process, on a real socket."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from agent.backends import Backend
from agent.backends.choice import open_backend
from agent.backends.place import Place as GivenPlace
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import Limits
from agent.endpoint.http import Endpoint
from agent.endpoint.oip import Parser
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Recorder
from agent.endpoint.resources import Resources
from modules.manifest import Manifest, Runtime
from modules.tensors import TensorSpec
from support.waiting import until
from worker.driver import Client, infer_request, json_input, request, write_module

SLOW = """
import threading
gate = threading.Event()
def init(): pass
def predict(inputs):
    gate.wait(20)
    return inputs
"""
ROW = np.ones((1, 2), np.float32)


class Place:
    """An endpoint of an entry script that waits for `gate`, and clients of it."""

    def __init__(self, path: str, backend: Backend, counters: Counters, endpoint: Endpoint) -> None:
        self.path = path
        self.backend = backend
        self.counters = counters
        self.endpoint = endpoint

    @property
    def gate(self) -> threading.Event:
        gate: threading.Event = sys.modules["mooring_entry"].gate
        return gate

    async def connect(self) -> Client:
        return Client(*await asyncio.open_unix_connection(self.path))


@asynccontextmanager
async def place(tmp_path: Path, limits: Limits, max_queue: int = 256) -> AsyncIterator[Place]:
    spec = TensorSpec("x", "FP32", (-1, 2))
    manifest: Manifest = write_module(
        tmp_path / "slot", {"entry.py": SLOW.encode()}, inputs=(spec,), outputs=(spec,),
        runtime=Runtime(backend="script", model="", entry="entry.py"),
    )  # fmt: skip
    backend = open_backend(manifest)
    backend.load(manifest.stages[0], GivenPlace(tmp_path / "slot"))
    counters = Counters()
    predictor = Predictor(backend, counters, max_queue)
    handler = Resources(manifest, Parser(manifest, frozenset()), predictor, counters, Recorder(counters, print))
    endpoint = Endpoint(handler, limits)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "e.sock"))
    listener.listen(16)
    await endpoint.start([listener])
    here = Place(str(tmp_path / "e.sock"), backend, counters, endpoint)
    try:
        yield here
    finally:
        here.gate.set()
        await endpoint.drain(0.0)
        predictor.close()


async def test_headers_that_trickle_in_are_cut_off_with_408(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(1000, head_s=0.2, sweep_s=0.05)) as here:
        client = await here.connect()
        client.writer.write(b"GET /v2 HTTP/1.1\r\nHost:")
        response = await client.read()
        assert response.status == 408
        assert "expected the whole request in time" in response.error
        assert await client.ended()
        await client.close()


async def test_a_body_that_never_comes_is_cut_off_with_408(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(1000, body_s=0.2, sweep_s=0.05)) as here:
        client = await here.connect()
        client.writer.write(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 500\r\n\r\n{")
        assert (await client.read()).status == 408
        assert await client.ended()
        await client.close()


async def test_an_idle_connection_is_closed_without_a_word(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(1000, idle_s=1.0, sweep_s=0.05)) as here:
        client = await here.connect()
        assert (await client.ask(request("GET", "/v2"))).status == 200
        assert await client.ended()
        await client.close()


async def test_too_many_connections_are_told_to_try_again(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(1000, connections=1)) as here:
        first, second = await here.connect(), await here.connect()
        assert (await first.ask(request("GET", "/v2"))).status == 200
        response = await second.read()
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        await first.close()
        await second.close()


async def test_a_full_queue_is_503_and_nobody_who_waits_is_forgotten(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(10_000), max_queue=2) as here:
        body = infer_request({"inputs": [json_input(ROW)]})
        waiting = [await here.connect() for _ in range(3)]
        for client in waiting:
            client.writer.write(body)
        late = await here.connect()
        await until(lambda: here.counters.in_flight == 3, "three requests to run or wait")
        response = await late.ask(body)
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert "at most 3 requests at once" in response.error
        here.gate.set()
        assert [(await client.read()).status for client in waiting] == [200] * 3
        assert (here.counters.requests, here.counters.errors, here.counters.in_flight) == (4, 1, 0)
        for client in [*waiting, late]:
            await client.close()


async def test_bodies_that_fill_the_memory_are_503(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(10_000, held_bytes=1000)) as here:
        first, second = await here.connect(), await here.connect()
        part = b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 2000\r\n\r\n"
        first.writer.write(part + b" " * 900)
        assert (await first.ask(b" " * 200)).status == 503
        await first.close()
        await second.close()


async def test_the_drain_waits_for_what_runs(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(10_000)) as here:
        client = await here.connect()
        client.writer.write(infer_request({"inputs": [json_input(ROW)]}))
        await until(lambda: here.counters.in_flight == 1, "the request to run")
        drain = asyncio.create_task(here.endpoint.drain(20.0))
        await asyncio.sleep(0)
        assert not drain.done()
        here.gate.set()
        response = await client.read()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await drain == 0
        await client.close()


async def test_a_client_that_leaves_while_its_request_runs_frees_its_place(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(10_000), max_queue=0) as here:
        client = await here.connect()
        client.writer.write(infer_request({"inputs": [json_input(ROW)]}))
        await until(lambda: here.counters.in_flight == 1, "the request to run")
        await client.close()
        here.gate.set()
        await until(lambda: here.counters.in_flight == 0, "the request to end")
        again = await here.connect()
        assert (await again.ask(infer_request({"inputs": [json_input(ROW)]}))).status == 200
        await again.close()


async def test_a_half_closed_client_gets_its_answer(tmp_path: Path) -> None:
    async with place(tmp_path, Limits(10_000)) as here:
        client = await here.connect()
        client.writer.write(infer_request({"inputs": [json_input(ROW)]}))
        client.writer.write_eof()
        await until(lambda: here.counters.in_flight == 1, "the request to run")
        here.gate.set()
        assert (await client.read()).status == 200
        assert await client.ended()
        await client.close()


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_a_request_may_come_in_any_pieces(tmp_path: Path, pieces: int) -> None:
    async with place(tmp_path, Limits(10_000)) as here:
        here.gate.set()
        raw = infer_request({"inputs": [json_input(ROW)]}) * 2
        client = await here.connect()
        for start in range(0, len(raw), len(raw) // pieces):
            client.writer.write(raw[start : start + len(raw) // pieces])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert [(await client.read()).status, (await client.read()).status] == [200, 200]
        await client.close()
