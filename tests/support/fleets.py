"""A hub with two fleets: a lab's and somebody else's, each with data of every kind that the API shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import insert, update

from cloud_hub.api.app import application
from cloud_hub.api.gate import Gate
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.claims import NewToken
from cloud_hub.config import SQLITE, HubConfig
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.limits import Rate
from cloud_hub.oidc import Provider
from cloud_hub.roles import Role, Scope
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from cloud_hub.store.tables import devices, modules
from cloud_hub.tokens import add_token
from modules.messages import Batch, encode
from modules.windows import encode_window
from support.clock import SetClock
from support.monitoring import LOOK_S, Built, build_module, make_sample, make_window

OURS = "lab-1"
THEIRS = "lyon-secret-1"
NOBODY = "not-here-0001"
Client = TestClient[web.Request, web.Application]
PLENTY = Rate(1e6, 1e6)


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)

    @property
    def key(self) -> str:
        """Of the error."""
        return str(self.json["error"]["key"])


@dataclass
class World:
    """A hub behind its API. `token` makes one for a role and a scope; `ask` uses it."""

    rooms: Rooms
    client: Client
    clock: SetClock
    admin: str
    built: Built | None = None

    async def token(self, role: Role, scope: str = "", name: str = "") -> str:
        secret = f"mho_{role}-{scope}-{name}"
        await add_token(
            self.rooms.store, self.clock, name or f"{role}", secret, self.clock() + 1e6, role, Scope.parse(scope)
        )
        return secret

    async def ask(
        self, token: str, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        sent = {"X-Request-Id": "test"}  # stands in refusals, which are compared
        sent |= {"Authorization": f"Bearer {token}"} if token else {}
        url = f"/api/v1{path}"
        async with self.client.request(method, url, json=body, headers=sent | (headers or {})) as response:
            return Answer(response.status, await response.text(errors="replace"), dict(response.headers))


@asynccontextmanager
async def open_world(
    folder: Path,
    provider: Provider | None = None,
    principal: Rate = PLENTY,
    stranger: Rate = PLENTY,
    database: str = SQLITE,
) -> AsyncIterator[World]:
    """A hub without devices yet; with the address of a PostgreSQL `database`, in that one, which is empty."""
    api, mqtt = free_ports(2)
    clock = SetClock()
    config = HubConfig(dev=True, api_port=api, mqtt_port=mqtt, look_s=LOOK_S, database=database)
    paths = await initialise(folder / "hub", config, clock=clock)
    async with open_hub(paths, clock) as rooms:
        gate = Gate(rooms.store, rooms.events, clock, provider, principal, stranger, rooms.capabilities.allows)
        async with TestClient(TestServer(application(rooms, EVERY_ROUTE, gate))) as client:
            yield World(rooms, client, clock, paths.operator_token.read_text().strip())


async def settle_two_fleets(world: World) -> None:
    """Devices, windows that drift, samples, alerts, events; rollouts r1 (both fleets), r2 (theirs), r3 (ours)."""
    random = np.random.default_rng(5)
    rooms, clock = world.rooms, world.clock
    built = world.built = await build_module(rooms.store, rooms.blobs, random.normal(size=(1000, 2)))
    async with rooms.store.write() as connection:
        await connection.execute(update(modules).values(release_counter=1, signed_at=1.0))
    await add_device(rooms, OURS, {"site": "lab"})
    await add_device(rooms, THEIRS, {"site": "lyon"})
    for look in range(4):
        for device in (OURS, THEIRS):
            rows = random.normal(size=(100, 2)) + np.array([0.0, 2.0])
            window = encode_window(make_window(built, rows, clock()))
            sample = encode(make_sample(built, f"{device}-{look}", clock(), rows[0]))
            await rooms.ingest.commit(device, Batch("window", "life", look, ((look + 1, window),)))
            await rooms.ingest.commit(device, Batch("sample", "life", look, ((look + 1, sample),)))
        await rooms.alerts.run_due()
        clock.advance(LOOK_S)
    await rooms.ingest.commit(THEIRS, Batch("window", "life", 4, ((5, b"nonsense"),)))
    for device, site in ((OURS, "lab"), (THEIRS, "lyon")):
        await rooms.devices.set_tags(device, {"site": site, "rack": "7"}, "operator")
        await rooms.claims.create(NewToken(device, tags={"site": site}), "operator")
    await roll_out(rooms, "profile=edge", start=False)
    await roll_out(rooms, f"id={THEIRS}", start=True)
    await roll_out(rooms, "site=lab", start=True)


async def add_device(rooms: Rooms, device: str, tags: dict[str, str]) -> None:
    row = {"id": device, "profile": "edge", "tags": tags, "certificate": certificate(device), "created_at": 0.0}
    async with rooms.store.write() as connection:
        await connection.execute(insert(devices).values(**row, director_version=1, report_counter=0))


def certificate(device: str) -> str:
    """What nobody will check: the device of these tests never connects."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start)
    made = builder.not_valid_after(start + timedelta(days=90)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


async def roll_out(rooms: Rooms, target: str, start: bool) -> str:
    made = await rooms.rollouts.create(NewRollout("digits", 1, target, start=start), "operator")
    return made.rollout.id
