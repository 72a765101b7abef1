"""Rows 49 and 50 of the table of attacks, and 58: who is let in at all, and what a spoilt access list lets through."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_hub.broker import Broker, find_mosquitto
from cloud_hub.config import HubConfig
from modules.topics import up
from support.hostile import REFUSED, Gone, connected
from support.target import HUB, A, B, Target, hub_folder
from support.trust import free_port
from support.waiting import until


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="row50-no-certificate"),
        pytest.param("expired", id="row50-expired"),
        pytest.param("server-auth", id="row50-for-servers-only"),
        pytest.param("foreign", id="row50-of-another-CA-with-our-name"),
        pytest.param("revoked", id="row50-revoked"),
    ],
)
async def test_a_certificate_that_is_not_good_is_not_let_in(target: Target, name: str) -> None:
    with pytest.raises(Gone):
        async with target.client(name, client_id=A) as client:
            await client.ping()


async def test_an_old_TLS_is_not_spoken_row49(target: Target) -> None:
    tls = target.tls(A)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(Gone):
        async with connected(target.host, target.port, tls, A) as client:
            await client.ping()


async def test_nobody_is_let_in_without_TLS_row49(target: Target) -> None:
    from support.hostile import connect

    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(connect(A))
        async with asyncio.timeout(15):
            with contextlib.suppress(ConnectionError):
                answer = await reader.read(100)
                assert not answer.startswith(b"\x20"), "a CONNACK without TLS"
    finally:
        writer.transport.abort()


async def test_a_good_certificate_is_let_in(target: Target) -> None:
    async with target.client(B) as client:
        await client.ping()


@pytest.fixture
async def spoilt(target: Target, tmp_path: Path) -> AsyncIterator["Spoilt"]:
    if not target.ours:
        pytest.skip("the access list of another broker is not in a file of ours")
    spoilt = Spoilt(tmp_path)
    yield spoilt
    await spoilt.stop()


class Spoilt:
    """Mosquitto on the hub's configuration, with an access list that somebody has changed."""

    def __init__(self, folder: Path) -> None:
        self.paths, self.port = hub_folder(folder), free_port()
        self.target = Target("localhost", self.port, folder, ours=True)
        Broker(HubConfig(mqtt_host="127.0.0.1", mqtt_port=self.port), self.paths)._write_configuration()
        self.acl = self.paths.broker / "acl"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> bool:
        """Whether it runs."""
        program, configuration = str(find_mosquitto()), str(self.paths.broker / "mosquitto.conf")
        quiet = asyncio.subprocess.DEVNULL
        self._process = process = await asyncio.create_subprocess_exec(
            program, "-c", configuration, stdout=quiet, stderr=quiet
        )
        await until(lambda: process.returncode is not None or self._listens(), "the broker to run or to end")
        return process.returncode is None

    def _listens(self) -> bool:
        port = f":{self.port:04X} "
        return any(port in line and " 0A " in line for line in Path("/proc/net/tcp").read_text().splitlines())

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("", id="row58-empty"),
        pytest.param("# nothing but a comment\n", id="row58-comment-only"),
        pytest.param(None, id="row58-missing"),
    ],
)
async def test_a_spoilt_access_list_lets_nobody_do_anything(spoilt: Spoilt, words: str | None) -> None:
    if words is None:
        spoilt.acl.unlink()
    else:
        spoilt.acl.write_text(words)
    if not await spoilt.start():
        return  # it does not run at all: closed
    async with spoilt.target.client(HUB) as hub, spoilt.target.client(A) as client:
        await hub.subscribe("#")
        for topic in (up(A, "window"), up(B, "window"), "anything"):
            assert await client.publish(topic, b"x") >= REFUSED
        await hub.ping()
        assert hub._messages == []


def test_the_shipped_access_list_names_one_user_and_two_patterns(target: Target) -> None:
    if not target.ours:
        pytest.skip("the access list of another broker is not in a file of ours")
    lines = (target.folder / "hub" / "broker" / "acl").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert [re.sub(r"mooring/1/.*", "T", rule) for rule in rules] == [
        f"user {HUB}", "topic readwrite T", "pattern write T", "pattern read T",
    ]  # fmt: skip
