"""Who gets an answer: the token on TCP, the user on a Unix socket; deadlines of clients, and bodies that unpack."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.config import ServingSettings, StatePaths
from agent.runtimes.access import Access
from agent.sandbox.given import Given
from modules.manifest import Manifest, Resources
from modules.runtime import Runtime
from modules.tensors import TensorSpec
from worker.conftest import Digits
from worker.driver import Client, WorkerDriver, infer_request, json_input, request, running_as_root, write_module

TOKEN = "a-token-of-some-length"
ROW = np.zeros((1, 64), np.float32)
GOOD = {"inputs": [json_input(ROW)]}
SLOW = b"""
import time
def init(): pass
def predict(inputs):
    time.sleep(float(inputs["x"].max()))
    return inputs
"""


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener


async def connected(tcp: socket.socket) -> Client:
    return Client(*await asyncio.open_connection(*tcp.getsockname()))


async def test_a_tcp_client_without_the_token_is_401_and_with_it_is_answered(
    tmp_path: Path, digits_module: Manifest, tcp: socket.socket
) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, listener=tcp, given=Given(token=TOKEN)) as worker:
        await worker.serve()
        for header in (
            "X: y",
            "Authorization: Bearer another",
            f"Authorization: Basic {TOKEN}",
            "Authorization: Bearer",
        ):
            client = await connected(tcp)
            response = await client.ask(request("GET", "/v2", b"", header))
            assert response.status == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "expected this device's token" in response.error
            assert TOKEN not in response.error
            assert await client.ended()
            await client.close()
        client = await connected(tcp)
        body = infer_request(GOOD).split(b"\r\n\r\n", 1)
        with_token = b"%b\r\nAuthorization: bearer %b\r\n\r\n%b" % (body[0], TOKEN.encode(), body[1])
        for _ in range(3):  # the third time by a head that is known
            assert (await client.ask(with_token)).status == 200
        assert (await client.ask(infer_request(GOOD))).status == 401
        await client.close()
        assert (await worker.stats()).refused == 5


async def test_probes_of_health_need_no_token(tmp_path: Path, digits_module: Manifest, tcp: socket.socket) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, listener=tcp, given=Given(token=TOKEN)) as worker:
        await worker.serve()
        client = await connected(tcp)
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 200), ("/metrics", 401)):
            assert (await client.ask(request("GET", path))).status == status
        await client.close()


async def test_the_unix_socket_needs_no_token(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, given=Given(token=TOKEN)) as worker:
        await worker.serve()
        assert (await worker.infer(GOOD)).status == 200


async def test_a_user_who_is_not_named_is_403_on_the_unix_socket(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, given=Given(peers=(os.geteuid() + 1,))) as worker:
        await worker.serve()
        response = await worker.infer(GOOD)
        assert (response.status, f"got user {os.geteuid()}" in response.error) == (403, True)


async def test_a_user_who_is_named_is_answered(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, given=Given(peers=(os.geteuid(),))) as worker:
        await worker.serve()
        assert (await worker.infer(GOOD)).status == 200


def test_the_token_is_made_once_and_kept_for_those_who_may_read_it(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    settings = ServingSettings(token=True, users=(1000,), shared_memory=True)
    given = Access(paths, settings).given(Given(fast=3))
    assert len(given.token) >= 40
    assert paths.token.read_text().strip() == given.token
    assert stat.S_IMODE(paths.token.stat().st_mode) == 0o640
    assert Access(paths, settings).given(Given()).token == given.token
    assert set(given.peers) == {0, 1000, os.geteuid()}
    assert (given.fast, given.shares_memory) == (3, True)
    assert Access(paths, ServingSettings()).given(Given()) == Given()


@pytest.mark.skipif(not running_as_root(), reason="needs root to give a file away")
def test_the_token_and_the_sockets_belong_to_the_group_of_the_settings(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    Access(paths, ServingSettings(token=True, group="daemon")).given(Given())
    assert paths.token.stat().st_gid == 1
    Access(paths, ServingSettings(token=True, group="no-such-group")).given(Given())  # is logged, and no more


async def test_a_client_that_waits_no_longer_is_504_and_its_request_is_not_run(tmp_path: Path) -> None:
    specs = (TensorSpec("x", "FP32", (-1,)),)
    manifest = write_module(
        tmp_path / "slot", {"entry.py": SLOW}, inputs=specs, outputs=specs,
        runtime=Runtime(backend="script", model="", entry="entry.py"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        slow, hasty, late = [await worker.connect() for _ in range(3)]
        slow.writer.write(within({"inputs": [seconds(2.0)]}))
        async with asyncio.timeout(20):
            while (await worker.stats()).in_flight == 0:
                pass
        response = await hasty.ask(within({"inputs": [seconds(0.0)]}, b"Request-Deadline-Ms: 50\r\n"))
        assert (response.status, "the client's deadline was over" in response.error) == (504, True)
        by_parameter = {"inputs": [seconds(0.0)], "parameters": {"timeout": 1}}
        assert (await late.ask(within(by_parameter))).status == 504
        assert (await slow.read()).status == 200
        patient = within({"inputs": [seconds(0.0)]}, b"Request-Deadline-Ms: 30000\r\n")
        assert [(await hasty.ask(patient)).status for _ in range(3)] == [200] * 3
        stats = await worker.stats()
        assert (stats.rows, stats.errors, stats.in_flight) == (4, 2, 0)
        for client in (slow, hasty, late):
            await client.close()


@pytest.mark.parametrize("value", ["0", "x", "99999999999", "-5"])
async def test_a_deadline_that_is_none_is_400(tmp_path: Path, digits_module: Manifest, value: str) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.serve()
        response = await worker.ask(within(GOOD, f"Request-Deadline-Ms: {value}\r\n".encode()))
        assert (response.status, "Request-Deadline-Ms: expected" in response.error) == (400, True)


def seconds(count: float) -> dict[str, object]:
    return json_input(np.array([count], np.float32))


def within(head: object, header: bytes = b"") -> bytes:
    raw = infer_request(head)
    return raw.replace(b"\r\nContent-Length", b"\r\n" + header + b"Content-Length", 1)


async def test_packed_bodies_are_unpacked_within_the_limit_of_a_body(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    import msgspec

    small = msgspec.structs.replace(digits_module, resources=Resources(max_request_bytes=100_000))
    text = infer_request({"inputs": [json_input(digits.x[:1])]}).partition(b"\r\n\r\n")[2]
    cases = [
        (gzip.compress(text), "gzip", 200, ""),
        (zlib.compress(text), "deflate", 200, ""),
        (gzip.compress(b" " * 50_000_000), "gzip", 413, "got more once it was unpacked"),
        (gzip.compress(text)[:-9], "gzip", 400, "got a part of it"),
        (gzip.compress(text) + b"more", "gzip", 400, "or more"),
        (text, "gzip", 400, "expected a body encoded by gzip"),
        (text, "br", 415, "gzip, deflate or not at all"),
    ]
    async with WorkerDriver(tmp_path / "slot", small) as worker:
        await worker.serve()
        for body, encoding, status, words in cases:
            raw = request("POST", "/v2/models/digits/infer", body, f"Content-Encoding: {encoding}")
            response = await worker.ask(raw)
            assert response.status == status, (encoding, response.body)
            assert not words or words in response.error
