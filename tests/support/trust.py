"""The hub's trust rooms on a hub directory that `setup.create` has filled, and a TUF client that reads from them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater

from cloud_hub.blobs import FolderBlobs
from cloud_hub.claims import Claims, NewToken
from cloud_hub.clock import Clock
from cloud_hub.clone_alerts import CloneAlerts
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.desired import Assignment, Desired
from cloud_hub.devices import Devices
from cloud_hub.errors import NotFound
from cloud_hub.events import Events
from cloud_hub.renewals import Renewals
from cloud_hub.revocations import Revocations
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from cloud_hub.trust import setup
from cloud_hub.trust.ca import CertificateAuthority
from cloud_hub.trust.director import Director
from cloud_hub.trust.image import ImageRepository
from cloud_hub.trust.issuer import Issuer
from cloud_hub.trust.keys import Keys
from firmware_profiles.catalog import built_in
from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry, sha256_hex
from modules.enrolment import EnrollRequest
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.tensors import TensorSpec
from support.devices import PROFILE, EnrolledDevice, make_request

OPERATOR = "operator"


@dataclass(frozen=True)
class TrustWorld:
    """Every trust room of one hub, and short cuts for what tests need often."""

    config: HubConfig
    paths: HubPaths
    store: Store
    blobs: FolderBlobs
    events: Events
    ca: CertificateAuthority
    image: ImageRepository
    director: Director
    desired: Desired
    devices: Devices
    claims: Claims
    revoker: Revocations
    renewals: Renewals
    revocations: list[None]

    async def add_module(
        self,
        name: str,
        version: int = 1,
        content: bytes = b"model",
        profile: str = PROFILE,
        publisher: str = "",
    ) -> str:
        """A module of one file, as packaging leaves it: built, not signed. The manifest's digest."""
        digest = await self.blobs.put(content)
        pieces = [content[at : at + MAX_CHUNK_BYTES] for at in range(0, len(content), MAX_CHUNK_BYTES)]
        chunks = tuple(Chunk(sha256_hex(piece), len(piece)) for piece in pieces)
        entry = FileEntry("model.onnx", len(content), digest, chunks)
        manifest = Manifest(
            name, version, profile, Lineage(name, version),
            (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),), (entry,),
        )  # fmt: skip
        body = encode_manifest(manifest)
        row = {"name": name, "version": version, "profile": profile, "publisher": publisher or self.config.publisher}
        sizes = {"manifest_sha256": await self.blobs.put(body), "manifest_size": len(body), "size": len(content)}
        async with self.store.write() as connection:
            await connection.execute(insert(modules).values(**row, **sizes, created_at=0.0))
        return sha256_hex(body)

    async def add_signed(self, name: str, version: int = 1, content: bytes = b"model") -> str:
        digest = await self.add_module(name, version, content)
        await self.image.sign_module(name, version, PROFILE, OPERATOR)
        return digest

    async def assign(self, device: str, module: str, version: int = 1, deployment: str = "rollout-1") -> int:
        async with self.store.write() as connection:
            return await self.desired.assign(connection, device, Assignment(module, version, PROFILE, deployment))

    async def enrol(self, device: str, token: str = "", **tags: str) -> EnrolledDevice:
        """A new device of the generic profile, with a token made for exactly it unless one is given."""
        key = ec.generate_private_key(ec.SECP256R1())
        token = token or (await self.claims.create(NewToken(device=device, tags=tags), OPERATOR)).token
        request = EnrollRequest(token, device, make_request(device, key), PROFILE)
        return EnrolledDevice(key, await self.devices.enroll(request, device))


@asynccontextmanager
async def trust_world(
    paths: HubPaths, clock: Clock, config: HubConfig | None = None, offline_keys: Path | None = None
) -> AsyncIterator[TrustWorld]:
    """Makes the hub directory, opens its rooms, and closes them again."""
    config = config or HubConfig(dev=True, public_host="localhost", mqtt_host="127.0.0.1", mqtt_port=free_port())
    await setup.create(paths, config, offline_keys, clock)
    store = await Store.open(paths.database_url, migrate=False)
    blobs, events, keys = FolderBlobs(paths.blobs), Events(store, clock), Keys(paths.keys)
    ca = setup.load_authority(paths, timedelta(days=config.certificate_days))
    image = ImageRepository(store, blobs, events, keys, clock)
    director = Director(store, keys, clock)
    revocations: list[None] = []
    issuer = Issuer(ca, config.ca, timedelta(days=config.certificate_days))
    claims = Claims(store, events, ca.server_ca_sha256, built_in(), clock)
    life = timedelta(days=config.crl_days)
    revoker = Revocations(store, events, ca, issuer, paths.crl, life, clock, lambda: revocations.append(None))
    renewals = Renewals(store, events, issuer, revoker, clock)
    devices = Devices(
        config, store, events, ca, issuer, claims, revoker, renewals, image, director, built_in(), clock,
        CloneAlerts(events, clock),
    )  # fmt: skip
    try:
        yield TrustWorld(
            config,
            paths,
            store,
            blobs,
            events,
            ca,
            image,
            director,
            Desired(store, clock),
            devices,
            claims,
            revoker,
            renewals,
            revocations,
        )
    finally:
        await store.close()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class HubFetcher(FetcherInterface):
    """Fetches metadata from a coroutine function of the loop that the test runs in."""

    def __init__(self, read: Callable[[str], Awaitable[bytes]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self.fetched: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("hub:/")
        self.fetched.append(name)

        async def read() -> bytes:
            return await self._read(name)

        try:
            yield asyncio.run_coroutine_threadsafe(read(), self._loop).result(20)
        except NotFound as error:
            raise DownloadHTTPError(str(error), 404) from error


async def refresh(read: Callable[[str], Awaitable[bytes]], folder: Path, root: str) -> Updater:
    """A stock TUF client, refreshed from `read` with its state in `folder`. Raises what the client raises."""
    folder.mkdir(parents=True, exist_ok=True)
    updater = Updater(str(folder), "hub:/", target_base_url="hub:/", fetcher=HubFetcher(read), bootstrap=root.encode())
    await asyncio.to_thread(updater.refresh)
    return updater


async def find(updater: Updater, path: str) -> TargetFile | None:
    """The target, for which the client may have to fetch the publisher's metadata."""
    return await asyncio.to_thread(updater.get_targetinfo, path)
