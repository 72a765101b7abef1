"""Which builds of a module there are: a manifest per version and profile. Asked by every room that counts by build."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.store.tables import modules


async def builds_of(
    connection: AsyncConnection, module: str, version: int | None = None, limit: int | None = None
) -> list[str]:
    """The SHA-256 of their manifests, newest version first, then by profile; of one version, or of all."""
    query = select(modules.c.manifest_sha256).where(modules.c.name == module)
    if version is not None:
        query = query.where(modules.c.version == version)
    query = query.order_by(modules.c.version.desc(), modules.c.profile).limit(limit)
    return list((await connection.execute(query)).scalars())
