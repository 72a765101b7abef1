"""Hubs for simulated fleets: a signed module of any size, made without a build, and devices in the hub's database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.client import HubClient
from cloud_hub.reference import profile_training
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from cloud_hub.simulator.fleet import Member, Place
from cloud_hub.simulator.seeding import seed
from cloud_hub.store.tables import modules
from firmware_profiles.catalog import built_in
from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, encode_manifest
from modules.tensors import TensorSpec
from modules.windows import encode_reference
from support.hubs import serving

HARDWARE = built_in()["generic-x86_64"]
MODULE = "digits"


async def publish(
    rooms: Rooms, version: int = 1, *, features: int = 16, size: int = 100_000, probation_s: float = 0.2
) -> str:
    """Puts manifest, reference and a model of `size` random bytes where a build puts them, and signs; the digest."""
    rows = np.random.default_rng(version).normal(size=(2000, features))
    spec = TensorSpec("x", "FP64", (-1, features))
    reference = encode_reference(profile_training({"x": rows}, {}, [spec], []))
    files = (
        await _file(rooms, "model.onnx", secrets.token_bytes(size)),
        await _file(rooms, "reference.json", reference),
    )
    manifest = Manifest(
        MODULE, version, HARDWARE.name, Lineage("m", 1), (spec,), (), files, reference="reference.json",
        health=Health(probation_s=probation_s),
    )  # fmt: skip
    body = encode_manifest(manifest)
    digest = await rooms.blobs.put(body)
    row = {
        "name": MODULE, "version": version, "profile": HARDWARE.name, "publisher": rooms.config.publisher,
        "manifest_sha256": digest, "manifest_size": len(body), "size": manifest.size, "release_counter": None,
        "created_at": 0.0, "signed_at": None,
    }  # fmt: skip
    async with rooms.store.write() as connection:
        await connection.execute(insert(modules).values(row))
    await rooms.image.sign_module(MODULE, version, HARDWARE.name, "publisher")
    return digest


async def members(folder: Path, count: int, prefix: str = "sim") -> tuple[Place, list[Member]]:
    """So many devices in the database of the hub in `folder`."""
    return await seed(folder, names(count, prefix), HARDWARE, {"site": "lab"})


def names(count: int, prefix: str = "sim") -> Sequence[str]:
    return [f"{prefix}-{number:05d}" for number in range(1, count + 1)]


async def _file(rooms: Rooms, path: str, data: bytes) -> FileEntry:
    digest = await rooms.blobs.put(data)
    pieces = (data[at : at + MAX_CHUNK_BYTES] for at in range(0, len(data), MAX_CHUNK_BYTES))
    return FileEntry(path, len(data), digest, tuple(Chunk(sha256_hex(piece), len(piece)) for piece in pieces))


@asynccontextmanager
async def hub_with_module(
    folder: Path, versions: Sequence[int] = (1,), **module: float
) -> AsyncIterator[tuple[HubPaths, HubClient]]:
    """A hub that serves, with these versions of MODULE signed; `module` are arguments of `publish`."""
    api, mqtt = free_ports(2)
    config = HubConfig(
        dev=True, public_host="localhost", api_host="127.0.0.1", mqtt_host="127.0.0.1", api_port=api, mqtt_port=mqtt
    )
    paths = await initialise(folder, config)
    async with open_hub(paths) as rooms:
        for version in versions:
            await publish(rooms, version, **module)  # type: ignore[arg-type]
    async with serving(paths) as client:
        yield paths, client
