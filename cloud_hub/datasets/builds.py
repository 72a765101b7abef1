"""The builds of a module that samples and windows are of: their manifests by digest."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.errors import NotFound
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.manifest import Manifest, decode_manifest


@dataclass(frozen=True)
class Build:
    version: int
    profile: str
    manifest: Manifest


async def builds_of(store: Store, blobs: Blobs, module: str, version: int = 0) -> dict[str, Build]:
    """By manifest digest, newest first; of all versions with version 0. Raises NotFound `module-not-found`."""
    query = select(modules).where(modules.c.name == module).order_by(modules.c.version.desc(), modules.c.profile)
    if version:
        query = query.where(modules.c.version == version)
    async with store.read() as connection:
        rows = (await connection.execute(query)).all()
    if not rows:
        what = f"{module} version {version}" if version else module
        raise NotFound("module-not-found", f"no module {what[:80]} on this hub", name=module[:80], version=version)
    return {
        row.manifest_sha256: Build(row.version, row.profile, decode_manifest(await blobs.read(row.manifest_sha256)))
        for row in rows
    }
