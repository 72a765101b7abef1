"""Servers that are not our hub, against the agent's own TLS and link: nothing is said to them. Row 49."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.config import StatePaths
from agent.identity import Identity
from agent.link import Link
from support.certificates import Pair, make_ca, make_client, make_server
from support.links import QUICK, running
from support.waiting import until

DEVICE = "cam-17"


@pytest.fixture(scope="module")
def ca() -> Pair:
    return make_ca("the hub's CA")


@pytest.fixture
def identity(state_dir: StatePaths, ca: Pair) -> Identity:
    """An enrolled device: the hub's CA, and a certificate."""
    state_dir.identity.mkdir()
    pair = make_client(make_ca("device CA"), DEVICE)
    state_dir.certificate.write_text(pair.pem)
    state_dir.key.write_text(pair.key_pem)
    state_dir.server_ca.write_text(ca.pem)
    return Identity.load(state_dir)


def server_context(pair: Pair, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.write(folder, "server"))
    return context


@asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A TLS server; its port, and everything that was said to it."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1024))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


def dated(ca: Pair, start: timedelta, end: timedelta) -> Pair:
    """A server certificate that is valid at another time."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return Pair(key, builder.sign(ca.key, hashes.SHA256()))


def as_itself(context: ssl.SSLContext) -> None:
    return None


def only_old_versions(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2


Change = Callable[[ssl.SSLContext], None]
LONG, SHORT = timedelta(days=30), timedelta(days=1)
SERVERS: dict[str, tuple[Callable[[Pair], Pair], Change, str]] = {
    "another host's name": (lambda ca: make_server(ca, "hub.example"), as_itself, "Hostname mismatch|not valid for"),
    "another CA": (lambda ca: make_server(make_ca("x"), "localhost"), as_itself, "CERTIFICATE_VERIFY_FAILED"),
    "a CA of the same name": (
        lambda ca: make_server(make_ca("the hub's CA"), "localhost"), as_itself, "CERTIFICATE_VERIFY_FAILED",
    ),
    "expired": (lambda ca: dated(ca, -LONG, -SHORT), as_itself, "expired"),
    "not valid yet": (lambda ca: dated(ca, SHORT, LONG), as_itself, "not yet valid"),
    "a device's certificate": (lambda ca: make_client(ca, "localhost"), as_itself, "purpose|mismatch|VERIFY_FAILED"),
    "TLS 1.2 at most": (lambda ca: make_server(ca, "localhost"), only_old_versions, "PROTOCOL_VERSION|alert|EOF"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_is_not_the_hub_hears_nothing(
    name: str, ca: Pair, identity: Identity, tmp_path: Path
) -> None:
    make, change, words = SERVERS[name]
    context = server_context(make(ca), tmp_path)
    change(context)
    async with listening(context) as (port, heard):
        link = Link(DEVICE, "localhost", port, identity.tls, QUICK)
        async with running(link, wait=False):
            await until(lambda: link.status.attempts > 0, "the refusal")
        assert [data for data in heard if data] == []
    assert re.search(words, link.status.error), link.status.error


def test_the_systems_authorities_are_not_trusted(identity: Identity, ca: Pair) -> None:
    """A publicly valid certificate for another's server is worth nothing: one CA is pinned, none is added to it."""
    trusted = identity.tls().get_ca_certs()
    assert ["the hub's CA" in str(found["subject"]) for found in trusted] == [True]


async def test_the_hub_itself_is_talked_to(ca: Pair, identity: Identity, tmp_path: Path) -> None:
    """So that the refusals above are about what they say."""
    async with listening(server_context(make_server(ca, "localhost"), tmp_path)) as (port, heard):
        link = Link(DEVICE, "localhost", port, identity.tls, QUICK)
        async with running(link, wait=False):
            await until(lambda: any(b"MQTT" in data for data in heard), "the first packet")
