"""The broker under attack: the one that a hub starts, or any other at MOORING_TEST_BROKER.

For another broker, `PYTHONPATH=tests python -m support.target FOLDER HOST` writes certificates of throw-away CAs into
FOLDER. Set it up with its `server.crt`, `server.key`, `device-ca.crt` and `crl.pem` (docs/operate/brokers.md), and
run the tests with MOORING_TEST_BROKER=mqtts://HOST:PORT and MOORING_TEST_BROKER_FILES=FOLDER.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_hub.broker import Broker
from cloud_hub.config import HubConfig, HubPaths
from support.certificates import Pair, make_ca, make_client, make_server
from support.hostile import Hostile, connected, socket_to
from support.trust import free_port

URL, FILES = "MOORING_TEST_BROKER", "MOORING_TEST_BROKER_FILES"
HUB, A, B = "_hub", "dev-a", "dev-b"
CLIENTS = (HUB, A, B, "expired", "server-auth", "foreign", "revoked", "+", "#")


@dataclass(frozen=True)
class Target:
    """Where it listens, the folder of certificates, and whether we started it."""

    host: str
    port: int
    folder: Path
    ours: bool

    def tls(self, name: str = "") -> ssl.SSLContext:
        """As the client of that name; without one, no certificate is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder / "server-ca.crt")
        if name:
            context.load_cert_chain(*self.pair(name))
        return context

    def pair(self, name: str) -> tuple[Path, Path]:
        stem = {"+": "plus", "#": "hash"}.get(name, name)
        return self.folder / f"{stem}.crt", self.folder / f"{stem}.key"

    def client(self, name: str, client_id: str | None = None, **options: Any) -> AbstractAsyncContextManager[Hostile]:
        """Connected with that certificate, by default under its own name. `options` as of `hostile.connected`."""
        return connected(self.host, self.port, self.tls(name), name if client_id is None else client_id, **options)

    def socket(self, name: str) -> AbstractAsyncContextManager[Hostile]:
        return socket_to(self.host, self.port, self.tls(name))


def write_certificates(folder: Path, *hosts: str) -> None:
    """Everything the suite needs, valid for a day."""
    server_ca, device_ca, other_ca = make_ca("test server CA"), make_ca("test device CA"), make_ca("test device CA")
    server_ca.write(folder, "server-ca")
    device_ca.write(folder, "device-ca")
    make_server(server_ca, *hosts).write(folder, "server")
    for name in (HUB, A, B, "revoked"):
        make_client(device_ca, name).write(folder, name)
    make_client(other_ca, A).write(folder, "foreign")
    make_client(device_ca, "+").write(folder, "plus")
    make_client(device_ca, "#").write(folder, "hash")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    _issue(device_ca, A, ExtendedKeyUsageOID.CLIENT_AUTH, yesterday).write(folder, "expired")
    _issue(device_ca, A, ExtendedKeyUsageOID.SERVER_AUTH, yesterday + timedelta(days=2)).write(folder, "server-auth")
    (folder / "crl.pem").write_bytes(_revoked(device_ca, folder / "revoked.crt"))


@contextmanager
def shipped(folder: Path) -> Iterator[Target]:
    """A hub's own broker as `Broker` runs it, on a thread of its own."""
    paths, port = hub_folder(folder), free_port()
    config = HubConfig(mqtt_host="127.0.0.1", mqtt_port=port)
    ready, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with Broker(config, paths) as broker:
            await broker.ready()
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="broker")
    thread.start()
    try:
        while not ready.wait(0.05):
            assert thread.is_alive(), "the broker did not start"
        yield Target("localhost", port, folder, ours=True)
    finally:
        done.set()
        thread.join(30)


def hub_folder(folder: Path) -> HubPaths:
    """What a hub's broker reads, in the places where it looks."""
    write_certificates(folder, "localhost", "127.0.0.1")
    paths = HubPaths(folder / "hub")
    for path in (paths.ca, paths.broker):
        path.mkdir(parents=True, mode=0o700)
    links: dict[Path, str] = {
        paths.server_ca_crt: "server-ca.crt", paths.device_ca_crt: "device-ca.crt", paths.server_crt: "server.crt",
        paths.server_key: "server.key", paths.hub_client_crt: f"{HUB}.crt", paths.hub_client_key: f"{HUB}.key",
        paths.crl: "crl.pem",
    }  # fmt: skip
    for place, name in links.items():
        place.write_bytes((folder / name).read_bytes())
        place.chmod(0o600)
    return paths


def elsewhere() -> Target | None:
    """The broker that the environment names."""
    if not os.environ.get(URL):
        return None
    url = urlsplit(os.environ[URL])
    assert url.hostname, f"{URL}: expected mqtts://HOST:PORT"
    return Target(url.hostname, url.port or 8883, Path(os.environ[FILES]), ours=False)


def _issue(ca: Pair, name: str, usage: x509.ObjectIdentifier, ends: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - timedelta(days=3))
        .not_valid_after(ends)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    return Pair(key, builder.sign(ca.key, hashes.SHA256()))


def _revoked(ca: Pair, certificate: Path) -> bytes:
    now = datetime.now(UTC) - timedelta(minutes=1)
    serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_revoked_certificate(entry)
    )
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


if __name__ == "__main__":
    write_certificates(Path(sys.argv[1]), *sys.argv[2:])
