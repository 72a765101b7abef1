"""Devices in bulk, for benchmarks: rows and certificates made in the hub's own directory, without its API.

Only for a hub whose directory is here, and whose devices nobody else is about to enrol. Ten thousand take seconds,
where the API takes minutes. Called by `run` (`--seed-database`) and `benchmarks/fleet.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import insert, select

from cloud_hub.broker import device_address
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.events import Events
from cloud_hub.operator.errors import FileError
from cloud_hub.simulator.fleet import Member, Place
from cloud_hub.simulator.identity import Identity, new_key, request
from cloud_hub.simulator.state import DeviceState
from cloud_hub.store.address import database_url
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, director_files, image_files
from cloud_hub.trust.ca import CertificateAuthority
from cloud_hub.trust.director import ALL_DEVICES
from firmware_profiles.profile import DeviceProfile

FIRST_ROOT = "1.root.json"
AT_ONCE = 500
ACTOR = "simulator"


async def seed(
    directory: Path, names: Sequence[str], hardware: DeviceProfile, tags: Mapping[str, str]
) -> tuple[Place, list[Member]]:
    """New devices of these names. Raises FileError `seed-refused` where one is there already."""
    paths = HubPaths(directory)
    config = HubConfig.load(directory)
    authority = CertificateAuthority.load((paths.device_ca_crt, paths.device_ca_key), paths.server_ca_crt, paths.crl)
    store = await Store.open(database_url(config, paths), migrate=False)
    try:
        await _refuse_known(store, names)
        members = []
        for start in range(0, len(names), AT_ONCE):
            members += await _seeded(store, authority, names[start : start + AT_ONCE], hardware, tags)
        address = device_address(config)
        image, director = await _roots(store)
    finally:
        await store.close()
    return Place(address.host, address.port, authority.server_ca_pem, image, director, hardware), members


async def _refuse_known(store: Store, names: Sequence[str]) -> None:
    async with store.read() as connection:
        for start in range(0, len(names), AT_ONCE):
            query = select(devices.c.id).where(devices.c.id.in_(names[start : start + AT_ONCE])).limit(1)
            found = (await connection.execute(query)).scalar_one_or_none()
            if found is not None:
                raise FileError("seed-refused", f"device {found} is there already; choose another --prefix")


async def _seeded(
    store: Store,
    authority: CertificateAuthority,
    names: Sequence[str],
    hardware: DeviceProfile,
    tags: Mapping[str, str],
) -> list[Member]:
    """One transaction."""
    now = time.time()
    made = [_issued(authority, name, now) for name in names]
    rows = [
        {
            "id": one.device,
            "profile": hardware.name,
            "tags": dict(tags),
            "certificate": x509.load_der_x509_certificate(one.certificate).public_bytes(Encoding.PEM).decode(),
            "issued_at": now,
            "created_at": now,
            "director_version": 1,
            "report_counter": 0,
            "boots": [],
        }
        for one in made
    ]
    async with store.write() as connection:
        await connection.execute(insert(devices), rows)
        await Events(store, time.time).record(
            connection, "device.seeded", ACTOR, names[0], count=len(names), last=names[-1]
        )
    return [Member(one, DeviceState()) for one in made]


def _issued(authority: CertificateAuthority, name: str, now: float) -> Identity:
    key = new_key()
    pem = authority.issue_device(request(name, key), name, now)
    return Identity(name, x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER), key)


async def _roots(store: Store) -> tuple[str, str]:
    async with store.read() as connection:
        image = select(image_files.c.body).where(image_files.c.filename == FIRST_ROOT)
        director = select(director_files.c.body).where(
            director_files.c.device == ALL_DEVICES, director_files.c.filename == FIRST_ROOT
        )
        found = [(await connection.execute(query)).scalar_one() for query in (image, director)]
    return bytes(found[0]).decode(), bytes(found[1]).decode()
